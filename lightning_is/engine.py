"""The engine of one fit: between the loader and the user's training step.

It shadows two public methods of the Trainer's strategy, so that every other part of
Lightning, and the user's code, sees the drawn batch as if the loader had yielded it.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.data.batch import SampledBatch
from lightning_is.drawing import Drawer
from lightning_is.feed import Feed
from lightning_is.inspection import Inspector
from lightning_is.ledger import Ledger
from lightning_is.monitor import Stopwatch, Timekeeper
from lightning_is.queueing import Queue
from lightning_is.refusals import check_epoch, check_loader
from lightning_is.runner import StepRunner
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Settings
from lightning_is.shadow import Shadow
from lightning_is.state import State
from lightning_is.step import Step

_PROBE_EVERY = 10  # closed steps between passes of the user's own per-example loss


@final
class Engine:
    """Draws, weights and watches the batches of one fit.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.
        state: What changes during the run: the gate, the number of draws.
        progress: Returns the share of the run that is over.
        feed: Loads what a source chose, if there is one.
        is_active: Whether the callback still belongs to the Trainer.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        state: State,
        progress: Callable[[], float],
        feed: Feed | None,
        is_active: Callable[[], bool],
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings
        self._gate, self._is_active, self._counts = state.gate, is_active, state.draws
        self._state, self._feed = state, feed
        self.ledger = Ledger(trainer, state.gate, settings, progress, state.draws)
        self._runner = StepRunner(trainer, module, settings)
        self.inspector = Inspector(module, settings, self._runner)
        self._tap: HeadTap | None = None  # from the first batch on
        self._step: Step | None = None
        self._watch = Stopwatch(trainer.strategy.root_device)
        self.times = Timekeeper(self._watch)
        self._drawer = Drawer(trainer, settings, self._runner, state, self._watch)
        self._queue: Queue | None = None
        if state.acceptance is not None:
            self._queue = Queue(self._drawer, state.acceptance, self._more)
            self._queue.load_state_dict(state.queued)
        if feed is not None:
            feed.score = self._score_afresh
        self._moving = Shadow(trainer.strategy, "batch_to_device", self._receive)
        self._stepping = Shadow(trainer.strategy, "training_step", self._run_step)

    @property
    def is_sampling(self) -> bool:
        """Whether the batch in hand was drawn from a presample."""
        return self._step is not None and self._step.is_sampled

    def begin_epoch(self) -> None:
        """Tell the loader what is wanted: it may be new, or the state resumed."""
        self.times.pause()
        self.times.overlaps = host.loads_ahead(self._trainer)
        self.ledger.tell_loader()

    def end_epoch(self) -> None:
        """Refuse a loader that never yielded enough to draw from."""
        seen = self._counts.largest, self.ledger.batches
        check_epoch(self._trainer, self._settings, *seen)

    def close(self) -> None:
        """Leave strategy and module as they were found."""
        self._stepping.undo()
        self._moving.undo()
        self._drawer.scoring.close()
        if self._tap is not None:
            self._tap.detach()

    def settle(self, state: State) -> None:
        """Bring the state up to date: what was sent arrives, what waits is listed."""
        self.ledger.settle()
        self.list_waiting(state)

    def list_waiting(self, state: State) -> None:
        """List the examples that were drawn, or accepted, and not yet trained on."""
        alone = self._trainer.world_size == 1  # else every rank has its own
        state.kept = self._drawer.waiting() if alone else []
        if self._queue is not None:
            state.queued = self._queue.state_dict() if alone else []

    def _receive(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch to the device and, in training, draw from it."""
        if not (self._trainer.training and self._is_active()) or batch is None:
            self.times.pause()  # validation is not waiting
            self._step = None  # nothing was drawn from it
            return self._moving.original(batch, device, dataloader_idx)
        begun, weights, index = self.times.arrive(), None, None
        if self._feed is not None:
            index, weights = self._feed.arrived()
            self._feed.settle()
        if isinstance(batch, SampledBatch):
            batch, index, weights = batch.parts()
        if weights is not None:
            weights = weights.to(device or self._runner.device, non_blocking=True)
        batch = self._moving.original(batch, device, dataloader_idx)
        self.ledger.tell_loader()
        size = self._settings.count(batch)
        self.ledger.note(size)
        step = self._step = Step(size, size, begun, weights, index)
        self._tap = self._tap or self._prepare(batch, size)
        if self._tap is None:
            return batch
        if self._drawer.keeps_for(batch, size):
            return self._drawer.use_kept(step, self._tap)
        self.inspector.check_again(self._tap, batch, size, self.ledger.batches)
        self._state.sums = self._drawer.scoring.sums = self.inspector.sums
        return self._drawn(step, self._tap, batch)

    def _drawn(self, step: Step, tap: HeadTap, batch: Any) -> Any:
        """Return the part of a batch to train on: all of it, or what is drawn."""
        size, wanted = step.examples, self._settings.wanted(step.examples)
        if self._queue is not None:
            if not self._gate.is_open:
                return batch
            start = self._watch.mark()
            batch = self._queue.fill(step, tap, batch, wanted)
            step.scoring = (start, self._watch.mark())
            return batch
        presampled = host.presample_sampler(self._trainer) is not None
        # Where ranks score together, one with few examples must not stay away.
        scores = self._gate.chooses_size or self._runner.meets
        if size <= wanted and (presampled or not scores):
            if self._gate.is_open:
                self._drawer.scoring.check(tap, batch, None, wanted)  # as others do
            return batch  # of presamples, those of an open gate alone are larger
        if self._gate.is_open:
            wanted = self._gate.sizes(size, min(wanted, size)).batch
            return self._drawer.sample(step, tap, batch, wanted)
        # Batches that follow stand in for the rest of a presample for several steps.
        shared = presampled and self._drawer.parts > 1
        if (shared or self._settings.when_closed == "subset") and size > wanted:
            return self._drawer.subset(step, batch, wanted)
        return batch

    def _more(self) -> Any:
        """Load and move one more batch within the same step."""
        assert self._feed is not None  # noqa: S101  a queue always has one
        return self._moved(self._feed.more())

    def _moved(self, batch: Any) -> Any:
        """Do to a batch what the Trainer does before the step."""
        batch = host.before_transfer(self._trainer, batch)
        return self._moving.original(batch)

    def _score_afresh(self, batch: Any) -> Tensor:
        """Score a batch between two steps."""
        batch = self._moved(batch)
        size = self._settings.count(batch)
        if self._tap is None:  # a resumed run may begin with it
            self._tap = self._prepare(batch, size)
        tap, scored = self._tap, None
        if tap is not None:
            scored = self._drawer.scoring.run(tap, batch, size, update_statistics=False)
        if scored is None:
            raise RuntimeError(
                "Scoring afresh needs a loss for every batch, got None from "
                "`training_step`. Return the loss, or drop `rescore_every`."
            )
        return scored.scores

    def _prepare(self, batch: Any, size: int) -> HeadTap | None:
        check_loader(self._trainer, self._gate, self._settings)
        self.inspector.sums = self._state.sums  # as a checkpoint knows them
        tap = self.inspector.prepare(batch, size)
        self._drawer.scoring.sums = self.inspector.sums
        return tap

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step under the weights of its batch, or watch it."""
        step = self._step
        if step is None or self._tap is None:
            return self._stepping.original(*args, **kwargs)
        wanted = self._feed is not None or self.ledger.will_be_due()
        with self._drawer.training(step, self._tap, watched=wanted):
            return self._stepping.original(*args, **kwargs)

    def after_backward(self) -> None:
        """Read the scores that the backward pass of a closed step left behind."""
        if self._step is not None and self._tap is not None:
            self._drawer.read(self._step, self._tap)

    def end_step(self, batch: Any, loss: Tensor | None) -> None:
        """Send what the step showed on its way to the gate, and to the source."""
        step = self._step
        if step is None or self._tap is None:
            return
        if self._gate.is_timed and not step.is_kept:
            self.times.finish(step.sizes, step.scoring, self._drawer.parts)
        due = self.ledger.is_due()
        if not step.is_sampled:
            loss = self._runner.trained_loss(loss)
            step.loss = loss if step.weights is None else None
            if self._asks_for_losses():
                due = self._drawer.probe(step, self._tap, batch)
        moments = self.ledger.look(step, due=due)
        self.ledger.send(moments, step.scores, self.times.collect())
        if self._feed is None or step.index is None or step.scores is None:
            return
        if len(step.scores) == len(step.index):
            self._feed.send(step.index, step.scores)

    def _asks_for_losses(self) -> bool:
        """Whether it is time to score a closed step by the user's own losses."""
        every = _PROBE_EVERY if self._feed is None else 1  # it wants to know of all
        due = (self._counts.batches - 1) % every == 0
        return due and self._settings.per_sample_loss is not None

    def metrics(self) -> dict[str, float | Tensor]:
        """Describe the step that just ended; waits for the device."""
        self.ledger.settle()
        found: dict[str, float | Tensor] = {**self.ledger.skips.metrics()}
        if self._step is None or self.ledger.last is None:
            return found
        found |= self._step.metrics(self.ledger.last, self._watch)
        found |= self._gate.metrics() | self._drawer.scoring.metrics()
        return found if self._feed is None else {**found, **self._feed.source.metrics()}
