"""Networks of the usual kinds, and made-up examples for them, in memory."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_is.experiments.data.tensors import Batch, TensorSet, whole_batch
from lightning_is.experiments.models import MLP, SmallCNN
from lightning_is.experiments.wide_resnet import WideResNet

BATCH, CLASSES, RATE = 128, 10, 0.01


class LSTM(nn.Module):
    """Reads an image row by row and classifies it by its last state."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> Float[Tensor, "B classes"]:
        states, _ = self.lstm(x.flatten(1, 2))
        logits: Tensor = self.head(states[:, -1])
        return logits


class Transformer(nn.Module):
    """Encoder layers over the rows of an image, then their mean."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.places = nn.Parameter(0.02 * torch.randn(28, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> Float[Tensor, "B classes"]:
        rows = self.embed(x.flatten(1, 2)) + self.places
        logits: Tensor = self.head(self.encoder(rows).mean(1))
        return logits


@dataclass(frozen=True)
class Problem:
    """A network and examples of the shape it takes.

    Args:
        make: The network.
        shape: Of an input.
        channels_last: Memory format of network and inputs.
        transform: Of whole batches of inputs, as they are loaded.
        has_rule: Whether a teacher says the labels, all but a tenth; else chance does.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 28, 28)
    channels_last: bool = False
    transform: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    has_rule: bool = True

    def net(self) -> nn.Module:
        """Make the network, the same for every arm."""
        torch.manual_seed(0)
        net = self.make()
        if self.channels_last:
            # PyTorch's stubs know no memory format alone; the call is documented.
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def examples(self, count: int) -> TensorSet:
        """Make up as many examples, always the same."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(count, *self.shape, generator=generator)
        y = torch.randint(CLASSES, (count,), generator=generator)
        if self.has_rule:
            teacher = torch.randn(x[0].numel(), CLASSES, generator=generator)
            ruled = torch.rand(count, generator=generator) < 0.9
            y = torch.where(ruled, (x.flatten(1) @ teacher).argmax(1), y)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return TensorSet(x, y, self.transform)

    def loader(self, count: int, batch: int = BATCH) -> DataLoader[Batch]:
        """Serve as many examples, in an order that is the same for every arm."""
        return DataLoader(
            self.examples(count),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            # Typed for lists of examples; `__getitems__` returns a batch, as it may.
            collate_fn=whole_batch,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(0),
        )


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer that every arm has."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9)


# Steps of 15 to 50 ms, so that what a step costs beside the arithmetic shows.
SMALL = {
    "mlp": Problem(lambda: MLP(784, CLASSES, hidden=(1024, 1024))),
    "cnn": Problem(lambda: SmallCNN(1, CLASSES), channels_last=True),
    "wide_resnet": Problem(
        lambda: WideResNet(10, 1), shape=(3, 16, 16), channels_last=True
    ),
    "lstm": Problem(LSTM),
    "transformer": Problem(Transformer),
}
# Sizes that people train: steps of 60 to 800 ms.
LARGE = {
    "mlp_large": Problem(lambda: MLP(784, CLASSES, hidden=(2048, 2048))),
    "cnn_large": Problem(
        lambda: SmallCNN(3, CLASSES, width=32), shape=(3, 32, 32), channels_last=True
    ),
    "wide_resnet_large": Problem(
        lambda: WideResNet(16, 2), shape=(3, 32, 32), channels_last=True
    ),
    "lstm_large": Problem(lambda: LSTM(256)),
    "transformer_large": Problem(lambda: Transformer(128, 4)),
}
# Too small for anything to pay: shows what a step costs in microseconds.
TINY = {"tiny_mlp": Problem(lambda: MLP(64, CLASSES), shape=(64,))}
NETWORKS = SMALL | LARGE | TINY
