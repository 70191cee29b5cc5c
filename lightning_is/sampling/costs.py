"""What steps cost: assumed until it is measured on the machine that runs them."""

from collections import deque
from dataclasses import dataclass
from statistics import fmean, median
from typing import final

_WINDOW = 32  # timings of a kind that count; a median of them forgives the odd one
_LEAST = 3  # of them make a measurement
WAITS = 0.05  # of the time spent waiting: from here on the loader sets the pace
_OPTIMISM = 9.0  # backward passes are rarely dearer: no chance is missed before a trial


@dataclass(frozen=True)
class Timing:
    """Where the time of one step went, in seconds; averaged over the ranks.

    Attributes:
        loaded: Examples that arrived.
        trained: Examples that were trained on.
        wait: From the end of the last step until they arrived.
        score: Scoring and drawing; 0 where nothing was scored.
        step: The rest of the step.
        overlaps: Whether the loader works while a step runs, as with workers.
    """

    loaded: int
    trained: int
    wait: float
    score: float
    step: float
    overlaps: bool = False


@final
class CostModel:
    r"""Predicts what an open step costs, in ordinary steps.

    Until it has seen a kind of step it goes by arithmetic: a forward pass of one
    example costs 1, a backward pass :math:`r`. Then by the median of the latest
    timings. A loader that works while steps run costs nothing until the steps wait for
    it; then no step is faster than the loader.

    Args:
        backward_cost: Cost :math:`r` of a backward pass, in forward passes, as long as
            no ordinary step is measured. From then on a kind of open step that was not
            tried is taken to cost little, so that it will be.
        expires: Steps after which an open step must be measured anew; an ordinary one
            after four times as many, as it is slow.

    Example:
        >>> costs = CostModel()
        >>> round(costs.ratio(128, 32, 128, 128), 3)  # (128 + 3 * 32) / (3 * 128)
        0.583
        >>> for _ in range(4):
        ...     costs.observe(Timing(128, 128, wait=0.0, score=0.0, step=0.1))
        >>> for _ in range(4):
        ...     costs.observe(Timing(128, 32, wait=0.0, score=0.06, step=0.03))
        >>> round(costs.ratio(128, 32, 128, 128), 3)
        0.9
    """

    def __init__(self, backward_cost: float = 2.0, expires: int = 500) -> None:
        self.backward_cost, self.expires = backward_cost, expires
        self._windows: dict[tuple[str, int], deque[tuple[int, float]]] = {}
        self._paces: dict[tuple[str, int], float] = {}
        self._unsettled: set[tuple[str, int]] = set()  # those with new timings
        self._kind: tuple[int, int, bool] | None = None
        self._overlaps = False
        self._now = 0  # timings seen

    def observe(self, timing: Timing) -> None:
        """Take in the time of a step; the first of a kind in a row only warms up."""
        self._now += 1
        scored = timing.score > 0
        kind = timing.loaded, timing.trained, scored
        if kind != self._kind:
            self._kind = kind
            return
        self._overlaps = timing.overlaps
        compute = timing.score + timing.step
        # Apart from one another: faster steps may have to wait where slow ones do not.
        phase = "open" if scored else "closed"
        self._add(f"{phase} wait", timing.loaded, timing.wait)
        self._add(f"{phase} cycle", timing.loaded, timing.wait + compute)
        self._unsettled.add((phase, timing.loaded))
        if scored:
            self._add("score", timing.loaded, timing.score)
            self._add("step", timing.trained, timing.step)
        else:
            self._add("closed", timing.trained, timing.step)

    @property
    def is_empty(self) -> bool:
        """Whether no step was ever timed."""
        return self._now == 0

    def is_known(self, loaded: int, trained: int) -> bool:
        """Whether an open step of these sizes has been measured, and not long ago."""
        times = self._measured("score", loaded), self._measured("step", trained)
        return None not in times

    def knows_ordinary(self, trained: int) -> bool:
        """Whether an ordinary step has been measured, and not long ago."""
        return self._measured("closed", trained) is not None

    def ratio(
        self, loaded: int, trained: int, ordinarily_loaded: int, ordinarily: int
    ) -> float:
        """Return the cost of an open step in ordinary ones.

        Args:
            loaded: Examples to score.
            trained: Of them, to train on.
            ordinarily_loaded: Examples that an ordinary step loads.
            ordinarily: Examples that an ordinary step trains on.
        """
        closed = self._measured("closed", ordinarily)
        if not closed:  # or the clock stands still
            whole = (1 + self.backward_cost) * ordinarily
            return (loaded + (1 + self.backward_cost) * trained) / whole
        # By what one example costs forth and back, until it is measured.
        score, step = self._measured("score", loaded), self._measured("step", trained)
        if score is None:
            score = closed / ordinarily * loaded / (1 + _OPTIMISM)
        if step is None:
            step = closed / ordinarily * trained
        before = self._cycle("closed", ordinarily_loaded, closed)
        if len(self._values("open wait", loaded)) >= _LEAST:
            return self._cycle("open", loaded, score + step) / before
        more = loaded / ordinarily_loaded
        return self._cycle("closed", ordinarily_loaded, score + step, more) / before

    def _cycle(
        self, phase: str, loaded: int, compute: float, more: float = 1.0
    ) -> float:
        """Return the time from batch to batch, if steps compute for so long."""
        if self._overlaps:
            return max(compute, self._pace(phase, loaded) * more)
        return compute + (self._measured(f"{phase} wait", loaded) or 0.0) * more

    def _pace(self, phase: str, loaded: int) -> float:
        """Return the time a loader needs for a batch, 0 if nobody had to wait yet."""
        if (phase, loaded) in self._unsettled:
            self._unsettled.remove((phase, loaded))
            self._note_pace(phase, loaded)
        recent = self._values(f"{phase} wait", loaded)
        return self._paces.get((phase, loaded), 0.0) if recent else 0.0

    def _note_pace(self, phase: str, loaded: int) -> None:
        waits = self._values(f"{phase} wait", loaded)
        cycles = self._values(f"{phase} cycle", loaded)
        if len(waits) < _LEAST:
            return
        # Batches of several workers come in bursts, so a mean; but for one outlier.
        longest = max(range(len(waits)), key=waits.__getitem__)
        del waits[longest], cycles[longest]
        cycle, place = fmean(cycles), (phase, loaded)
        if fmean(waits) > WAITS * cycle:
            self._paces[place] = cycle
        elif place in self._paces:  # it is no slower than the steps are now
            self._paces[place] = min(self._paces[place], cycle)

    def _add(self, what: str, size: int, seconds: float) -> None:
        window = self._windows.setdefault((what, size), deque(maxlen=_WINDOW))
        window.append((self._now, seconds))

    def _values(self, what: str, size: int) -> list[float]:
        window = self._windows.get((what, size), ())
        valid = self.expires * (4 if what.startswith("closed") else 1)
        return [value for when, value in window if when > self._now - valid]

    def _measured(self, what: str, size: int) -> float | None:
        values = self._values(what, size)
        return median(values) if len(values) >= _LEAST else None
