"""What a comparison gives to the documents: one table, and the numbers of its rows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_is.experiments.compare.statistics import Interval
from lightning_is.experiments.compare.table import Row, cells, columns, failed
from lightning_is.experiments.docs import Finding
from lightning_is.experiments.docs.results import finite


def finding(rows: Sequence[Row], title: str, note: str) -> Finding:
    """Put the rows of all budgets into one table, and their numbers beside it.

    Numbers are found by ``arm.name``, and by ``at_30.arm.name`` where there are several
    budgets, of which this is 30 %.

    Args:
        rows: Of the comparison.
        title: Says what was compared.
        note: Says what the columns mean.
    """
    shares = list(dict.fromkeys(row.share for row in rows))
    names = columns(rows)
    shown = [cells(row, names) for row in rows]
    numbers: dict[str, Any] = {}
    for row in rows:
        place = numbers if len(shares) == 1 else numbers.setdefault(_at(row.share), {})
        place[_key(row.arm)] = numbers_of(row)
    if len(shares) > 1:
        names = ["budget", *names]
        budgets = [f"{100 * row.share:g}%" for row in rows]
        shown = [[one, *line] for one, line in zip(budgets, shown, strict=True)]
    # A table has its first column on the left; what failed is part of what was found.
    return Finding(title, names, shown, ". ".join([note, *failed(rows)]), numbers)


def numbers_of(row: Row) -> dict[str, float]:
    """All finite numbers of a row, by name; intervals as mean, ``_low`` and ``_high``.

    Example:
        >>> numbers_of(Row("trim", 1.0, 0.5, {}, Interval(0.4, 0.3, 0.5)))
        {'ratio': 0.4, 'ratio_low': 0.3, 'ratio_high': 0.5}
    """
    found = {_key(name): value for name, value in row.reached.items()}
    found |= _ends("ratio", row.loss_ratio)
    for part, difference in (row.errors or {}).items():
        found |= _ends(f"{_key(part)}_difference", difference)
    return finite(found)


def _ends(name: str, found: Interval | None) -> Mapping[str, float]:
    if found is None:
        return {}
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _at(share: float) -> str:
    return _key(f"at_{100 * share:g}")


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)  # dots separate names
