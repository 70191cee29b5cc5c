"""Noticing losses whose mean is not that of its examples."""

import inspect
from collections.abc import Callable
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_IGNORED = -100  # PyTorch's default
_SIGNATURES = {f: inspect.signature(f) for f in (F.cross_entropy, F.nll_loss)}


@final
class RefuseUnevenMeans(TorchFunctionMode):
    """Refuses a mean of losses in which examples count unequally, while it is active.

    A mean weighted by class is divided by the sum of the weights, and one that ignores
    some labels by the number of the others. An example alone in its batch is divided by
    its own, and so loses its weight.

    Args:
        examples: In the batch.

    Example:
        >>> import torch
        >>> z, y = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> with RefuseUnevenMeans(examples=2):
        ...     loss = F.cross_entropy(z, y)
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self._examples = examples

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let every call through but such a mean; waits for the device.

        Raises:
            ValueError: If there is one.
        """
        kwargs = kwargs or {}
        if func in _SIGNATURES:
            given = _SIGNATURES[func].bind(*args, **kwargs).arguments
            uneven = None
            if given.get("weight") is not None:
                uneven = "weighted by class"
            elif self._ignores_unequally(given["target"], given):
                uneven = "over more labels of some examples than of others"
            if uneven and given.get("reduction", "mean") == "mean":
                raise ValueError(
                    "Gradients of single examples need a loss that is the same for an "
                    f"example alone, got a mean {uneven}, which one example cancels. "
                    'Pass `per_sample_loss=` with `reduction="none"`, or score by '
                    "UpperBound."
                )
        return func(*args, **kwargs)

    def _ignores_unequally(self, target: Tensor, given: dict[str, Any]) -> bool:
        """Whether examples that have labels at all have different numbers of them."""
        if target.is_floating_point() or target.numel() % self._examples:
            return False
        counted = target != given.get("ignore_index", _IGNORED)
        rows = counted.flatten()
        # Examples lie one after the other, or one step of all after the other.
        layouts = rows.view(self._examples, -1), rows.view(-1, self._examples).T
        return all(_differ(layout.sum(1)) for layout in layouts)


def _differ(counts: Tensor) -> bool:
    found = counts[counts > 0]
    return bool((found != found[:1]).any())
