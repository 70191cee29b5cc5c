"""Tables of a terminal, with a mark at what a benchmark must show."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_is.experiments.bench.effort import Row
from lightning_is.experiments.bench.suite import Benchmark, Bound

_EDGES = (" (low)", " (high)")  # of the middle half, shown beside the median


def print_table(benchmark: Benchmark, rows: Sequence[Row]) -> None:
    """Print the rows, transposed if there are more columns than fit."""
    lines = [headings(benchmark, rows), *cells(benchmark, rows)]
    if len(lines[0]) > 11:
        lines = [list(column) for column in zip(*lines, strict=True)]
    console = Console()
    console.width = max(console.width, 130)
    table = Table(title=benchmark.title, title_justify="left")
    for number, head in enumerate(lines[0]):
        table.add_column(head, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)


def headings(benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
    """Name the columns, with what they must show."""
    return [_heading(name, benchmark.bounds.get(name)) for name in _columns(rows)]


def cells(benchmark: Benchmark, rows: Sequence[Row]) -> list[list[str]]:
    """Write the numbers of all rows, as the table shows them."""
    names = _columns(rows)
    return [[_cell(row, name, benchmark) for name in names] for row in rows]


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if not name.endswith(_EDGES)]


def _heading(name: str, bound: Bound | None) -> str:
    return name if bound is None else f"{name} ({bound})"


def _cell(row: Row, name: str, benchmark: Benchmark) -> str:
    value, verdict = row[name], verdict_on(row, name, benchmark)
    shown = _shown(value)
    if name + _EDGES[0] in row:
        low, high = (_shown(row[name + edge]) for edge in _EDGES)
        shown = f"{shown} [{low}, {high}]"
    return shown if verdict is None else f"{shown} {'yes' if verdict else 'NO'}"


def verdict_on(row: Row, name: str, benchmark: Benchmark) -> bool | None:
    """Say whether a value is what it must be; None if nothing is asked of it."""
    bound, first = benchmark.bounds.get(name), next(iter(row.values()))
    if bound is None or (bound.only and first not in bound.only):
        return None
    return bound.holds(row[name])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
