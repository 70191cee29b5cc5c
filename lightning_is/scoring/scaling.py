"""Smaller inputs, which are cheaper to score."""

from torch import Tensor
from torch.nn import functional


def shrunk(images: Tensor, factor: float) -> Tensor:
    """Shrink images by a factor; tensors that are no images are left alone.

    Args:
        images: Floats of shape ``(n, channels, height, width)``.
        factor: On height and width, in ``(0, 1]``.

    Example:
        >>> import torch
        >>> shrunk(torch.zeros(2, 3, 8, 6), 0.5).shape
        torch.Size([2, 3, 4, 3])
        >>> shrunk(torch.zeros(2, 8), 0.5).shape
        torch.Size([2, 8])
    """
    if images.ndim != 4 or not images.is_floating_point():
        return images
    smaller: Tensor = functional.interpolate(
        images, scale_factor=factor, mode="bilinear", align_corners=False
    )
    return smaller


def too_small(factor: float, problem: Exception) -> RuntimeError:
    """Say that a module could not be scored on smaller images."""
    return RuntimeError(
        f"A module scored with `scale_factor={factor}` must accept smaller images, got "
        f"from it: {problem}. Pool adaptively before the head, or leave "
        "`scale_factor` at 1."
    )
