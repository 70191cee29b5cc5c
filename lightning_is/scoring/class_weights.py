"""Noticing losses whose mean is weighted by class."""

import inspect
from collections.abc import Callable
from typing import Any, final

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_SIGNATURES = {f: inspect.signature(f) for f in (F.cross_entropy, F.nll_loss)}


@final
class RefuseClassWeights(TorchFunctionMode):
    """Refuses a weighted mean of losses, while it is active.

    Such a mean is divided by the sum of the weights, so an example alone in its batch
    loses its weight.

    Example:
        >>> import torch
        >>> z, y = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> with RefuseClassWeights():
        ...     loss = F.cross_entropy(z, y)
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let every call through but a mean with class weights.

        Raises:
            ValueError: If there is one.
        """
        kwargs = kwargs or {}
        if func in _SIGNATURES:
            given = _SIGNATURES[func].bind(*args, **kwargs).arguments
            weighted = given.get("weight") is not None
            if weighted and given.get("reduction", "mean") == "mean":
                raise ValueError(
                    "Gradients of single examples need a loss that is the same for an "
                    "example alone, got a mean weighted by class, which one example "
                    'cancels. Pass `per_sample_loss=` with `reduction="none"`, or '
                    "score by UpperBound."
                )
        return func(*args, **kwargs)
