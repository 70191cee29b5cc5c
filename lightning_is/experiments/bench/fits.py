"""Fits by an ordinary Trainer of an ordinary module, an epoch at a turn."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.bench.networks import BATCH, Problem, optimizer
from lightning_is.experiments.bench.turns import Arm, Turn
from lightning_is.sampling import AlwaysOpen, NeverOpen


class Plain(LightningModule):
    """Trains with cross-entropy, and does nothing else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer(self.net)


class Epochs(Callback):
    """Begins every epoch when it is its turn, and counts the steps on drawn batches.

    The callback times no step across the end of an epoch, so nothing disturbs it.
    """

    def __init__(self, turn: Turn, batch: int) -> None:
        self.turn, self.batch = turn, batch
        self.drawn = 0

    @override
    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        self.turn.begin()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.turn.end()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.drawn += len(batch[1]) < self.batch


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """Make a Trainer that does nothing but train, on the CPU unless told."""
    calm: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **(calm | settings))


def quiet() -> None:
    """Let one thread work, and nobody advise."""
    torch.set_num_threads(1)  # CPU time is then the time a step takes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The '.*' does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")


def shut() -> Callback:
    """Make a callback that never draws."""
    return ImportanceSamplingCallback(BATCH // 4, gate=NeverOpen())


def opened(size: int) -> Callback:
    """Make a callback that always draws."""
    return ImportanceSamplingCallback(size, gate=AlwaysOpen())


def fit(
    problem: Problem,
    blocks: int,
    steps: int,
    sampling: Callback | None = None,
    batch: int = BATCH,
) -> Arm:
    """Return a program that trains by a Trainer, with a callback or without."""

    def run(turn: Turn) -> None:
        extra = [] if sampling is None else [sampling]
        mine = trainer(Epochs(turn, batch), *extra, max_epochs=blocks)
        mine.fit(Plain(problem.net()), problem.loader(steps * batch, batch))

    return run
