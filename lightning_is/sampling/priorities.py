"""Priorities: probabilities over a table of last known scores.

Shapes: ``N`` examples of a dataset. A score may be infinite, which says that the
example has never been seen; such examples rank first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling.numerics import check_scores, normalise, precise


def check_known(scores: Float[Tensor, " N"]) -> None:
    """Refuse scores that are NaN or negative, on the CPU; infinite ones are unseen.

    Raises:
        ValueError: If any score is at fault; says how many, where and what they are.

    Example:
        >>> check_known(torch.tensor([0.5, float("inf")]))
    """
    if scores.device.type == "cpu" and not bool((scores >= 0).all()):
        check_scores(scores.masked_fill(scores == torch.inf, 0.0))


@dataclass(frozen=True)
class RankExponential:
    r"""Let the probability fall exponentially with the rank of the score.

    .. math:: p_i \propto \exp\bigl(-\tfrac{\log s_e}{N} \, \mathrm{rank}_i\bigr),
              \qquad \mathrm{rank}_i = 1, \dots, N

    by descending score. The first is drawn about :math:`s_e` times as often as the
    last, whatever the values of the scores. Equal scores rank by their position.

    Args:
        pressure: The selection pressure :math:`s_e`, at least 1; 1 is uniform.

    Raises:
        ValueError: If ``pressure`` is below 1 or infinite; on call, if a score on the
            CPU is NaN or negative.

    References:
        Loshchilov & Hutter, "Online batch selection for faster training of neural
        networks", 2015, arXiv 1511.06343; the formula agrees with three public
        implementations and is not verified against the paper's text.

    Example:
        >>> RankExponential(pressure=4.0)(torch.tensor([0.1, float("inf")]))
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    pressure: float = 100.0

    def __post_init__(self) -> None:
        if not 1 <= self.pressure < float("inf"):
            raise ValueError(
                f"`pressure` must be a number of at least 1, got {self.pressure}. 1 is "
                "uniform; 100 draws the first 100 times as often as the last."
            )

    def __call__(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return probabilities of shape ``(N,)``."""
        steps = _ranks(scores) / len(scores)
        return _by_rank(scores, self.pressure**-steps)


@dataclass(frozen=True)
class RankPower:
    r"""Let the probability fall as a power of the rank of the score.

    .. math:: p_i \propto \mathrm{rank}_i^{-\alpha}, \qquad \mathrm{rank}_i = 1, \dots

    by descending score. Equal scores rank by their position.

    Args:
        alpha: The power, at least 0; 0 is uniform.

    Raises:
        ValueError: If ``alpha`` is negative or infinite; on call, if a score on the CPU
            is NaN or negative.

    References:
        Schaul, Quan, Antonoglou & Silver, "Prioritized experience replay", ICLR 2016,
        arXiv 1511.05952, the rank-based variant; the default is that of a public
        implementation and is not verified against the paper's text.

    Example:
        >>> RankPower(alpha=1.0)(torch.tensor([0.1, 5.0]))
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    alpha: float = 0.6

    def __post_init__(self) -> None:
        _check_at_least_zero("alpha", self.alpha, "0 is uniform.")

    def __call__(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return probabilities of shape ``(N,)``."""
        return _by_rank(scores, _ranks(scores) ** -self.alpha)


@dataclass(frozen=True)
class Power:
    r"""Draw examples proportionally to a power of their scores.

    .. math:: p_i \propto (s_i + \epsilon)^\alpha

    An example never seen counts as much as the largest score known.

    Args:
        alpha: The power, at least 0; 0 is uniform, 1 proportional.
        epsilon: Added to every score, in its unit, at least 0; above 0 no example is
            ruled out.

    Raises:
        ValueError: If an argument is negative or infinite; on call, if a score on the
            CPU is NaN or negative.

    References:
        Schaul, Quan, Antonoglou & Silver, "Prioritized experience replay", ICLR 2016,
        arXiv 1511.05952, the proportional variant; the default of ``alpha`` is that of
        public implementations and not verified against the paper's text, that of
        ``epsilon`` is ours, for losses.

    Example:
        >>> Power(alpha=0.5, epsilon=0.0)(torch.tensor([1.0, 9.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    alpha: float = 0.6
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _check_at_least_zero("alpha", self.alpha, "0 is uniform, 1 proportional.")
        _check_at_least_zero("epsilon", self.epsilon, "It is added to every score.")

    def __call__(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return probabilities of shape ``(N,)``; uniform if nothing is known."""
        check_known(scores)
        wide = precise(scores)
        unseen = wide == torch.inf
        known = wide.masked_fill(unseen, 0.0)
        filled = torch.where(unseen, known.max(), known)
        # Scaled before the power as well, so that no large score overflows in it.
        return normalise(normalise(filled + self.epsilon) ** self.alpha)


def _ranks(scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return ``1, ..., N`` in the widest float of the scores' device."""
    return precise(torch.arange(1, len(scores) + 1, device=scores.device))


def _by_rank(
    scores: Float[Tensor, " N"], shares: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Hand shares, the largest first, to the scores, the highest first."""
    check_known(scores)
    order = scores.sort(descending=True, stable=True).indices
    return torch.empty_like(shares).scatter_(0, order, shares / shares.sum())


def _check_at_least_zero(name: str, value: float, meaning: str) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be a number of at least 0, got {value}. {meaning}"
        )
