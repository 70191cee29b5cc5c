"""A synthetic set in which nearly everything is easy and a few examples are hard."""

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor
from typing_extensions import override

from lightning_is.experiments.data.tensors import (
    Loader,
    Splits,
    TensorDataModule,
    TensorSet,
)

CENTRES = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0], [0.0, -4.0]])
SPREAD = 0.5  # of an easy class around its centre
CELLS = 3  # squares along each side of the board
MARGIN = 0.15  # of each side of a square that holds no point, so that a rule exists


class RareHard(TensorDataModule):
    """Points in the plane: four far clusters, and a chessboard in their middle.

    A common example belongs to the class of its cluster. A rare one lies on the board
    at the origin, where black squares are class 0 and white ones class 1: learnable
    without error, but only by whoever looks there. Test parts are ``common`` and
    ``rare``, half of the test examples each, so that the rare error shows.

    Args:
        n: Training examples; validation and test have ``n // 5`` each.
        rare_share: Share of rare examples in training and validation.
        batch_size: Examples in a batch.
        seed: Determines every point.
        loader: Workers and memory of the loaders.

    Raises:
        ValueError: If ``rare_share`` is no share.

    Example:
        >>> data = RareHard(n=1000, rare_share=0.02)
        >>> {name: len(part) for name, part in data.splits.tests.items()}
        {'common': 100, 'rare': 100}
    """

    def __init__(
        self,
        n: int = 10_000,
        rare_share: float = 0.02,
        *,
        batch_size: int = 128,
        seed: int = 0,
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader())
        if not 0 <= rare_share <= 1:
            raise ValueError(
                f"`rare_share` is a share and must be within [0, 1], got {rare_share}. "
                "Give the rare part as a fraction, e.g. 0.02 for two percent."
            )
        self.n, self.rare_share, self.seed = n, rare_share, seed

    @override
    def load(self) -> Splits:
        generator = torch.Generator().manual_seed(self.seed)
        n_test = self.n // 5

        def mixed(n: int) -> TensorSet:
            rare = round(self.rare_share * n)
            (x, y), (x_rare, y_rare) = (
                common(n - rare, generator),
                board(rare, generator),
            )
            return TensorSet(torch.cat([x, x_rare]), torch.cat([y, y_rare]))

        return Splits(
            mixed(self.n),
            mixed(n_test),
            {
                "common": TensorSet(*common(n_test // 2, generator)),
                "rare": TensorSet(*board(n_test // 2, generator)),
            },
        )


def common(
    n: int, generator: Generator
) -> tuple[Float[Tensor, "{n} 2"], Int64[Tensor, " {n}"]]:
    """Draw easy points: a class, and a point near its centre."""
    y = torch.randint(len(CENTRES), (n,), generator=generator)
    return CENTRES[y] + SPREAD * torch.randn(n, 2, generator=generator), y


def board(
    n: int, generator: Generator
) -> tuple[Float[Tensor, "{n} 2"], Int64[Tensor, " {n}"]]:
    """Draw hard points on the square [-1, 1] x [-1, 1]; the colour is the class."""
    square = torch.randint(CELLS, (n, 2), generator=generator)
    inside = MARGIN + (1 - 2 * MARGIN) * torch.rand(n, 2, generator=generator)
    return 2 * (square + inside) / CELLS - 1, square.sum(dim=1) % 2
