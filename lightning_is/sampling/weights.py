"""Weights: what a drawn example counts for in the mean of the batch."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling.scheme import Draw


@runtime_checkable
class Weights(Protocol):
    """Turns a draw into one weight per drawn example."""

    def __call__(self, draw: Draw, candidates: int) -> Float[Tensor, " b"]:
        """Return weights of shape ``(b,)`` for a draw from ``candidates``."""
        ...


@dataclass(frozen=True)
class PowerWeights:
    r"""Weight a drawn example by a power of the unbiased weight.

    .. math:: w_i = \Bigl(\frac{b}{B \, E[N_i]}\Bigr)^k

    With ``k = 1`` the mean over the nominal ``b`` of the weighted gradients is an
    unbiased estimate of the presample's mean gradient, for every selection scheme;
    under the paper's multinomial draw it is :math:`1 / (B g_i)`. ``k = 0`` does not
    weight, and below 1 hard examples count for more. The weights are never divided by
    their own sum: that would bias them.

    Args:
        k: The power, at most 1.

    Raises:
        ValueError: If ``k`` exceeds 1, where weights would overcorrect.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        Algorithm 1, line 9; the power is that of their "Biased Importance Sampling for
        Deep Neural Network Training", 2017, arXiv 1706.00043.

    Example:
        >>> draw = Draw(torch.tensor([0, 3]), torch.tensor([0.25, 1.0]))
        >>> PowerWeights()(draw, candidates=4)
        tensor([2.0000, 0.5000])
    """

    k: float = 1.0

    def __post_init__(self) -> None:
        if not self.k <= 1:
            raise ValueError(
                f"`k` must be at most 1, got {self.k}. 1 is unbiased, 0 unweighted, "
                "negative values stress the hardest examples."
            )

    def __call__(self, draw: Draw, candidates: int) -> Float[Tensor, " b"]:
        """Return weights of shape ``(b,)``, float32."""
        unbiased = len(draw.indices) / (candidates * draw.expected_counts)
        return unbiased.pow(self.k).float()


@dataclass(frozen=True)
class UnitWeights:
    """Weight every drawn example by 1: plain, and biased unless drawn uniformly.

    Example:
        >>> draw = Draw(torch.tensor([0, 3]), torch.tensor([0.25, 1.0]))
        >>> UnitWeights()(draw, candidates=4)
        tensor([1., 1.])
    """

    def __call__(self, draw: Draw, candidates: int) -> Float[Tensor, " b"]:
        """Return ones of shape ``(b,)``, float32."""
        return torch.ones_like(draw.expected_counts, dtype=torch.float32)
