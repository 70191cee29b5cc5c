"""What a measured run gives to the documents: its table, and numbers for prose."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from lightning_is.experiments.docs import Finding
from lightning_is.experiments.variance.draws import SCORES, SELECTIONS
from lightning_is.experiments.variance.record import Measurement, pooled_errors
from lightning_is.experiments.variance.tables import COLUMNS, cells, verdict


def finding(measurements: Sequence[Measurement], title: str, note: str) -> Finding:
    """Put all measurements into one table, the first and the last into numbers.

    Numbers are found by ``first`` or ``last``, kind of draw, score: the variance in
    that of uniform draws; and by ``squared_errors`` and score, of all steps together.

    Args:
        measurements: In order, at least one.
        title: Says what was measured.
        note: Says what the columns are.
    """
    numbers: dict[str, Any] = {
        name: {
            selection: finite(
                {score: found.variance(selection, score).mean for score in SCORES}
            )
            for selection in SELECTIONS
        }
        for name, found in (("first", measurements[0]), ("last", measurements[-1]))
    }
    numbers["last"]["step"] = measurements[-1].step
    numbers["squared_errors"] = finite(pooled_errors(measurements))
    table = [list(row) for row in cells(measurements)]
    told = f"{note}. {verdict(measurements)}"
    return Finding(title, list(COLUMNS), table, told, numbers)


def finite(values: dict[str, float]) -> dict[str, float]:
    """Leave out what does not exist.

    Example:
        >>> finite({"loss": 0.5, "uniform": float("nan")})
        {'loss': 0.5}
    """
    return {name: value for name, value in values.items() if isfinite(value)}
