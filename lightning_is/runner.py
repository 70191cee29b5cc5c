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
from lightning_is.strategies import least, ranks_meet, run_within, shards


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
        device: That batches are on; a sharded module may be elsewhere.
        meets: Whether ranks wait for one another in every forward pass.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, settings: Settings
    ) -> None:
        self._trainer, self.module, self._settings = trainer, module, settings
        self._writes = self._is_settled = False
        self._takes_batch_idx = host.takes_batch_idx(module)
        self.device = trainer.strategy.root_device
        self.meets = ranks_meet(trainer, module)
        automatic = module.automatic_optimization
        self._manual = None if automatic else ManualStep(module)
        self.context = TracelessContext(
            *(module, settings.score_mode, host.logging_modules(module)),
            device=self.device,
        )

    @property
    def is_sharded(self) -> bool:
        """Whether the strategy shares the module's parameters out among ranks."""
        trainer = self._trainer
        return shards(trainer) and self.module is trainer.lightning_module

    @property
    def is_first_of_step(self) -> bool:
        """Whether no gradients accumulate yet that FSDP would lose, run back again."""
        arriving = self._trainer.fit_loop.batch_idx + 1
        return arriving % self._trainer.accumulate_grad_batches == 0

    def least(self, size: int) -> int:
        """Return a size that all have, if ranks must do the same; waits for it then."""
        return least(self._trainer, size) if self.meets else size

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
        loss: Tensor = self._guarded(self._step, batch)
        return loss

    def losses(self, batch: Any) -> Tensor:
        """Return what to score by: the same, or the user's own per-example losses.

        Raises:
            ValueError: If those are not one per example.
        """
        own = self._settings.per_sample_loss
        if own is None:
            return self.loss(batch)
        found = self._guarded(lambda data: self._within(own, self.module, data), batch)
        return self._checked(found, self._settings.count(batch))

    def _checked(self, found: Any, examples: int) -> Tensor:
        """Refuse what is not one loss per example of the user's own function."""
        got = f"a {type(found).__name__}"
        if isinstance(found, Tensor):
            got = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}"
            fits = found.shape == (examples,) and found.is_floating_point()
            if fits and found.device == self.device:
                return found
        raise ValueError(
            "`per_sample_loss` must return one loss per example, floating numbers of "
            f"shape ({examples},) on {self.device}, got {got}. Average over all "
            'dimensions but the first: `reduction="none"`, then `.flatten(1).mean(1)`.'
        )

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

    def _guarded(self, run: Callable[[Any], Any], batch: Any) -> Any:
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
        run = partial(self._within, self.module.training_step, batch)
        if self._takes_batch_idx:
            # Lightning counts a batch once it has arrived.
            run = partial(run, self._trainer.fit_loop.batch_idx + 1)
        manual = self._manual
        loss = host.loss_of(run()) if manual is None else manual.capture(run)
        if loss is None:
            raise NoLossError
        return loss

    def _within(self, run: Callable[..., Any], *args: Any) -> Any:
        return run_within(self._trainer, self.module, run, *args)
