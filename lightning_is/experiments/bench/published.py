"""What a benchmark gives to the documents: its table, and the numbers of its rows."""

import re
from collections import Counter
from collections.abc import Sequence
from math import isfinite

from lightning_is.experiments.bench.effort import Row
from lightning_is.experiments.bench.suite import Benchmark
from lightning_is.experiments.bench.table import cells, headings
from lightning_is.experiments.docs import Finding


def finding(benchmark: Benchmark, rows: Sequence[Row]) -> Finding:
    """Put the rows into a table and their numbers beside it, by row and column.

    Rows are named by their first cell, by the first two where several begin alike;
    what is no letter or digit becomes ``_``.

    Args:
        benchmark: That was run.
        rows: That it filled, at least one.
    """
    several = Counter(_name(row, 1) for row in rows).most_common(1)[0][1] > 1
    numbers = {_name(row, 1 + several): _numbers(row) for row in rows}
    note = "Brackets: the middle half of the rounds." if _has_spread(rows[0]) else ""
    table = cells(benchmark, rows)
    return Finding(benchmark.title, headings(benchmark, rows), table, note, numbers)


def _has_spread(row: Row) -> bool:
    return any(name.endswith(" (low)") for name in row)


def _name(row: Row, cells: int) -> str:
    return _key(" ".join(str(value) for value in list(row.values())[:cells]))


def _numbers(row: Row) -> dict[str, int | float]:
    return {
        _key(name): value
        for name, value in row.items()
        if isinstance(value, (int, float)) and isfinite(value)
    }


def _key(name: str) -> str:
    """Leave letters and digits.

    Example:
        >>> _key("gain / limit (low)")
        'gain_limit_low'
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
