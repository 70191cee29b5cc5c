"""Running the user's step outside the Trainer's turn: to score, and to try it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.data.batch import rebuild, versions
from lightning_is.manual import ManualStep
from lightning_is.scoring.context import TracelessContext
from lightning_is.settings import Settings


class NoLossError(Exception):
    """The user's step returned None: nothing to score."""


@final
class StepRunner:
    """Runs the user's step as Lightning would, in a context that leaves no trace.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.

    Attributes:
        module: As given.
        context: Keeps what the step would change.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, settings: Settings
    ) -> None:
        self._trainer, self.module, self._settings = trainer, module, settings
        self._writes = self._is_settled = False
        self._takes_batch_idx = host.takes_batch_idx(module)
        automatic = module.automatic_optimization
        self._manual = None if automatic else ManualStep(module)
        self.context = TracelessContext(
            module, settings.score_mode, host.logging_modules(module)
        )

    @contextmanager
    def traceless(
        self, *, update_statistics: bool = False, as_training: bool = False
    ) -> Iterator[None]:
        """Open the context, in the Trainer's precision; see `TracelessContext`."""
        precision = self._trainer.precision_plugin.train_step_context()
        context = self.context(
            update_statistics=update_statistics, as_training=as_training
        )
        with precision, context:
            yield

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the user's step.

        Raises:
            NoLossError: If it returns none.
            RuntimeError: If it begins to write to the tensors of the batch.
        """
        return self._guarded(self._step, batch)

    def losses(self, batch: Any) -> Tensor:
        """Return what to score by: the same, or the user's own per-example losses."""
        own = self._settings.per_sample_loss
        if own is None:
            return self.loss(batch)
        return self._guarded(lambda data: own(self.module, data), batch)

    def training(self) -> AbstractContextManager[None]:
        """Open the context of a training step."""
        return nullcontext() if self._manual is None else self._manual.training()

    def trained_loss(self, reported: Tensor | None) -> Tensor | None:
        """Return the loss that the last training step backpropagated, as reported."""
        return reported if self._manual is None else self._manual.loss

    def settle(self) -> None:
        """Take what was seen of the step so far as all that it does."""
        self.context.settle()
        self._is_settled = True

    def _guarded(self, run: Callable[[Any], Tensor], batch: Any) -> Tensor:
        """Run a step on a batch that is still needed afterwards."""
        if self._settings.index_fn is not None:  # a structure only the user knows
            return run(batch)
        before = versions(batch)
        loss = run(rebuild(batch, copies=self._writes))
        if versions(batch) != before:
            self._writes = True  # from now on it gets copies
            if self._is_settled:
                raise RuntimeError(
                    "A step that writes to the tensors of its batch must do so from "
                    "the first batch on, as it runs once to score and once to train, "
                    "got one that began later. Write `x = x * 2` instead of `x *= 2`."
                )
        return loss

    def _step(self, batch: Any) -> Tensor:
        run = partial(self.module.training_step, batch)
        if self._takes_batch_idx:
            # Lightning counts a batch once it has arrived.
            run = partial(run, self._trainer.fit_loop.batch_idx + 1)
        manual = self._manual
        loss = host.loss_of(run()) if manual is None else manual.capture(run)
        if loss is None:
            raise NoLossError
        return loss
