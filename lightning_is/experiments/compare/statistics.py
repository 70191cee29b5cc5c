"""What paired seeds say, with confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log, nan, sqrt
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 % confidence.

    Args:
        mean: Of the seeds.
        low: Lower end; NaN with a single seed.
        high: Upper end; likewise.
    """

    mean: float
    low: float = nan
    high: float = nan


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, with Student's interval.

    Args:
        values: One a seed, at least one.

    Returns:
        NaN throughout if a value is not finite.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, low=-0.484..., high=4.484...)
    """
    if not all(map(isfinite, values)):
        return Interval(nan)
    mean, count = fmean(values), len(values)
    if count == 1:
        return Interval(mean)
    from scipy.stats import t  # type: ignore[import-untyped]  # a second to import

    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / sqrt(count)
    return Interval(mean, mean - reach, mean + reach)


def ratios(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Geometric mean of paired ratios; its interval is that of their logarithms.

    Args:
        ones: Positive numbers, one a seed.
        others: Likewise, of the same seeds.

    Returns:
        NaN throughout if one is not positive and finite.

    Example:
        >>> ratios([1.0, 4.0], [2.0, 2.0]).mean
        1.0
    """
    pairs = list(zip(ones, others, strict=True))
    if not pairs or not all(0 < value < inf for pair in pairs for value in pair):
        return Interval(nan)
    found = interval([log(one / other) for one, other in pairs])
    return Interval(exp(found.mean), exp(found.low), exp(found.high))


def differences(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Mean of paired differences.

    Example:
        >>> differences([3.0], [1.0]).mean
        2.0
    """
    pairs = list(zip(ones, others, strict=True))
    return interval([one - other for one, other in pairs]) if pairs else Interval(nan)
