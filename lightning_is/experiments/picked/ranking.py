"""Which examples were trained on most often, and how much of the training they took."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def top_share(counts: Int64[Tensor, " N"], share: float) -> float:
    """Return the share of all trainings that the examples trained on most often take.

    Args:
        counts: How often each was trained on; not all zero.
        share: Of the examples, in ``(0, 1]``; at least one example.

    Example:
        >>> top_share(torch.tensor([6, 1, 1, 2]), 0.25)
        0.6
    """
    most = max(1, round(share * len(counts)))
    return int(counts.sort(descending=True).values[:most].sum()) / int(counts.sum())


def by_count(
    counts: Int64[Tensor, " N"], scores: Float64[Tensor, " N"]
) -> Int64[Tensor, " N"]:
    """Order examples by how often they were trained on, the most often first.

    Those trained on as often as one another go by their mean score, the highest first,
    and those without one (NaN) last.

    Example:
        >>> by_count(torch.tensor([1, 2, 1]), torch.tensor([0.1, 0.5, 0.3]).double())
        tensor([1, 2, 0])
    """
    by_score = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    return by_score[counts[by_score].argsort(descending=True, stable=True)]


def ends(
    counts: Int64[Tensor, " N"],
    scores: Float64[Tensor, " N"],
    *,
    loaded: Int64[Tensor, " N"],
    at_most: int,
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """Return the examples trained on most often and least often, the extreme first.

    Of those that were loaded: what nobody looked at was not passed over.

    Args:
        counts: How often each was trained on.
        scores: The mean of each; NaN where there is none.
        loaded: How often each was loaded.
        at_most: Examples of each kind, which share none.

    Example:
        >>> counts, scores = torch.tensor([1, 0, 4, 0, 2]), torch.ones(5).double()
        >>> ends(counts, scores, loaded=torch.tensor([1, 0, 4, 1, 2]), at_most=2)
        (tensor([2, 4]), tensor([3, 0]))
    """
    order = by_count(counts, scores)
    order = order[loaded[order] > 0]
    shown = min(at_most, len(order) // 2)
    return order[:shown], order.flip(0)[:shown]
