"""Wide residual networks for small images."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_is.experiments.norms import Norm, normalisation


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of pre-activation blocks, then average pooling.

    Args:
        depth: Convolutions along the deepest path, ``6 n + 4``: 10, 16, 22, 28, 40.
        width: Factor on the channels of the groups, 16, 32 and 64.
        channels: Of the images.
        classes: Logits to return.
        norm: Over the batch, over eight groups of channels, or over each example whole.
            The last two treat every example by itself.
        dropout: Share of activations dropped between the convolutions of a block.

    Raises:
        ValueError: If ``depth`` is not ``6 n + 4`` or ``norm`` is unknown.

    References:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.

    Example:
        >>> import torch
        >>> net = WideResNet(depth=10, width=1, classes=10)
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        *,
        channels: int = 3,
        classes: int = 10,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(
                f"`depth` must be 6 n + 4 for n blocks in a group, got {depth}. Take "
                "10, 16, 22, 28 or 40."
            )
        widths = [16, 16 * width, 32 * width, 64 * width]
        blocks: list[nn.Module] = []
        for group in range(3):
            for position in range((depth - 4) // 6):
                into = widths[group] if position == 0 else widths[group + 1]
                stride = 2 if group > 0 and position == 0 else 1
                blocks.append(Block(into, widths[group + 1], stride, norm, dropout))
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = normalisation(norm, widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        self._initialise()

    @override
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        features = functional.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.head.bias)


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, added to a shortcut.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the activated input.

    Args:
        into: Channels of the input.
        out: Channels of the output.
        stride: Of the first convolution.
        norm: As for the network.
        dropout: As for the network.
    """

    def __init__(
        self, into: int, out: int, stride: int, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = normalisation(norm, into), normalisation(norm, out)
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = (
            nn.Conv2d(into, out, 1, stride, bias=False)
            if stride != 1 or into != out
            else None
        )

    @override
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        active = functional.relu(self.norm1(x))
        straight = x if self.shortcut is None else self.shortcut(active)
        inner = functional.relu(self.norm2(self.conv1(active)))
        out: Tensor = straight + self.conv2(self.dropout(inner))
        return out
