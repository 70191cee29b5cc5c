"""Benchmarks from their names to their tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.published import finding
from lightning_is.experiments.bench.suite import BENCHMARKS, Benchmark
from lightning_is.experiments.bench.table import print_table, verdict_on
from lightning_is.experiments.docs import check_target, publish

Report = dict[str, object]


def measure(
    names: Sequence[str],
    effort: Effort | None,
    only: Sequence[str] = (),
    publish_as: str | None = None,
) -> dict[str, Report]:
    """Run benchmarks; print the table of each as it is filled.

    Args:
        names: Of `BENCHMARKS`.
        effort: Another than their own.
        only: Parts to run; all if empty.
        publish_as: Name of a file of ``docs/results`` to write, of one benchmark.

    Returns:
        For each that ran its rows, and what of them is not as it must be; for the
        others why they did not.

    Raises:
        ValueError: If several are to be published under one name, or it cannot be.
    """
    if publish_as is not None:
        _check(publish_as, names)
    reports: dict[str, Report] = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        if reason := benchmark.left_out():
            Console().print(f"{name}: {reason}")
            reports[name] = {"left out": reason}
            continue
        rows = _rows(name, benchmark, effort or benchmark.effort, only)
        if rows:
            print_table(benchmark, rows)
            if publish_as is not None:
                publish(publish_as, finding(benchmark, rows))
        reports[name] = {"rows": rows, "missed": _missed(benchmark, rows)}
    return reports


def _check(name: str, names: Sequence[str]) -> None:
    if len(names) > 1:
        raise ValueError(
            "One benchmark is published under one name, got several benchmarks for "
            f"{name!r}. Name one."
        )
    check_target(name)


def _rows(
    name: str, benchmark: Benchmark, effort: Effort, only: Sequence[str]
) -> list[Row]:
    parts = [p for p in benchmark.parts_of(effort) if not only or p in only]
    rows: list[Row] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    # Redrawn seldom: its thread is on the clock of what is measured.
    with Progress(
        text, *columns, console=Console(stderr=True), refresh_per_second=1
    ) as bar:
        task = bar.add_task(name, total=len(parts))
        for part in parts:
            bar.update(task, description=f"{name}: {part}")
            rows += benchmark.run(part, effort)
            bar.advance(task)
    return rows


def _missed(benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
    """Name what is not as it must be."""
    return [
        f"{next(iter(row.values()))}: {name} is {row[name]:.4g}, must be {bound}"
        for row in rows
        for name, bound in benchmark.bounds.items()
        if verdict_on(row, name, benchmark) is False
    ]
