"""When a gate will open: asked of copies of it, whatever gate it is."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

from lightning_is.sampling.costs import Timing
from lightning_is.sampling.gate import Evidence, Gate, Sizes
from lightning_is.sampling.prospects import Prospect

_ENOUGH = 4  # timings of a kind: the first warms up, three make a measurement
_LONG = 10**6  # steps: what a moving average was before is forgotten
_HALVINGS = 20  # of a range: one part in a million
_STAGES = (0.5, 0.05, 0.25, 0.75, 0.95)  # of a run, of which a gate may like one

Measure = Literal["is/tau", "is/effective_batch", "nothing", "never", "both"]


@dataclass(frozen=True)
class Opening:
    """When a gate opens.

    Args:
        measure: What it goes by; ``"nothing"`` if it opens whatever the scores,
            ``"never"`` if no scores open it, ``"both"`` if neither tau nor effective
            batches do it alone.
        above: What tau must exceed; what effective batches must is up to each size.
    """

    measure: Measure
    above: float | None = None


@dataclass(frozen=True)
class Gatekeeper:
    """Asks copies of a gate what it would do: it is told nothing itself.

    Args:
        gate: To ask.
        presample_size: Examples ``B`` that an open step scores.
        batch_size: Examples ``b`` that the user asked to train on.
        prospects: Of the sizes that it chooses from, in its order.
    """

    gate: Gate
    presample_size: int
    batch_size: int
    prospects: Sequence[Prospect] = ()

    def sizes(self) -> list[Sizes]:
        """Return what open steps would handle, if few examples mattered."""
        gate, loaded = self._told(self._evidence(1.0, 1.0)), self.presample_size
        scored = gate.sizes(loaded, self.batch_size).presample
        return [
            Sizes(scored, size) for size in gate.candidates(loaded, self.batch_size)
        ]

    def opening(self) -> tuple[Opening, list[Prospect]]:
        """Return when the gate opens, and for each size from where on it chooses it."""
        prospects = list(self.prospects)
        if not self._opens(1.0, 1.0):
            return Opening("never"), prospects
        if self._opens(0.0, 0.0):
            return Opening("nothing"), prospects
        if self._opens(1.0, 0.0):
            share = _least(lambda share: self._opens(share, 0.0))
            return Opening("is/tau", self._tau(share)), prospects
        if not self._opens(0.0, 1.0):
            return Opening("both"), prospects
        return Opening("is/effective_batch"), [
            replace(prospect, opens_above=self._above(place))
            for place, prospect in enumerate(prospects)
        ]

    def _above(self, place: int) -> float | None:
        """Return the effective batch from which on one of the sizes is chosen."""
        if not self._opens(0.0, 1.0, place):
            return None
        share = _least(lambda share: self._opens(0.0, share, place))
        return 1 + share * (self.prospects[place].attainable - 1)

    def _opens(self, tau: float, gain: float, place: int | None = None) -> bool:
        return self._told(self._evidence(tau, gain, place)).is_open

    def _told(self, evidence: Evidence) -> Gate:
        """Return a copy that was told of evidence, in a part of the run it opens in."""
        for progress in _STAGES:
            gate = copy.deepcopy(self.gate)
            gate.observe(replace(evidence, progress=progress))
            if gate.is_open:
                break
        return gate

    def _tau(self, share: float) -> float:
        return 1 + share * (sqrt(self.presample_size) - 1)

    def _evidence(self, tau: float, gain: float, place: int | None = None) -> Evidence:
        """Make up evidence: 0 is what even scores show, 1 the most that any could.

        Args:
            tau: Share of the largest tau.
            gain: Share of the largest effective batch.
            place: The one size that has such a gain; None is all of them.
        """
        loaded = self.presample_size
        candidates = self.gate.candidates(loaded, self.batch_size)
        gains = [1 + gain * (loaded / size - 1) for size in candidates]
        if place is not None:
            gains = [g if i == place else 0.0 for i, g in enumerate(gains)]
        asked = self.gate.sizes(loaded, self.batch_size).batch
        return Evidence(
            tau=self._tau(tau),
            effective_batch=gains[candidates.index(asked)],
            presample_size=loaded,
            batch_size=asked,
            steps=_LONG,
            epochs=float(_LONG),
            gains=tuple(gains),
            ordinary=self.prospects[0].ordinary.sizes if self.prospects else None,
            timings=self._timings(),
        )

    def _timings(self) -> tuple[Timing, ...]:
        if not self.prospects:
            return ()
        plain = self.prospects[0].ordinary
        wait = plain.cycle - plain.compute
        closed = Timing(*plain.sizes, wait, 0.0, plain.compute, plain.overlaps)
        kinds = [closed, *(prospect.timing() for prospect in self.prospects)]
        return tuple(timing for timing in kinds for _ in range(_ENOUGH))


def _least(holds: Callable[[float], bool]) -> float:
    """Return the least share from which on something holds, as it does at 1."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
