"""Weights: what a drawn example counts for in the mean of the batch."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_is.sampling.numerics import precise
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
        _check_power(self.k)

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


def max_normalised(
    probs: Float[Tensor, " N"], indices: Int[Tensor, " m"], beta: float
) -> Float[Tensor, " m"]:
    r"""Weight drawn examples by a power, relative to the largest weight of all.

    .. math:: w_i = \frac{(1 / (N p_i))^\beta}{\max_j (1 / (N p_j))^\beta}
              = \Bigl(\frac{\min_j p_j}{p_i}\Bigr)^\beta

    The maximum is over the whole table, not over the examples drawn, so a weight does
    not depend on who else was drawn. None exceeds 1; even at ``beta = 1`` they undo the
    draw only up to a common factor, which shortens every step. Examples of probability
    zero cannot be drawn and do not count for the maximum.

    Args:
        probs: Probability of every example of the table, of shape ``(N,)``.
        indices: Positions of the drawn examples, of shape ``(m,)``.
        beta: The power, in ``[0, 1]``; 0 does not weight.

    Returns:
        Weights of shape ``(m,)``, float32.

    Raises:
        ValueError: If ``beta`` is out of range.

    References:
        Schaul, Quan, Antonoglou & Silver, "Prioritized experience replay", ICLR 2016,
        arXiv 1511.05952; the formula is that of a public implementation, not verified
        against the paper's text.

    Example:
        >>> max_normalised(torch.tensor([0.2, 0.8]), torch.tensor([1, 0]), beta=1.0)
        tensor([0.2500, 1.0000])
    """
    if not 0 <= beta <= 1:
        raise ValueError(
            f"`beta` must be in [0, 1], got {beta}. 0 does not weight, 1 undoes the "
            "draw up to a common factor."
        )
    least = torch.where(probs > 0, probs, torch.inf).min()
    return (least / probs[indices]).pow(beta).float()


def rescaled_power(
    probs: Float[Tensor, " b"], scores: Float[Tensor, " b"], candidates: int, k: float
) -> Float[Tensor, " b"]:
    r"""Weight drawn examples by a power that keeps the score-weighted total.

    .. math:: \hat w_i = (N p_i)^{-k}, \qquad
              w = \hat w \, \frac{\sum_i s_i / (N p_i)}{\sum_i s_i \hat w_i}

    With the loss as the score, the weighted loss of the batch is then the unbiased one,
    whatever the power, though its gradient is not. Where the drawn scores sum to zero,
    there is nothing to keep and the powers are returned as they are.

    Args:
        probs: Probability of each drawn example, of shape ``(b,)``, above 0.
        scores: Score of each drawn example, of shape ``(b,)``, at least 0.
        candidates: Examples ``N`` that they were drawn from.
        k: The power, at most 1; 1 is unbiased, 0 unweighted.

    Returns:
        Weights of shape ``(b,)``, float32.

    Raises:
        ValueError: If ``k`` exceeds 1, where weights would overcorrect.

    References:
        Katharopoulos & Fleuret, "Biased importance sampling for deep neural network
        training", 2017, arXiv 1706.00043; the rescaling is that of their published
        code, not verified against the paper's text.

    Example:
        >>> scores = torch.tensor([1.0, 3.0])
        >>> rescaled_power(scores / 4, scores, candidates=2, k=0.0)
        tensor([1., 1.])
    """
    _check_power(k)
    unbiased = 1 / (candidates * precise(probs))
    power = unbiased.pow(k)
    wide = precise(scores)
    wanted, total = unbiased @ wide, power @ wide
    return (power * torch.where(total > 0, wanted / total, 1.0)).float()


def _check_power(k: float) -> None:
    if not k <= 1:
        raise ValueError(
            f"`k` must be at most 1, got {k}. 1 is unbiased, 0 unweighted, "
            "negative values stress the hardest examples."
        )
