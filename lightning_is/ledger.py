"""The ledger: what steps showed of their scores, on its way to gate and loader."""

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import final

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.monitor import Readback, sent
from lightning_is.progress import Progress
from lightning_is.sampling import numerics
from lightning_is.sampling.costs import Timing
from lightning_is.sampling.gate import Evidence, Gate, Sizes
from lightning_is.sampling.moments import evidence, moments, no_moments, only_faults
from lightning_is.settings import Settings
from lightning_is.skips import Skips
from lightning_is.step import Step

_MOST = 1000  # timings to keep for a gate that is told of nothing


@final
class Ledger:
    """Adds up evidence over the ranks and hands it to the gate, a step later.

    Args:
        trainer: Runs the fit.
        gate: Is told, and asked what the loader should emit.
        settings: Of the callback.
        progress: Returns the share of the run that is over.
        counts: Of batches and steps, updated in place.

    Attributes:
        last: The evidence last handed over.
        batches: Batches of this fit.
        skips: Counts steps whose scores are not finite.
    """

    def __init__(
        self,
        trainer: Trainer,
        gate: Gate,
        settings: Settings,
        progress: Callable[[], float],
        counts: Progress,
    ) -> None:
        self._trainer, self._gate, self._settings = trainer, gate, settings
        self._progress, self._counts = progress, counts
        self._readback = Readback()
        self._scores: Tensor | None = None  # behind what is being read back
        self.last: Evidence | None = None
        self.batches = 0
        self._timings: list[Timing] = []  # since the gate was last told
        self.skips = Skips(settings, counts)

    def note(self, size: int) -> None:
        """Take in the size of a batch that arrived."""
        self._counts.largest = max(self._counts.largest, size)
        self.batches += 1
        self._counts.batches += 1

    @property
    def presample_size(self) -> int:
        """Examples that an open step scores."""
        sampler = host.presample_sampler(self._trainer)
        return self._counts.largest if sampler is None else sampler.presample_size

    def is_due(self) -> bool:
        """Whether a step should be looked at: for the gate, or for the logs."""
        due = self._counts.pending + 1 >= self._gate.interval
        return due or host.logs_now(self._trainer)

    def will_be_due(self) -> bool:
        """Whether the step that begins may have to be looked at."""
        due = self._counts.pending + 1 >= self._gate.interval
        return due or host.may_log(self._trainer)

    def prospect(self, scores: Tensor, *, overflows: bool = False) -> Tensor:
        """Return the moments of a step, for a draw of every candidate size.

        Args:
            scores: Of the step.
            overflows: Whether they come from a backward pass that may overflow by
                design: then they are no fault, and no evidence.
        """
        if not (overflows or self._settings.forgives) or numerics.seen_finite(scores):
            return self._moments(scores)
        kept, finite = numerics.even_unless_finite(scores)
        packed = self._moments(kept)
        instead = no_moments(self._sizes, scores.device)
        if not overflows:
            instead = only_faults(scores, self._sizes, forgiving=True)
        return torch.where(finite, packed, instead)

    def _moments(self, scores: Tensor) -> Tensor:
        presample, plan = max(self.presample_size, 1), self._settings.plan
        probs, draws = plan.distribution(scores), []
        steps = host.steps_of_a_presample(self._trainer)
        for size in self._candidates(presample):
            share = size / presample
            drawn = min(max(1, round(share * len(scores))), len(scores))
            whole = min(drawn * steps, len(scores))
            draws.append((drawn, plan.selection.expected_counts(probs, whole)))
        return moments(scores, draws, plan.selection, several=steps > 1)

    def look(self, step: Step, *, due: bool) -> Tensor | None:
        """Return the moments of a step, if they are due or nobody has looked yet."""
        scores = step.counting
        if scores is None:
            return None
        chosen = step.is_sampled or step.drawn_from is not None
        overflows = host.scales_gradients(self._trainer) and not chosen
        if due:
            return self.prospect(scores, overflows=overflows)
        forgives = self._settings.forgives
        if overflows or not (chosen or forgives):
            return None
        if numerics.seen_finite(scores):
            return None
        return only_faults(scores, self._sizes, forgiving=forgives)

    @property
    def _sizes(self) -> int:
        """How many sizes the gate wants to know of."""
        return len(self._candidates(max(self.presample_size, 1)))

    def send(
        self, packed: Tensor | None, scores: Tensor | None, timing: Timing | None
    ) -> None:
        """Send what a step showed on its way; every rank must, each step."""
        if timing is not None:
            timing = self._of_full_size(timing)
        if self._trainer.world_size > 1:
            packed, timing = self._shared(packed, timing)
        self._counts.pending += 1
        if timing is not None:
            self._timings.append(timing)
        if packed is not None:
            self._scores = scores
            self._readback.push(packed)

    def _of_full_size(self, timing: Timing) -> Timing:
        """Scale the time of a smaller batch, as batches may have any size."""
        size, loaded, trained = self.presample_size, timing.loaded, timing.trained
        if host.presample_sampler(self._trainer) is not None or loaded == size:
            return timing
        scale, step = size / loaded, timing.step
        if trained == loaded:
            step, trained = step * scale, size
        elif self._gate.chooses_size and trained in self._candidates(loaded):
            place = self._candidates(loaded).index(trained)
            step, trained = step * scale, self._candidates(size)[place]
        times = timing.wait * scale, timing.score * scale, step
        return Timing(size, trained, *times, timing.overlaps)

    def _shared(
        self, packed: Tensor | None, timing: Timing | None
    ) -> tuple[Tensor, None]:
        """Add up over the ranks what each of them has."""
        if packed is None:
            device = self._trainer.strategy.root_device
            packed = no_moments(self._sizes, device)
        # The size as well: ranks must not disagree on when a step pays.
        times = [0.0] * 7 if timing is None else [1.0, *astuple(timing)]
        share = 1 / self._trainer.world_size
        own = [float(value) * share for value in (self.presample_size, *times)]
        packed = torch.cat([packed, sent(own, packed)])
        reduced = self._trainer.strategy.reduce(packed, reduce_op="sum")
        return torch.as_tensor(reduced), None

    def settle(self) -> None:
        """Hand the evidence of the last step to the gate.

        Raises:
            ValueError: If its scores were NaN, infinite or negative on an accelerator,
                where this is found out now.
        """
        arrived = self._readback.pop()
        if arrived is None:
            return
        packed, size, trainer = arrived.tolist(), self.presample_size, self._trainer
        if trainer.world_size > 1:
            *packed, mean, timed, loaded, trained, wait, score, step, overlaps = packed
            size = round(mean)
            if round(timed, 6) == 1:
                whole = round(loaded), round(trained)
                timing = Timing(*whole, wait, score, step, overlaps > 0)
                self._timings.append(timing)
        faults, forgiven = packed[3:5]
        if faults > 0:
            if self._scores is not None:
                numerics.check_scores(self._scores)
            raise ValueError(
                f"Scores must be finite and at least 0, got {faults:.0f} that are "
                "not on another rank. Its message says which."
            )
        sizes, wanted = self._candidates(size), self._wanted(size)
        found = evidence(packed, size, wanted, sizes.index(wanted))
        if forgiven > 0:
            self.skips.add(forgiven)
            del self._timings[:-_MOST]
        elif found is not None:
            self.last = replace(
                found,
                presample_size=size
                // host.steps_of_a_presample(self._trainer),  # those of one step
                steps=self._counts.pending,
                progress=self._progress(),
                epochs=host.epochs(trainer),
                ordinary=self._ordinary(size),
                timings=tuple(self._timings),
            )
            self._counts.pending = 0
            self._timings.clear()
            self._gate.observe(self.last)

    def _ordinary(self, presample: int) -> Sizes:
        """Return what a closed step loads, and trains on."""
        sampler = host.presample_sampler(self._trainer)
        loaded = presample if sampler is None else sampler.batch_size
        subset = self._settings.when_closed == "subset"
        wanted = min(self._settings.wanted(loaded), loaded)
        return Sizes(loaded, wanted if subset else loaded)

    def tell_loader(self, *, of_size: bool = True) -> None:
        """Take in what the last step showed, and let the loader know, at fixed times.

        Args:
            of_size: Also how many to load. Within a pass that is a step late, as the
                rest of a small one is just what the last step did not see.
        """
        self.settle()
        sampler = host.presample_sampler(self._trainer)
        if sampler is not None:
            sampler.is_open = self._gate.is_open
            sizes = self._gate.sizes(sampler.presample_size, sampler.batch_size)
            sampler.open_size = sizes.presample if of_size else sampler.open_size

    def _candidates(self, loaded: int) -> tuple[int, ...]:
        """Sizes, of as many loaded, whose gain the gate wants to know."""
        wanted = self._settings.wanted(loaded)
        return self._gate.candidates(loaded, min(wanted, loaded))

    def _wanted(self, loaded: int) -> int:
        """Examples that an open step trains on, of as many loaded."""
        wanted = self._settings.wanted(loaded)
        return self._gate.sizes(loaded, min(wanted, loaded)).batch
