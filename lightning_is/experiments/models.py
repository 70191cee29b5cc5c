"""Small networks: enough to learn digits in seconds and MNIST in a minute."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_is.experiments.norms import Norm, normalisation


class MLP(nn.Module):
    """A fully connected network on flattened inputs.

    Args:
        features: Numbers in one input, e.g. 784 for MNIST.
        classes: Logits to return.
        hidden: Width of each hidden layer; none makes a linear classifier.

    Example:
        >>> import torch
        >>> MLP(features=64, classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, features: int, classes: int, *, hidden: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, classes))

    @override
    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        logits: Tensor = self.layers(x)
        return logits


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions, two poolings and a hidden layer; any image from 4 x 4.

    On the CPU its poolings are several times faster in channels-last memory format.

    Args:
        channels: Of the images: 1 if grey, 3 in colour.
        classes: Logits to return.
        width: Channels of the first convolution; the others have 2 and 4 times as many.
        norm: After each convolution: over the batch, over eight groups of channels, or
            over each example whole; None is none.

    Raises:
        ValueError: If ``norm`` is unknown, or the channels cannot be grouped.

    Example:
        >>> import torch
        >>> SmallCNN(channels=1, classes=10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, channels: int, classes: int, *, width: int = 16, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(*_convolution(channels, width, norm), nn.MaxPool2d(2)),
            *(*_convolution(width, 2 * width, norm), nn.MaxPool2d(2)),
            *_convolution(2 * width, 4 * width, norm),
            nn.AdaptiveAvgPool2d(4),  # the head is the same for images of every size
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(64 * width, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    @override
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        logits: Tensor = self.head(self.backbone(x))
        return logits


def _convolution(into: int, out: int, norm: Norm | None) -> list[nn.Module]:
    # What normalises shifts as well, so a bias would be one too many.
    convolution = nn.Conv2d(into, out, 3, padding=1, bias=norm is None)
    between = [] if norm is None else [normalisation(norm, out)]
    return [convolution, *between, nn.ReLU()]
