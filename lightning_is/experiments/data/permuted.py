"""Images as sequences of pixels in one fixed, random order."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from typing_extensions import override

from lightning_is.experiments.data.hub import HubImages
from lightning_is.experiments.data.tensors import Loader, Splits, TensorDataModule


@dataclass(frozen=True)
class Reordered:
    """Turns a batch of inputs into one of their numbers, in another order.

    Args:
        before: Applied to the inputs first; nothing if None.
        order: Position of each number in the flattened input; some may be left out.

    Example:
        >>> Reordered(None, torch.tensor([3, 0, 2]))(torch.tensor([[[5.0, 6], [7, 8]]]))
        tensor([[8., 5., 7.]])
    """

    before: Callable[[Tensor], Tensor] | None
    order: Int64[Tensor, " T"]

    def __call__(self, x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B T"]:
        """Reorder a batch."""
        inputs = x if self.before is None else self.before(x)
        return inputs.flatten(1)[:, self.order]


class PermutedPixels(TensorDataModule):
    """Images read pixel by pixel, all in the same random order.

    The order destroys what is near what, so that whoever classifies must remember over
    the whole sequence. It depends on ``seed`` alone, and not on the seed of a run. The
    images are those of `HubImages`, standardised as there; they are not augmented.

    With a ``stride`` of ``k`` every ``k``-th pixel of the order is read and the others
    are not. That is for trying things out: sequences ``k`` times shorter pose ANOTHER
    problem, with less to remember and less to tell the classes by, and its numbers are
    not those of the whole sequence.

    Args:
        path: Name on the hub or a local folder, as for `HubImages`.
        batch_size: Examples in a batch.
        stride: Read every so many-th pixel of the order; 1 reads them all.
        seed: Determines the order.
        n_train: Training examples to keep; all if missing.
        n_val: Examples taken off the end of the training split.
        n_test: Test examples to keep; all if missing.
        loader: Workers and memory of the loaders.

    Raises:
        ValueError: If ``stride`` is not at least 1.

    References:
        Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent Networks of
        Rectified Linear Units", 2015, section 4.2.

    Example:
        >>> PermutedPixels("ylecun/mnist", stride=7).order(784).shape
        torch.Size([112])
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 32,
        *,
        stride: int = 1,
        seed: int = 0,
        n_train: int | None = None,
        n_val: int = 5000,
        n_test: int | None = None,
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader())
        if stride < 1:
            raise ValueError(
                f"`stride` must be at least 1, got {stride}. 1 reads every pixel, 7 "
                "every seventh."
            )
        self.stride, self.seed = stride, seed
        self.images = HubImages(
            path, batch_size, n_train=n_train, n_val=n_val, n_test=n_test
        )

    def order(self, pixels: int) -> Int64[Tensor, " T"]:
        """Return the pixels to read, in their order: ``pixels / stride``, rounded up.

        Args:
            pixels: Numbers in one image.
        """
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(pixels, generator=generator)[:: self.stride]

    @override
    def prepare_data(self) -> None:
        self.images.prepare_data()

    @override
    def load(self) -> Splits:
        splits = self.images.splits
        reorder = Reordered(
            splits.train.transform, self.order(splits.train.x[0].numel())
        )
        return Splits(
            replace(splits.train, transform=reorder),
            replace(splits.val, transform=reorder),
            {k: replace(part, transform=reorder) for k, part in splits.tests.items()},
        )
