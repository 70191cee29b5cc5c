"""Which rows of a head belong to which example, told by what the head is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_is.scoring.tap import HeadTap

alike = partial(torch.allclose, equal_nan=True)  # of a batch with NaN in it, too


@contextmanager
def head_inputs(tap: HeadTap) -> Iterator[list[Tensor]]:
    """Collect what the heads are given, call by call."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        found.extend(a.detach() for a in given[:1])

    handles = [
        head.register_forward_pre_hook(note, with_kwargs=True) for head in tap.heads
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def moved_as(
    plain: list[Tensor], flipped: list[Tensor], order: Tensor, stacked: bool
) -> bool:
    """Whether rows moved with their examples, as a layout says they should.

    Args:
        plain: Inputs of the heads, of shape ``(k * n, ...)`` each.
        flipped: The same, of a batch with its examples in another order.
        order: That order, of shape ``(n,)``.
        stacked: The layout, as in `HeadTap`.

    Example:
        >>> order = torch.tensor([1, 0])
        >>> before, after = torch.tensor([0.0, 1, 2, 3]), torch.tensor([2.0, 3, 0, 1])
        >>> moved_as([before], [after], order, stacked=False)
        True
    """
    for before, after in zip(plain, flipped, strict=True):
        copies = torch.arange(before.shape[0] // len(order), device=order.device)
        if stacked:
            rows = copies[:, None] * len(order) + order
        else:
            rows = order[:, None] * len(copies) + copies
        expected = before[rows.flatten()]
        scale = float(before.abs().nan_to_num(0, 0, 0).max())
        if not alike(after, expected, rtol=1e-3, atol=1e-5 * scale):
            return False
    return True
