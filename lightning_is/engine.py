"""The engine of one fit: between the loader and the user's training step.

It shadows two public methods of the Trainer's strategy, so that every other part of
Lightning, and the user's code, sees the drawn batch as if the loader had yielded it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_is import host
from lightning_is.data.batch import SampledBatch, batch_size, take
from lightning_is.monitor import Readback, Stopwatch
from lightning_is.preparation import Trial
from lightning_is.sampling.gates import Evidence, Gate
from lightning_is.sampling.moments import evidence, moments
from lightning_is.sampling.numerics import check_scores
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.selection import without_replacement
from lightning_is.scoring.context import ScoreMode, TracelessContext
from lightning_is.scoring.scorer import Reading, Scored, Scorer
from lightning_is.scoring.tap import HeadTap

Head = str | nn.Module | Sequence[str | nn.Module]
PROBE_EVERY = 10  # closed steps between passes of a per-example loss of the user's


@dataclass(frozen=True)
class Settings:
    """What `ImportanceSamplingCallback` was asked for; see there."""

    batch_size: int
    scorer: Scorer
    plan: ImportancePlan
    when_closed: Literal["all", "subset"]
    head: Head | None
    per_sample_loss: Callable[[LightningModule, Any], Tensor] | None
    index_fn: Callable[[Any, Tensor], Any] | None
    score_mode: ScoreMode


@dataclass
class Progress:
    """What survives a checkpoint, besides the gate: two integers."""

    seed: int
    draws: int = 0


@dataclass
class _Step:
    """The batch in hand, from its arrival to the end of its step."""

    examples: int
    begun: Any
    weights: Tensor | None = None
    is_sampled: bool = False
    scores: Tensor | None = None  # of everything that was loaded
    moments: Tensor | None = None
    loss: Tensor | None = None  # of everything that was loaded
    scoring: tuple[Any, Any] | None = None
    read: Reading | None = None


class _NoLossError(Exception):
    """The user's step returned None: nothing to score."""


@final
class Engine:
    """Draws, weights and watches the batches of one fit.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: What was asked for.
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
        self._trainer, self._module = trainer, module
        self._settings, self._gate, self._progress = settings, gate, progress
        self._is_active = is_active
        self._tap: HeadTap | None = None
        self._context = TracelessContext(
            module, settings.score_mode, host.logging_modules(module)
        )
        self._readback = Readback()
        self._last: Evidence | None = None
        self._observed: Tensor | None = None  # scores behind the pending moments
        self._step: _Step | None = None
        self._watch = Stopwatch(trainer.strategy.root_device)
        self._largest = 0
        self._batches = 0
        strategy = trainer.strategy
        self._moving = host.Shadow(strategy, "batch_to_device", self._receive)
        self._stepping = host.Shadow(strategy, "training_step", self._run_step)

    def close(self) -> None:
        """Leave strategy and module as they were found."""
        self._stepping.undo()
        self._moving.undo()
        if self._tap is not None:
            self._tap.detach()

    # From the loader to the step.

    def _receive(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch to the device and, in training, draw from it."""
        if not (self._trainer.training and self._is_active()) or batch is None:
            return self._moving.original(batch, device, dataloader_idx)
        begun = self._watch.mark()
        weights = None
        if isinstance(batch, SampledBatch):
            target = device or self._trainer.strategy.root_device
            weights = batch.weight.to(target, non_blocking=True)
            batch = batch.data
        batch = self._moving.original(batch, device, dataloader_idx)
        self.settle()
        size = self._size(batch)
        self._step = _Step(size, begun, weights)
        self._batches += 1
        if self._tap is None:
            self._prepare(batch, size)
        if self._tap is None or size <= self._settings.batch_size:
            return batch
        if self._gate.is_open:
            return self._sample(self._step, batch)
        if self._settings.when_closed == "subset":
            return self._subset(self._step, batch)
        return batch

    def _size(self, batch: Any) -> int:
        size = batch_size(batch)
        self._largest = max(self._largest, size)
        return size

    def _take(self, batch: Any, indices: Tensor) -> Any:
        return (self._settings.index_fn or take)(batch, indices)

    def _generator(self) -> torch.Generator:
        self._progress.draws += 1
        rank = self._trainer.global_rank
        return draw_generator(self._progress.seed, rank, self._progress.draws - 1)

    def _sample(self, step: _Step, batch: Any) -> Any:
        """Score a presample, draw from it, and arrange for the weights."""
        start = self._watch.mark()
        with host.profiled(self._trainer, "score"):
            scored = self._score(batch, step.examples, update_statistics=True)
        if scored is None:
            return batch
        plan, wanted = self._settings.plan, self._settings.batch_size
        scores = scored.scores
        if step.weights is not None:
            scores = scores * step.weights
        drawn = plan.draw(scores, wanted, generator=self._generator())
        weights = drawn.weights
        if step.weights is not None:
            weights = weights * step.weights[drawn.indices]
        step.scores, step.loss = scores, scored.loss
        step.moments = moments(scores, wanted, plan)
        step.weights, step.is_sampled, step.examples = weights, True, wanted
        batch = self._take(batch, drawn.indices)
        step.scoring = (start, self._watch.mark())
        return batch

    def _subset(self, step: _Step, batch: Any) -> Any:
        """Take a uniform batch out of a presample that came while the gate is shut."""
        device = self._module.device
        even = torch.full((step.examples,), 1 / step.examples, device=device)
        drawn = without_replacement(
            even, self._settings.batch_size, generator=self._generator()
        )
        if step.weights is not None:
            step.weights = step.weights[drawn.indices]
        step.examples = self._settings.batch_size
        return self._take(batch, drawn.indices)

    def _score(
        self, batch: Any, examples: int, *, update_statistics: bool
    ) -> Scored | None:
        assert self._tap is not None  # noqa: S101
        with self._traceless(update_statistics=update_statistics):
            try:
                return self._settings.scorer.score(
                    lambda: self._loss(batch), self._tap, examples
                )
            except _NoLossError:
                return None

    @contextmanager
    def _traceless(self, *, update_statistics: bool = False) -> Iterator[None]:
        precision = self._trainer.precision_plugin.train_step_context()
        with precision, self._context(update_statistics=update_statistics):
            yield

    def _loss(self, batch: Any) -> Tensor:
        """Return the mean loss of the user's step, or their per-example losses."""
        if self._settings.per_sample_loss is not None:
            return self._settings.per_sample_loss(self._module, batch)
        index = self._trainer.fit_loop.batch_idx + 1  # counted once it has arrived
        loss = host.call_training_step(self._module, batch, index)
        if loss is None:
            raise _NoLossError
        return loss

    # Before the first step.

    def _prepare(self, batch: Any, size: int) -> None:
        """Find the head and refuse what cannot work, on part of the first batch."""
        self._check_sizes()
        part = max(1, min(self._settings.batch_size, size // 2))
        trial = Trial(
            module=self._module,
            loss=self._loss,
            context=self._traceless,
            part=lambda positions: self._take(batch, positions),
            device=self._module.device,
            examples=part,
            parts=min(2, size // part),
        )
        try:
            trial.refuse_hidden_state()
            if self._settings.head is None:
                heads = trial.find_heads()
            else:
                heads = host.resolve_heads(self._module, self._settings.head)
            tap = HeadTap(heads)
            tap.attach()
            self._tap = tap
            trial.settle_layout(tap)
            trial.refuse_bypass(tap)
            trial.scores(tap, self._settings.scorer)
        except _NoLossError:
            if self._tap is not None:
                self._tap.detach()
            self._tap = None

    def _check_sizes(self) -> None:
        wanted = self._settings.batch_size
        sampler = host.presample_sampler(self._trainer)
        given = host.loader_batch_size(self._trainer)
        if sampler is not None and sampler.batch_size != wanted:
            raise ValueError(
                "The loader's batch size must be the callback's while presampling, got "
                f"{sampler.batch_size} and `batch_size={wanted}`. Make them equal."
            )
        if sampler is None and given is not None and given <= wanted:
            raise ValueError(_too_small(wanted, given))

    def check_epoch(self) -> None:
        """Refuse a loader none of whose batches was large enough to draw from."""
        wanted = self._settings.batch_size
        if host.presample_sampler(self._trainer) is None and self._largest <= wanted:
            raise ValueError(_too_small(wanted, self._largest))

    # The step.

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step under the weights of its batch, or watch it."""
        step = self._step
        if step is None or self._tap is None or not self._is_active():
            return self._stepping.original(*args, **kwargs)
        with ExitStack() as stack:
            if step.weights is not None:
                stack.enter_context(self._tap.weighting(step.weights))
            if step.is_sampled:
                stack.enter_context(self._context.frozen_statistics())
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
        if not step.is_sampled:
            step.loss = loss if step.weights is None else None
            self._observe_closed(step, batch)
        packed = step.moments
        if self._trainer.world_size > 1:
            if packed is None:
                packed = torch.zeros(6, dtype=torch.float64, device=self._module.device)
            packed = self._trainer.strategy.reduce(packed, reduce_op="sum")
        if isinstance(packed, Tensor):
            self._observed = step.scores
            self._readback.push(packed)

    def _observe_closed(self, step: _Step, batch: Any) -> None:
        """Take the moments of a uniform step, as if it had been drawn from."""
        sampler = host.presample_sampler(self._trainer)
        if sampler is None and self._largest <= self._settings.batch_size:
            return
        if self._settings.per_sample_loss and self._batches % PROBE_EVERY == 1:
            scored = self._score(batch, step.examples, update_statistics=False)
            step.scores = None if scored is None else scored.scores
        if step.scores is None:
            return
        if step.weights is not None:
            step.scores = step.scores * step.weights
        share = self._settings.batch_size / self._presample_size
        drawn = max(1, round(share * step.examples))
        step.moments = moments(step.scores, drawn, self._settings.plan)

    @property
    def _presample_size(self) -> int:
        sampler = host.presample_sampler(self._trainer)
        return self._largest if sampler is None else sampler.presample_size

    def settle(self) -> None:
        """Hand the evidence of the last step to the gate."""
        packed = self._readback.pop()
        if packed is None:
            return
        if packed[-1] and self._observed is not None:
            check_scores(self._observed)  # raises, saying where
        found = evidence(packed, self._presample_size, self._settings.batch_size)
        if found is not None:
            self._last = found
            self._gate.observe(found)
        self.tell_sampler()

    def tell_sampler(self) -> None:
        """Let the loader know which batches are wanted next."""
        sampler = host.presample_sampler(self._trainer)
        if sampler is not None:
            sampler.is_open = self._gate.is_open

    def metrics(self) -> dict[str, float | Tensor]:
        """Describe the step that just ended; waits for the device."""
        self.settle()
        step, last = self._step, self._last
        if step is None or last is None:
            return {}
        found: dict[str, float | Tensor] = {
            "is/tau": last.tau,
            "is/open": float(step.is_sampled),
            "is/effective_batch": last.effective_batch,
            "is/max_weight": 1.0 if step.weights is None else step.weights.max(),
            "is/score_time_share": self._score_time_share(step),
        }
        if step.loss is not None:
            found["is/presample_loss"] = step.loss
        return found

    def _score_time_share(self, step: _Step) -> float:
        if step.scoring is None:
            return 0.0
        whole = self._watch.seconds(step.begun, self._watch.mark())
        return self._watch.seconds(*step.scoring) / max(whole, 1e-9)


def _too_small(wanted: int, got: int) -> str:
    return (
        "`batch_size` must be smaller than the batches of the loader, got "
        f"batch_size={wanted} and batches of at most {got}. Load larger batches (four "
        "times as large, say), lower `batch_size`, or wrap the data in an "
        "OversamplingDataModule."
    )
