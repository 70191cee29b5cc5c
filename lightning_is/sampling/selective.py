"""Pass schemes that decide on each example by itself, by the last known scores.

Shapes: ``N`` examples in the dataset, ``m`` to be loaded in a pass, none twice. An
infinite score says that an example has never been seen; such examples are loaded.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from lightning_is.sampling.gate import check_progress
from lightning_is.sampling.numerics import precise
from lightning_is.sampling.passes import Pass, Shuffled
from lightning_is.sampling.percentile import (
    acceptance_chance,
    check_selectivity,
)
from lightning_is.sampling.priorities import check_known


@dataclass(frozen=True)
class SoftPruned:
    r"""Leave out some of the easy examples of every pass, and let the rest stand in.

    Each example that scores strictly below the mean is dropped with probability
    ``ratio``; those of them that stay weigh :math:`1 / (1 - \text{ratio})`. All weights
    are then multiplied by the share that is kept, :math:`m / N`: the mean over a batch
    divides by a length that stands for ``m`` examples, not for ``N``, and

    .. math:: E\Bigl[\frac1m \sum_{kept} w_i G_i\Bigr]
              = E\Bigl[\frac1N \sum_{kept} \frac{G_i}{1 - r_i}\Bigr]
              = \frac1N \sum_i G_i

    exactly, for whatever ``G``, as ``m`` cancels before the mean is taken. So a step is
    as long as an ordinary one, on average, and no learning rate needs adapting; only
    the number of steps shrinks. Examples never seen are kept.

    Args:
        ratio: Probability to drop an easy example, in ``[0, 1)``.
        until: Progress from which on a new pass loads everything, unweighted, in
            ``[0, 1]``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Qin et al., "InfoBatch: lossless training speed up by unbiased dynamic data
        pruning", ICLR 2024, arXiv 2303.04947; as in the authors' code, except that
        theirs does not multiply by the share that is kept.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> drawn = SoftPruned()(torch.tensor([0.0, 9.0]), 1.0, generator)
        >>> sorted(drawn.indices.tolist()), drawn.weights.tolist()
        ([0, 1], [1.0, 1.0])
    """

    ratio: float = 0.5
    until: float = 0.875

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(
                f"`ratio` must be in [0, 1), got {self.ratio}. Those that stay stand "
                "in for those dropped, so some must stay; 0.5 is usual."
            )
        if not 0 <= self.until <= 1:
            raise ValueError(
                f"`until` must be in [0, 1], got {self.until}. 0.875 loads everything "
                "in the last eighth of the run."
            )

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass."""
        if self.until < 1:
            check_progress(progress)
        if progress >= self.until:
            return Shuffled()(scores, progress, generator)
        easy = _below_mean(scores)
        units = torch.rand(len(scores), generator=generator)
        kept = _in_random_order(~(easy & (units < self.ratio)), generator)
        share = len(kept) / len(scores)
        standing_in = share / (1 - self.ratio)
        return Pass(kept, torch.where(easy[kept], standing_in, share).float())


@dataclass(frozen=True)
class StaleSelection:
    r"""Load an example with a chance that grows with the percentile of its score.

    .. math:: P(\text{load}) = \max\bigl(\text{floor}, \mathrm{CDF}(s_i)^\beta\bigr)

    with the CDF over the whole table, counting what lies strictly below and, of equal
    scores, half the others, or a table of equal scores would load nobody. Each
    example is decided on by itself; about :math:`1 / (1 + \beta)` of them are loaded,
    each once, unweighted, so training is biased by design. Examples never seen are
    loaded for certain, and if chance picks nobody, the highest score alone is.

    Args:
        beta: How selective to be, above 0.
        floor: Least chance of any example, in ``[0, 1]``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Jiang et al., "Accelerating deep learning by focusing on the biggest losers",
        2019, arXiv 1910.00762. The authors' stale variant scores everything afresh
        every second or third epoch; here the scores are those last known. The
        percentile is over all of them in place of the last 1024.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> StaleSelection()(torch.tensor([0.0, float("inf")]), 0.5, generator).indices
        tensor([1])
    """

    beta: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_selectivity(self.beta, self.floor)

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass."""
        check_known(scores)
        ordered, order = scores.sort()
        shares = _places(ordered).masked_fill(ordered == torch.inf, 1.0)
        chances = acceptance_chance(shares, self.beta, self.floor)
        accepted = torch.rand(len(scores), generator=generator) < chances
        accepted[-1] |= ~accepted.any()
        indices = order[_in_random_order(accepted, generator)]
        return Pass(indices, torch.ones(len(indices)))


def _places(ordered: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the share of a sorted table below each score; equals share places."""
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    return (first + last).float() / (2 * len(ordered))


def _below_mean(scores: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Mark the scores strictly below the mean of those known."""
    check_known(scores)
    wide = precise(scores)
    known = wide[wide < torch.inf]
    if not len(known):
        return torch.zeros_like(wide, dtype=torch.bool)
    # Rounding can put the mean of equal scores above them all.
    return wide < known.mean().minimum(known.max())


def _in_random_order(
    chosen: Bool[Tensor, " N"], generator: Generator
) -> Int[Tensor, " m"]:
    """Return the positions of what is chosen, shuffled."""
    positions = chosen.nonzero()[:, 0]
    return positions[torch.randperm(len(positions), generator=generator)]
