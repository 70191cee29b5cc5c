"""An ordinary image classifier. It knows nothing of importance sampling."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.functional.classification import multiclass_accuracy
from typing_extensions import override

from lightning_is.experiments.schedules import optimization

Batch: TypeAlias = Sequence[Tensor]  # inputs and labels, whatever collated them


class Classifier(LightningModule):
    """Trains a network with cross-entropy and reports loss and accuracy.

    Logs ``train/loss`` at steps, ``val/*`` and ``test/*`` over whole parts. Reported
    losses of validation and test are plain cross-entropy, without label smoothing.

    Args:
        net: From inputs to logits.
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes the schedule from the optimizer and the number of steps of the
            run; stepped at every step. A constant learning rate if missing.
        channels_last: Keep network and images in channels-last memory format: faster
            convolutions and far faster poolings on the CPU.
        label_smoothing: Share of the target spread over all classes, in training.

    Example:
        >>> from functools import partial
        >>> sgd = partial(torch.optim.SGD, lr=0.1)
        >>> Classifier(nn.Linear(2, 3), sgd)(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        channels_last: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        # PyTorch's stubs know no memory format alone; the call is documented.
        self.net = net
        if channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.channels_last, self.label_smoothing = channels_last, label_smoothing

    @override
    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.net(x)
        return logits

    def evaluate(self, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Cross-entropy of each example in nats, and 1 if it is classified wrongly."""
        x, y = batch
        logits = self(x)
        wrong = (logits.argmax(1) != y).float()
        return functional.cross_entropy(logits, y, reduction="none"), wrong

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        x, y = batch
        loss = functional.cross_entropy(
            self(x), y, label_smoothing=self.label_smoothing
        )
        self.log("train/loss", loss, batch_size=len(y))
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._report("val", batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._report("test", batch)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "B classes"]:
        logits: Tensor = self(batch[0])
        return logits

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optimization(self, self.make_optimizer, self.make_scheduler)

    def _report(self, stage: str, batch: Batch) -> None:
        x, y = batch
        logits = self(x)
        # Functions rather than metric objects: Lightning averages what is logged by
        # itself for every loader, which is exact for both once `batch_size` is given.
        accuracy = multiclass_accuracy(logits, y, logits.shape[1], average="micro")
        values = {
            f"{stage}/loss": functional.cross_entropy(logits, y),
            f"{stage}/acc": accuracy,
        }
        self.log_dict(
            values, batch_size=len(y), prog_bar=stage == "val", sync_dist=True
        )
