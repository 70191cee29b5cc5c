"""The table of a comparison: one row a method, the lowest training loss first."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, isnan, log, nan
from pathlib import Path
from statistics import fmean, stdev

from lightning_is.experiments.compare.run import Result

BASELINE = "uniform"
COLUMNS = (
    "method",
    "steps",
    "training loss",
    f"/ {BASELINE}",
    "test error [%]",
    "open",
)
NOTE = (
    f"± standard deviation over seeds; / {BASELINE}: ratio of training losses, "
    "geometric mean and range over paired seeds; open: share of steps on a draw"
)


@dataclass(frozen=True)
class Row:
    """A method in the table.

    Args:
        method: Its name.
        loss: Mean training loss at the end, by which rows are sorted; infinite if the
            method diverged or failed.
        cells: What the table says of it, as ``COLUMNS``.
        error: What went wrong, if a run failed.
    """

    method: str
    loss: float
    cells: tuple[str, ...]
    error: str | None = None


def summarise(results: Sequence[Result], failures: Mapping[str, str]) -> list[Row]:
    """Make the rows: methods by their training loss, then those that failed.

    Args:
        results: Of all methods and seeds that have any.
        failures: What went wrong, by method.
    """
    by_method: dict[str, list[Result]] = {name: [] for name in failures}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    base = {run.seed: run for run in by_method.get(BASELINE, [])}
    rows = [
        _row(name, runs, base, failures.get(name)) for name, runs in by_method.items()
    ]
    return sorted(rows, key=lambda row: (row.loss, row.method))


def _row(
    name: str, runs: Sequence[Result], base: Mapping[int, Result], error: str | None
) -> Row:
    if not runs:
        return Row(name, inf, (name, *["-"] * (len(COLUMNS) - 1)), error)
    losses = [run.end.train_loss for run in runs]
    mean = fmean(losses)
    pairs = [(run, base[run.seed]) for run in runs if run.seed in base]
    ratios = [ratio(run.end.train_loss, other.end.train_loss) for run, other in pairs]
    cells = (
        name,
        f"{fmean(run.end.steps for run in runs):.0f}",
        spread(losses, "{:.3g}", "{:.1g}"),
        "1" if name == BASELINE else ranged(ratios),
        spread([100 * run.end.test_error for run in runs], "{:.2f}", "{:.1g}"),
        share(fmean(run.open_share for run in runs)),
    )
    return Row(name, mean if isfinite(mean) else inf, cells, error)


def ratio(one: float, other: float) -> float:
    """Divide two losses; NaN where that says nothing."""
    return one / other if one > 0 and other > 0 else nan


def share(value: float) -> str:
    """Write a share; a dash where there is none."""
    return "-" if isnan(value) else f"{value:.0%}"


def spread(values: Sequence[float], mean: str, deviation: str) -> str:
    """Write a mean and, of several values, their standard deviation.

    Args:
        values: One a seed.
        mean: How to format it.
        deviation: Likewise.

    Example:
        >>> spread([1.0, 3.0], "{:.1f}", "{:.2f}")
        '2.0 ± 1.41'
    """
    if any(isnan(value) for value in values):
        return "diverged"
    several = f" ± {deviation.format(stdev(values))}" if len(values) > 1 else ""
    return mean.format(fmean(values)) + several


def ranged(values: Sequence[float]) -> str:
    """Write a geometric mean and, of several values, their range.

    Example:
        >>> ranged([0.5, 2.0])
        '1 (0.5..2)'
    """
    if not values or any(isnan(value) for value in values):
        return "-"
    mean = _brief(exp(fmean(log(value) for value in values)))
    several = f" ({_brief(min(values))}..{_brief(max(values))})"
    return mean + (several if len(values) > 1 else "")


def _brief(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def failed(rows: Sequence[Row]) -> list[str]:
    """Say which methods failed, and why."""
    return [f"{row.method} failed: {row.error}" for row in rows if row.error]


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*COLUMNS, title=escape(title), caption=NOTE, box=SIMPLE_HEAD)
    table.pad_edge = table.show_edge = False
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*(escape(cell) for cell in row.cells))
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file is as wide as it takes
    console.print(table)
    for line in failed(rows):
        console.print(line, style="red", markup=False, highlight=False)


def write_markdown(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the table as Markdown."""
    rule = ["---", *["---:"] * (len(COLUMNS) - 1)]
    lines = [COLUMNS, rule, *(row.cells for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts = [f"# {title}", body, NOTE, *failed(rows)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_runs(results: Sequence[Result], path: Path) -> None:
    """Write one line a run, as CSV."""
    columns = ["seconds", "steps", "train_loss", "test_loss", "test_error"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["method", "seed", *columns, "open_share"])
        for run in results:
            numbers = [vars(run.end)[name] for name in columns]
            table.writerow([run.method, run.seed, *numbers, run.open_share])
