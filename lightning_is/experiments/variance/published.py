"""What a measured run gives to the documents: its table, and numbers for prose."""

from collections.abc import Sequence
from typing import Any

from lightning_is.experiments.docs import Finding
from lightning_is.experiments.docs.results import finite
from lightning_is.experiments.variance.draws import SCORES, SELECTIONS
from lightning_is.experiments.variance.record import (
    Measurement,
    pooled_errors,
    pooled_points,
)
from lightning_is.experiments.variance.tables import COLUMNS, cells, verdict


def finding(measurements: Sequence[Measurement], *, title: str, note: str) -> Finding:
    """Put all measurements into one table, the first and the last into numbers.

    Numbers are found by ``first`` or ``last``, kind of draw, score: the variance in
    that of uniform draws; by ``squared_errors`` and score, of all steps together, of as
    many ``points``.

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
    numbers["points"] = pooled_points(measurements)
    table = [list(row) for row in cells(measurements)]
    told = f"{note}. {verdict(measurements)}"
    return Finding(title, list(COLUMNS), table, told, numbers)
