"""Pass schemes that draw with replacement, by the rank or size of the last scores.

Shapes: ``N`` examples in the dataset, ``m`` drawn in a pass. An infinite score says
that an example has never been seen; such examples come first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from lightning_is.sampling.distributions import Distribution
from lightning_is.sampling.gate import check_progress
from lightning_is.sampling.passes import Pass
from lightning_is.sampling.priorities import Power, RankExponential, RankPower
from lightning_is.sampling.selection import multinomial
from lightning_is.sampling.weights import max_normalised


@dataclass(frozen=True)
class OnlineBatchSelection:
    r"""Draw examples of high rank more often, by a pressure that anneals.

    The pressure goes from ``start`` to ``end`` exponentially in the progress
    :math:`t`: :math:`s_e = s_0 (s_1 / s_0)^t` (`RankExponential`). Drawn with
    replacement and not weighted, so training is biased by design. Equal scores rank in
    an order that is random in every pass.

    Args:
        start: Pressure at the beginning of the run, at least 1; 1 is uniform.
        end: Pressure at its end, at least 1.
        size: Draws in a pass, as a share of the dataset; above 0.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Loshchilov & Hutter, "Online batch selection for faster training of neural
        networks", 2015, arXiv 1511.06343; formulas as in public implementations, the
        default pressures from memory and not verified against the paper's text.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> drawn = OnlineBatchSelection(1e30, 1e30)
        >>> drawn(torch.tensor([0.0, 9.0]), 0.5, generator).indices
        tensor([1, 1])
    """

    start: float = 100.0
    end: float = 100.0
    size: float = 1.0

    def __post_init__(self) -> None:
        for name, pressure in (("start", self.start), ("end", self.end)):
            if not 1 <= pressure < float("inf"):
                raise ValueError(
                    f"`{name}` must be a pressure of at least 1, got {pressure}. 1 is "
                    "uniform; 100 draws the first 100 times as often as the last."
                )
        _check_size(self.size)

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass."""
        if self.start != self.end:
            check_progress(progress)
        pressure = self.start * (self.end / self.start) ** progress
        probs = _fairly(RankExponential(max(pressure, 1.0)), scores, generator)
        indices = _draw(probs, self.size, generator)
        return Pass(indices, torch.ones(len(indices)))


@dataclass(frozen=True)
class Prioritized:
    r"""Draw examples by their priority and weight the bias away, more and more.

    The weights are :math:`(1 / (N p_i))^\beta` over the largest one of the whole table
    (`max_normalised`), with :math:`\beta` rising linearly to 1 in the progress, as it
    is when a pass begins. At 1 the weighted mean is unbiased up to a common factor
    below 1, which acts as a smaller learning rate.

    Args:
        alpha: Power of the priority, at least 0; 0 is uniform.
        beta: Power of the weights at the beginning, in ``[0, 1]``.
        epsilon: Added to every score, in its unit, at least 0; unused by rank. A small
            one makes the largest weight, and with it every other step, tiny.
        by: ``"loss"`` takes the score itself as the priority (`Power`), ``"rank"`` the
            inverse of its rank (`RankPower`).
        size: Draws in a pass, as a share of the dataset; above 0.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Schaul, Quan, Antonoglou & Silver, "Prioritized experience replay", ICLR 2016,
        arXiv 1511.05952, with a score in place of the temporal-difference error. The
        defaults of ``alpha`` and ``beta`` are those of public implementations of the
        proportional variant, that of ``epsilon`` is ours; none is verified against the
        paper's text.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> Prioritized(epsilon=0.0)(torch.tensor([0.0, 9.0]), 0.5, generator)
        Pass(indices=tensor([1, 1]), weights=tensor([1., 1.]))
    """

    alpha: float = 0.6
    beta: float = 0.4
    epsilon: float = 0.1
    by: str = "loss"
    size: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in ("loss", "rank"):
            raise ValueError(
                f'`by` must be "loss" or "rank", got {self.by!r}. Use "loss" for '
                "priorities proportional to a power of the score."
            )
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"`beta` must be in [0, 1], got {self.beta}. It is the power of the "
                "weights at the beginning and rises to 1; 0.4 is usual."
            )
        _check_size(self.size)
        Power(self.alpha, self.epsilon)  # refuses what is out of range

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass."""
        if self.by == "loss":
            probs = Power(self.alpha, self.epsilon)(scores)
        else:
            probs = _fairly(RankPower(self.alpha), scores, generator)
        indices = _draw(probs, self.size, generator)
        beta = 1.0
        if self.beta < 1:
            check_progress(progress)
            beta = min(self.beta + (1 - self.beta) * progress, 1.0)
        return Pass(indices, max_normalised(probs, indices, beta))


def _draw(
    probs: Float[Tensor, " N"], size: float, generator: Generator
) -> Int[Tensor, " m"]:
    """Draw a share of the table with replacement, by probability."""
    wanted = max(1, round(size * len(probs)))
    return multinomial.pick(probs, wanted, generator=generator)


def _fairly(
    by_rank: Distribution, scores: Float[Tensor, " N"], generator: Generator
) -> Float[Tensor, " N"]:
    """Rank equal scores in random order: by position, the first would always win."""
    order = torch.randperm(len(scores), generator=generator)
    probs = by_rank(scores[order])
    return torch.empty_like(probs).scatter_(0, order, probs)


def _check_size(size: float) -> None:
    if not 0 < size < float("inf"):
        raise ValueError(
            f"`size` must be a number above 0, got {size}. 1.0 draws as many examples "
            "in a pass as the dataset has."
        )
