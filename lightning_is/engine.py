"""The engine of one fit: between the loader and the user's training step.

It shadows two public methods of the Trainer's strategy, so that every other part of
Lightning, and the user's code, sees the drawn batch as if the loader had yielded it.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.data.batch import SampledBatch
from lightning_is.ledger import Ledger
from lightning_is.monitor import Stopwatch
from lightning_is.preparation import Trial, prepare
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.sampling.gate import Gate
from lightning_is.sampling.moments import moments
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.selection import without_replacement
from lightning_is.scoring.scorer import Scored
from lightning_is.scoring.scorer import Step as ScoringStep
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Progress, Settings
from lightning_is.step import Step

_CHECKED_AGAIN = (10, 100, 1000, 10_000)  # batches: a loss may gain terms in time
_PROBE_EVERY = 10  # closed steps between passes of the user's own per-example loss


@final
class Engine:
    """Draws, weights and watches the batches of one fit.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.
        gate: Decides when to sample.
        progress: Seed and number of draws, updated in place.
        is_active: Whether the callback still belongs to the Trainer.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        gate: Gate,
        progress: Progress,
        is_active: Callable[[], bool],
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings
        self._gate, self._progress, self._is_active = gate, progress, is_active
        self.ledger = Ledger(trainer, gate, settings)
        self._runner = StepRunner(trainer, module, settings)
        self._tap: HeadTap | None = None  # from the first batch on
        self._is_summed = False
        self._step: Step | None = None
        self._watch = Stopwatch(trainer.strategy.root_device)
        strategy = trainer.strategy
        self._moving = host.Shadow(strategy, "batch_to_device", self._receive)
        self._stepping = host.Shadow(strategy, "training_step", self._run_step)

    @property
    def is_sampling(self) -> bool:
        """Whether the batch in hand was drawn from a presample."""
        return self._step is not None and self._step.is_sampled

    def close(self) -> None:
        """Leave strategy and module as they were found."""
        self._stepping.undo()
        self._moving.undo()
        if self._tap is not None:
            self._tap.detach()

    def _receive(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch to the device and, in training, draw from it."""
        if not (self._trainer.training and self._is_active()) or batch is None:
            return self._moving.original(batch, device, dataloader_idx)
        begun, weights, index = self._watch.mark(), None, None
        if isinstance(batch, SampledBatch):
            target = device or self._trainer.strategy.root_device
            weights = batch.weight.to(target, non_blocking=True)
            index, batch = batch.index, batch.data
        batch = self._moving.original(batch, device, dataloader_idx)
        self.ledger.settle()
        size = self._settings.count(batch)
        self.ledger.note(size)
        step = self._step = Step(size, begun, weights, index)
        if self._tap is None:
            self._tap = self._prepare(batch, size)
        elif self.ledger.batches in _CHECKED_AGAIN:
            with suppress(NoLossError):
                self._trial(batch, size).refuse_bypass(self._tap)
        if self._tap is None or size <= self._settings.batch_size:
            return batch
        if self._gate.is_open:
            return self._sample(step, self._tap, batch)
        if self._settings.when_closed == "subset":
            return self._subset(step, batch)
        return batch

    def _prepare(self, batch: Any, size: int) -> HeadTap | None:
        """Find the head and refuse what cannot work, on part of the first batch."""
        self.ledger.check_loader()
        head = self._settings.head
        heads = None if head is None else host.resolve_heads(self._module, head)
        trial = self._trial(batch, size)
        prepared = prepare(trial, heads, self._settings.scorer)
        if prepared is None:
            return None
        self._runner.settle()
        tap, self._is_summed = prepared
        return tap

    def _trial(self, batch: Any, size: int) -> Trial:
        # Two examples at least, or their order could not be told; four, to halve them.
        least = 4 if size >= 8 else 2
        part = min(max(least, min(self._settings.batch_size, size // 2)), size)
        return Trial(
            module=self._module,
            step=self._runner.loss,
            losses=self._runner.losses,
            context=self._runner.traceless,
            part=lambda positions: self._settings.take(batch, positions),
            device=self._module.device,
            examples=part,
            parts=min(2, size // part),
        )

    def _generator(self) -> torch.Generator:
        self._progress.draws += 1
        rank = self._trainer.global_rank
        return draw_generator(self._progress.seed, rank, self._progress.draws - 1)

    def _sample(self, step: Step, tap: HeadTap, batch: Any) -> Any:
        """Score a presample, draw from it, and arrange for the weights."""
        start = self._watch.mark()
        with host.profiled(self._trainer, "score"):
            scored = self._score(tap, batch, step.examples, update_statistics=True)
        if scored is None:
            return batch
        plan, wanted = self._settings.plan, self._settings.batch_size
        before = step.weights
        scores = scored.scores if before is None else scored.scores * before
        counts = plan.expected_counts(scores, wanted)
        drawn = plan.pick(counts, wanted, generator=self._generator())
        weights = drawn.weights * self._rescaling(step.examples)
        if before is not None:
            weights = weights * before[drawn.indices]
        step.drawn_from = (scores, counts)
        step.scores = scored.scores
        step.loss = scored.loss if before is None else None
        step.weights, step.is_sampled, step.examples = weights, True, wanted
        batch = self._settings.take(batch, drawn.indices)
        step.scoring = (start, self._watch.mark())
        return batch

    def _rescaling(self, loaded: int) -> float:
        """Make up for a summed loss, which has fewer terms when fewer are drawn."""
        if not self._is_summed or self._settings.when_closed == "subset":
            return 1.0
        presampled = host.presample_sampler(self._trainer) is not None
        return 1.0 if presampled else loaded / self._settings.batch_size

    def _subset(self, step: Step, batch: Any) -> Any:
        """Take a uniform batch out of a presample that came while the gate is shut."""
        even = torch.full(
            (step.examples,), 1 / step.examples, device=self._module.device
        )
        wanted = self._settings.batch_size
        drawn = without_replacement(even, wanted, generator=self._generator()).indices
        if step.weights is not None:
            step.weights = step.weights[drawn]
        step.examples = wanted
        return self._settings.take(batch, drawn)

    def _score(
        self, tap: HeadTap, batch: Any, examples: int, *, update_statistics: bool
    ) -> Scored | None:
        """Run the scoring pass; None if the user's step returns no loss."""
        scorer = self._settings.scorer
        with self._runner.traceless(update_statistics=update_statistics):
            try:
                step = ScoringStep(self._runner.losses, batch, self._module)
                return scorer.score(step, tap, examples)
            except NoLossError:
                return None

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step under the weights of its batch, or watch it."""
        step = self._step
        if step is None or self._tap is None or not self._is_active():
            return self._stepping.original(*args, **kwargs)
        with ExitStack() as stack:
            if step.weights is not None:
                stack.enter_context(self._tap.weighting(step.weights))
            if step.is_sampled:
                stack.enter_context(self._runner.context.frozen_statistics())
            elif self._settings.per_sample_loss is None:
                watching = self._settings.scorer.observing(self._tap)
                step.read = stack.enter_context(watching)
            return self._stepping.original(*args, **kwargs)

    def after_backward(self) -> None:
        """Read the scores that the backward pass of a closed step left behind."""
        step = self._step
        if step is None or step.read is None:
            return
        step.scores = step.read(step.examples)
        if step.scores is not None and host.scales_gradients(self._trainer):
            usable = torch.isfinite(step.scores).all()  # the scaler skips this step
            step.scores = torch.where(usable, step.scores, 0.0)

    def end_step(self, batch: Any, loss: Tensor | None) -> None:
        """Send what the step showed on its way to the gate."""
        step = self._step
        if step is None or self._tap is None:
            return
        due, own = self.ledger.is_due(), self._settings.per_sample_loss is not None
        if step.drawn_from is not None:
            scores, counts = step.drawn_from
            # On an accelerator only the moments tell of scores at fault.
            if due or scores.device.type != "cpu":
                selection = self._settings.plan.selection
                step.moments = moments(scores, counts, step.examples, selection)
        else:
            step.loss = loss if step.weights is None else None
            if own and self.ledger.batches % _PROBE_EVERY == 1:
                scored = self._score(
                    self._tap, batch, step.examples, update_statistics=False
                )
                step.scores, due = None if scored is None else scored.scores, True
            if due and step.scores is not None:
                weights = 1.0 if step.weights is None else step.weights
                step.moments = self.ledger.prospect(step.scores * weights)
        self.ledger.send(step.moments, step.scores)

    def metrics(self) -> dict[str, float | Tensor]:
        """Describe the step that just ended; waits for the device."""
        self.ledger.settle()
        if self._step is None or self.ledger.last is None:
            return {}
        return self._step.metrics(self.ledger.last, self._watch)
