"""An ordinary language model. It knows nothing of importance sampling."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from jaxtyping import Float, Int64
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lightning_is.experiments.schedules import optimization
from lightning_is.experiments.token_losses import (
    PADDING,
    per_sequence,
    position_mean,
    token_losses,
    token_mean,
)

Batch: TypeAlias = Sequence[Tensor]  # tokens and labels, of shape (B, T) each


class LanguageModel(LightningModule):
    """Trains a network to predict the next token of padded sequences.

    Logs ``train/loss`` at steps, ``val/*`` and ``test/*`` over whole parts: the mean
    loss of a token in nats, and the perplexity, which is its exponential. They count
    every label once, whatever the loss of training is.

    Args:
        net: From tokens to logits.
        optimizer: Makes the optimizer from the parameters.
        loss: Of logits and labels; by default one that importance sampling estimates
            without bias where sequences have different numbers of labels.
        scheduler: Makes the schedule from the optimizer and the number of steps of the
            run; stepped at every step. A constant learning rate if missing.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> model = LanguageModel(net, partial(torch.optim.Adam, lr=1e-3))
        >>> model(torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 7, 5])
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = position_mean,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    @override
    def forward(self, x: Int64[Tensor, "B T"]) -> Float[Tensor, "B T vocabulary"]:
        logits: Tensor = self.net(x)
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        x, labels = batch
        loss = self.loss(self(x), labels)
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._report("val", batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._report("test", batch)

    @override
    def on_validation_epoch_end(self) -> None:
        self._report_perplexity("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._report_perplexity("test")

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optimization(self, self.make_optimizer, self.make_scheduler)

    def evaluate(self, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return loss in nats and share of wrong tokens, of each sequence by itself.

        A mean over sequences of these counts every sequence the same, however many
        labels it has, as `sequence_mean` does; what is logged counts every label.
        """
        x, labels = batch
        logits = self(x)
        wrong = (logits.argmax(dim=2) != labels).float()
        losses = per_sequence(token_losses(logits, labels), labels)
        return losses, per_sequence(wrong, labels)

    def _report(self, stage: str, batch: Batch) -> None:
        x, labels = batch
        # Lightning averages over batches by their size, here that in labels.
        self.log(
            f"{stage}/loss",
            token_mean(self(x), labels),
            batch_size=int((labels != PADDING).sum()),
            prog_bar=stage == "val",
            sync_dist=True,
        )

    def _report_perplexity(self, stage: str) -> None:
        """Report the exponential of the mean, which is not the mean of exponentials."""
        for name, loss in self.trainer.callback_metrics.items():
            if name.startswith(f"{stage}/loss"):
                own = name.replace("loss", "perplexity")
                self.log(own, loss.exp(), add_dataloader_idx=False)  # it has one
