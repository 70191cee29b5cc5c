"""Drawing from what was loaded: score it, pick, weight."""

from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_is import host
from lightning_is.monitor import Stopwatch
from lightning_is.runner import StepRunner
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.selection import without_replacement
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring_pass import ScoringPass
from lightning_is.settings import Progress, Settings
from lightning_is.step import Step


@final
class Drawer:
    """Scores batches and draws from them, as the settings say.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.
        runner: Runs the user's step without a trace.
        progress: Seed and number of draws, updated in place.
        watch: Measures scoring.

    Attributes:
        is_summed: Whether the loss is a sum over the examples.
        scoring: Scores.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        runner: StepRunner,
        progress: Progress,
        watch: Stopwatch,
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings
        self._progress, self._watch = progress, watch
        self.scoring = ScoringPass(trainer, module, settings, runner, watch)
        self.is_summed = False

    def generator(self) -> torch.Generator:
        """Make the generator of the next draw."""
        self._progress.draws += 1
        rank = self._trainer.global_rank
        return draw_generator(self._progress.seed, rank, self._progress.draws - 1)

    def read(self, step: Step, tap: HeadTap) -> None:
        """Read the scores that the backward pass of an ordinary step left behind."""
        if step.read is not None:
            tap.scale = host.gradient_scale(self._trainer)
            step.scores = step.read(step.examples)

    def probe(self, step: Step, tap: HeadTap, batch: Any) -> bool:
        """Score an ordinary step apart from it; return whether that could be done."""
        size = step.examples
        scored = self.scoring.run(tap, batch, size, update_statistics=False)
        step.scores = None if scored is None else scored.scores
        return scored is not None

    def sample(self, step: Step, tap: HeadTap, batch: Any, wanted: int) -> Any:
        """Score a presample, draw ``wanted`` from it, and arrange for the weights."""
        start, size = self._watch.mark(), step.examples
        with host.profiled(self._trainer, "score"):
            scored = self.scoring.run(tap, batch, size, update_statistics=True)
        if scored is None:
            return batch
        self.scoring.check(tap, batch, scored, wanted)
        plan, before = self._settings.plan, step.weights
        scores = scored.scores if before is None else scored.scores * before
        counts = plan.expected_counts(scores, wanted)
        drawn = plan.pick(counts, wanted, generator=self.generator())
        weights = drawn.weights * self._rescaling(step.examples, wanted)
        if before is not None:
            weights = weights * before[drawn.indices]
        step.drawn_from = scores
        step.scores = scored.scores
        step.loss = scored.loss if before is None else None
        step.weights, step.is_sampled, step.examples = weights, True, wanted
        batch = self._settings.take(batch, drawn.indices)
        step.scoring = (start, self._watch.mark())
        return batch

    def _rescaling(self, loaded: int, wanted: int) -> float:
        """Make up for a summed loss, which has fewer terms when fewer are drawn."""
        if not self.is_summed:
            return 1.0
        sampler = host.presample_sampler(self._trainer)
        ordinary = loaded if sampler is None else sampler.batch_size
        if self._settings.when_closed == "subset":
            ordinary = self._settings.wanted(ordinary)
        return ordinary / wanted

    def subset(self, step: Step, batch: Any, wanted: int) -> Any:
        """Take a uniform batch out of a presample that came while the gate is shut."""
        even = torch.full(
            (step.examples,), 1 / step.examples, device=self._module.device
        )
        drawn = without_replacement(even, wanted, generator=self.generator()).indices
        if step.weights is not None:
            step.weights = step.weights[drawn]
        if step.index is not None:
            step.index = step.index[drawn.to(step.index.device)]
        step.examples = wanted
        return self._settings.take(batch, drawn)
