"""Asking for the report alone, before a run."""

import copy
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_is.callback import ImportanceSamplingCallback
from lightning_is.datamodule import OversamplingDataModule
from lightning_is.doctor import Report
from lightning_is.scoring.context import random_states_kept

_MOST = 1000  # steps, should no report come about


def diagnose(
    module: LightningModule,
    data: "LightningDataModule | DataLoader[Any]",
    callback: ImportanceSamplingCallback | None = None,
    trainer: Trainer | None = None,
) -> Report:
    """Report what importance sampling could gain on this machine, without training.

    A copy of the module takes a few steps, two as a rule, and is thrown away, like a
    copy of the callback. Module, callback, global random states and what a source has
    learned stay as they were; hooks of the module and of the data do run.

    Args:
        module: The user's; it must be possible to deepcopy it.
        data: A data module, ours included, or a training loader.
        callback: As it would be given to the Trainer; the default one if None.
        trainer: One to use up, made as for the run: its device and precision count.
            Leave out loggers and checkpoints. By default a quiet one.

    Raises:
        RuntimeError: If there was no step with a loss to look at, and whatever a fit
            refuses.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> loader = DataLoader(torch.randn(64, 32), batch_size=16)
        >>> diagnose(BoringModel(), loader).head
        'layer (Linear), found'
    """
    # Together: the callback may hold parts of the module.
    given = module, callback or ImportanceSamplingCallback()
    module, sampling = copy.deepcopy(given)
    sampling._fit.always_examines = True
    trainer = _quiet_trainer() if trainer is None else trainer
    # Lightning calls callbacks in their order: ours has its report when the other asks.
    trainer.callbacks += [sampling, _Leaving(sampling)]  # type: ignore[attr-defined]
    served = data if isinstance(data, OversamplingDataModule) else None
    learned = copy.deepcopy(served.source) if served is not None else None
    loader = data if isinstance(data, DataLoader) else None
    datamodule = data if isinstance(data, LightningDataModule) else None
    try:
        with random_states_kept(module.device):
            trainer.fit(module, loader, datamodule=datamodule)
    finally:
        if served is not None:
            served.source = learned
    if sampling.diagnosis is None:
        raise RuntimeError(
            "A diagnosis needs a training step that returns a loss, got none. Check "
            "that the loader yields batches and `training_step` returns the loss."
        )
    return sampling.diagnosis


@final
class _Leaving(Callback):
    """Stops a fit as soon as its report is written."""

    def __init__(self, sampling: ImportanceSamplingCallback) -> None:
        self._sampling = sampling

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        trainer.should_stop = self._sampling.diagnosis is not None


def _quiet_trainer() -> Trainer:
    return Trainer(
        devices=1,
        max_steps=_MOST,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
