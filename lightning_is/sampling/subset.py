"""A pass scheme that draws as many of the dataset by importance as are to be loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_is.sampling.distributions import Mixed
from lightning_is.sampling.numerics import precise
from lightning_is.sampling.passes import Pass
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.sampling.priorities import check_known

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_ATTAINABLE = 0.95  # of the precision that the smallest share has
_ENOUGH = 1 << 16  # examples to compare shares by


def _half_uniform() -> ImportancePlan:
    # Scores of a pass ago deserve less trust than fresh ones.
    return ImportancePlan(Mixed(share=0.5))


@dataclass(frozen=True)
class ImportanceSubset:
    r"""Load the share of the dataset that matters, weighted so that nothing is biased.

    The first of two stages: it costs no forward pass, as every step leaves the scores
    of its examples behind, and what it loads can be drawn from again by fresh scores.
    For a pass of ``m`` examples, drawn with inclusion probabilities
    :math:`\pi_i = \min(1, c \, p_i)`, the weights are :math:`m / (N \pi_i)`, and

    .. math:: E\Bigl[\frac1m \sum_{drawn} \frac{m}{N \pi_i} G_i\Bigr]
              = \frac1N \sum_i G_i

    for whatever scores, however old. Examples never seen count as average ones.

    Args:
        keep: Share of the dataset to load in a pass, rounded up, in ``(0, 1]``;
            ``"auto"`` takes the largest that has 95 % of the precision attainable by
            these scores, and with it loads everything while they are even.
        plan: Draws and weights; by default systematically, half by the scores and half
            uniformly, so that no weight exceeds 2.

    Raises:
        ValueError: If ``keep`` is out of range.

    References:
        Horvitz & Thompson, "A generalization of sampling without replacement from a
        finite universe", JASA 47, 1952, for the weights; the stage itself is ours.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> scores = torch.tensor([4.0, 4.0, 0.0, 0.0])
        >>> drawn = ImportanceSubset(keep=0.75)(scores, 0.0, generator)
        >>> len(drawn.indices), {0, 1} <= set(drawn.indices.tolist())
        (3, True)
    """

    keep: float | Literal["auto"] = 0.6
    plan: ImportancePlan = field(default_factory=_half_uniform)

    def __post_init__(self) -> None:
        if self.keep != "auto" and not (
            isinstance(self.keep, (int, float)) and 0 < self.keep <= 1
        ):
            raise ValueError(
                f'`keep` must be in (0, 1] or "auto", got {self.keep!r}. 0.6 loads six '
                "of ten examples in a pass."
            )

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass."""
        check_known(scores)
        known = _average_for_unseen(scores)
        share = self.keep
        if share == "auto":
            share = largest_useful_share(known, self.plan, generator)
        # A product just above a whole number is that number, rounded: 0.55 of 100.
        wanted = math.ceil(float(share) * len(scores) * (1 - 1e-12))
        drawn = self.plan.draw(known, wanted, generator=generator)
        # Those drawn side by side exclude one another less often than others do.
        order = torch.randperm(wanted, generator=generator)
        return Pass(drawn.indices[order], drawn.weights[order])


def largest_useful_share(
    scores: Float[Tensor, " N"],
    plan: ImportancePlan,
    generator: Generator,
    shares: Sequence[float] = _SHARES,
) -> float:
    r"""Return the largest share whose batches are nearly as precise as any could be.

    A batch drawn by :math:`\pi` has the second moment
    :math:`\frac{m}{N^2} \sum_i s_i^2 / \pi_i`: the smaller the share, the fewer of
    those that matter most are held back by drawing nobody twice. A larger one covers
    more of the data before anything repeats, and is drawn less often. What a step costs
    does not depend on it.

    Args:
        scores: Of every example, finite.
        plan: Draws the pass.
        generator: Picks the examples to compare by, if there are many.
        shares: To choose from, falling.

    Example:
        >>> even, uneven = torch.ones(99), torch.ones(99)
        >>> uneven[:5] = 100.0
        >>> plan = ImportancePlan(Mixed(share=0.5))
        >>> [largest_useful_share(s, plan, torch.Generator()) for s in (even, uneven)]
        [1.0, 0.1]
    """
    if len(scores) > _ENOUGH:
        some = torch.randint(len(scores), (_ENOUGH,), generator=generator)
        scores = scores[some]
    squares, moments = precise(scores).square(), []
    for share in shares:
        counts = plan.expected_counts(scores, math.ceil(share * len(scores)))
        terms = torch.where(squares > 0, squares / counts, squares)
        moments.append(float(counts.sum() * terms.sum()))
    least = moments[-1] / _ATTAINABLE
    return next(
        share for share, found in zip(shares, moments, strict=True) if found <= least
    )


def _average_for_unseen(scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Give examples without a score that of an average one."""
    seen = torch.isfinite(scores)
    if bool(seen.all()):
        return scores
    mean = scores[seen].double().mean() if bool(seen.any()) else 1.0
    return torch.where(seen, scores, float(mean))
