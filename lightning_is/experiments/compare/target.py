"""How long a run takes to get where the baseline ends."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, log, nan
from statistics import median

from lightning_is.experiments.compare.run import Result

Spot = tuple[float, float]  # spent, training loss


def time_to_target(runs: Sequence[Result], base: Sequence[Result]) -> float:
    """Share of the baseline's budget until its final training loss is reached.

    A median knows what to make of runs that never get there. The learning rate of all
    falls to zero with the budget, so that most of the way is made late: who ends at a
    third of the loss may have been at the target not long before.

    Args:
        runs: Of an arm.
        base: Of the baseline; runs without one of the same seed do not count.

    Returns:
        The median over paired seeds: infinite if half or more never get there, NaN
        without a pair.
    """
    ends = {run.seed: run.end for run in base}
    shares = [
        spent_until(curve(run), end.train_loss) / end.spent
        for run in runs
        if (end := ends.get(run.seed)) is not None
    ]
    return median(shares) if shares else nan


def curve(run: Result) -> list[Spot]:
    """What was spent, and the training loss then."""
    return [(point.spent, point.train_loss) for point in run.points]


def spent_until(curve: Sequence[Spot], target: float) -> float:
    """What was spent until the training loss was first as low; infinite if never.

    Args:
        curve: Spent and loss at each measurement, in their order. Between them the
            logarithm of the loss is taken to be a line.
        target: The loss, in nats.

    Example:
        >>> curve = [(0.0, 1.0), (10.0, 0.01), (20.0, 0.02)]
        >>> round(spent_until(curve, 0.1), 6), spent_until(curve, 0.001)
        (5.0, inf)
    """
    if curve[0][1] <= target:
        return curve[0][0]
    for before, after in pairwise(curve):
        if after[1] <= target:
            return _between(before, after, target)
    return inf


def _between(before: Spot, after: Spot, target: float) -> float:
    (start, high), (end, low) = before, after
    if not (target > 0 and low > 0 and high < inf):
        return end  # no logarithms to go by
    return start + log(high / target) / log(high / low) * (end - start)
