"""Augmentation of whole batches of images, on the device they are on."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional


def crop_flip(
    x: Float[Tensor, "B C H W"], pad: int = 4, *, generator: Generator | None = None
) -> Float[Tensor, "B C H W"]:
    """Shift every image by up to ``pad`` pixels and mirror half of them.

    The usual augmentation of CIFAR: pad with zeros (the mean, where inputs are
    standardised), crop a random window, flip left to right with probability one half.
    Each image gets its own window; the result is in channels-last memory format.

    Args:
        x: Images.
        pad: Pixels added on each side, at least 0.
        generator: Source of the draws, on the CPU; PyTorch's global one if missing.

    Returns:
        Images of the same shape, type and device.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sec. 4.2.

    Example:
        >>> row = torch.tensor([1.0, 2.0, 3.0]).expand(4, 1, 1, 3)
        >>> crop_flip(row, pad=0, generator=torch.Generator().manual_seed(1))[:, 0, 0]
        tensor([[1., 2., 3.],
                [3., 2., 1.],
                [1., 2., 3.],
                [1., 2., 3.]])
    """
    size, (height, width) = len(x), x.shape[-2:]
    # Drawn on the CPU, so that a run does not depend on the device it uses.
    shift = torch.randint(2 * pad + 1, (2, size, 1), generator=generator)
    flip = torch.rand(size, 1, generator=generator) < 0.5
    rows = shift[0] + torch.arange(height)
    columns = shift[1] + torch.where(
        flip, torch.arange(width).flip(0), torch.arange(width)
    )
    padded = functional.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    image = torch.arange(size, device=x.device)[:, None, None]
    rows, columns = rows.to(x.device), columns.to(x.device)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
