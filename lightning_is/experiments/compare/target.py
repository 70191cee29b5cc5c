"""How long an arm takes to get where the baseline ends."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite, log
from statistics import median
from typing import NamedTuple

from lightning_is.experiments.compare.run import Result

FEWEST = 8  # measurements after the first, or there is too much to guess in between

Spot = tuple[float, float]  # spent, training loss


class Target(NamedTuple):
    """When an arm has the baseline's final training loss.

    Attributes:
        share: Median over paired seeds of what was spent until then, in what the
            baseline spent until it first had that loss itself; infinite if half of the
            seeds or more never have it.
        reached: How many of the seeds have it.
        seeds: How many there are.
    """

    share: float
    reached: int
    seeds: int


def time_to_target(runs: Sequence[Result], base: Sequence[Result]) -> Target | None:
    """Find when an arm has the baseline's final training loss.

    Both are measured along the way by the same few examples, and at the end by all. So
    the baseline's time is when its own curve first has that loss, not its budget.

    Args:
        runs: Of an arm.
        base: Of the baseline; runs without one of the same seed do not count.

    Returns:
        None without a pair, where a run has fewer than 8 measurements, or where a
        baseline got nowhere.
    """
    by_seed = {run.seed: run for run in base}
    pairs = [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]
    if not pairs or any(_coarse(run) for pair in pairs for run in pair):
        return None
    times = []
    for run, baseline in pairs:
        loss = baseline.end.train_loss
        own = spent_until(_curve(baseline), loss)
        if not 0 < own < inf:
            return None
        times.append(spent_until(_curve(run), loss) / own)
    return Target(median(times), sum(map(isfinite, times)), len(times))


def _coarse(run: Result) -> bool:
    return len(run.points) <= FEWEST


def _curve(run: Result) -> list[Spot]:
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


def told(target: Target) -> str:
    """Write a target, with how many seeds had it where not all did.

    Example:
        >>> told(Target(0.75, 5, 5)), told(Target(0.75, 4, 5)), told(Target(inf, 0, 5))
        ('75%', '75% (4 of 5)', 'never')
        >>> told(Target(inf, 2, 5))
        '- (2 of 5)'
    """
    if not target.reached:
        return "never"
    share = f"{target.share:.0%}" if target.share < inf else "-"
    missing = target.reached < target.seeds
    return share + f" ({target.reached} of {target.seeds})" * missing
