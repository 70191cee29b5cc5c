"""Drawing from what was loaded: score it, pick, weight."""

from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_is import host
from lightning_is.data.batch import leaves, with_leaves
from lightning_is.monitor import Stopwatch
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.selection import without_replacement
from lightning_is.scoring.scaling import shrunk
from lightning_is.scoring.scorer import Scored
from lightning_is.scoring.scorer import Step as ScoringStep
from lightning_is.scoring.tap import HeadTap
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
        self._runner, self._progress, self._watch = runner, progress, watch
        self.is_summed = False

    def generator(self) -> torch.Generator:
        """Make the generator of the next draw."""
        self._progress.draws += 1
        rank = self._trainer.global_rank
        return draw_generator(self._progress.seed, rank, self._progress.draws - 1)

    def score(
        self, tap: HeadTap, batch: Any, examples: int, *, update_statistics: bool
    ) -> Scored | None:
        """Run the scoring pass; None if the user's step returns no loss."""
        settings = self._settings
        if settings.scale_factor < 1:
            # The statistics of smaller inputs are not those of the inputs.
            batch, update_statistics = _shrunk(batch, settings.scale_factor), False
        step = ScoringStep(self._runner.losses, batch, self._module, settings.take)
        with self._runner.traceless(update_statistics=update_statistics):
            try:
                return settings.scorer.score(step, tap, examples)
            except NoLossError:
                return None
            except Exception as problem:
                if settings.scale_factor < 1:
                    raise _too_small(settings.scale_factor, problem) from problem
                raise

    def read(self, step: Step, tap: HeadTap) -> None:
        """Read the scores that the backward pass of an ordinary step left behind."""
        if step.read is not None:
            tap.scale = host.gradient_scale(self._trainer)
            step.scores = step.read(step.examples)

    def sample(self, step: Step, tap: HeadTap, batch: Any, wanted: int) -> Any:
        """Score a presample, draw ``wanted`` from it, and arrange for the weights."""
        start = self._watch.mark()
        with host.profiled(self._trainer, "score"):
            scored = self.score(tap, batch, step.examples, update_statistics=True)
        if scored is None:
            return batch
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


def _shrunk(batch: Any, factor: float) -> Any:
    """Return a batch with smaller images in it."""
    rows = leaves(batch)
    smaller = [shrunk(r, factor) if isinstance(r, torch.Tensor) else r for r in rows]
    return with_leaves(batch, smaller)


def _too_small(factor: float, problem: Exception) -> RuntimeError:
    return RuntimeError(
        f"A module scored with `scale_factor={factor}` must accept smaller images, got "
        f"from it: {problem}. Pool adaptively before the head, or leave "
        "`scale_factor` at 1."
    )
