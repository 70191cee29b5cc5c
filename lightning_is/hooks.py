"""The hooks of the callback: what the Trainer calls is passed on to the fit."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_is import host
from lightning_is.fit import Fit
from lightning_is.refusals import refuse_several
from lightning_is.state import State


class FitHooks(Callback):
    """Passes the Trainer's calls on; what inherits it makes the parts."""

    _fit: Fit
    _state: State

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the source behind the loader, before the Trainer asks for it."""
        if stage == "fit":
            refuse_several(trainer, FitHooks)
            self._fit.set_up(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the batches; refuse a run of a kind not supported."""
        self._fit.begin(trainer, pl_module, lambda: self in host.callbacks(trainer))

    @override
    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        self._fit.begin_epoch()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit.after_backward()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Pass on what the step showed, and log it at the Trainer's interval."""
        self._fit.end_batch(trainer, pl_module, outputs, batch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit.end_epoch()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit.end(trainer)

    @override
    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Leave the strategy and the module as they were."""
        self._fit.leave(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._fit.leave(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parts, in tensors and plain types."""
        self._fit.settle()
        return self._state.save()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint left off; refuse one of another kind."""
        self._state.load(state_dict)
