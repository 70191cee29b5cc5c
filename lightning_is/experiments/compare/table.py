"""The table of a comparison: one row an arm, the lowest training loss first."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, stdev

from lightning_is.experiments.compare.budget import Point
from lightning_is.experiments.compare.run import Result
from lightning_is.experiments.compare.statistics import (
    Interval,
    differences,
    ratios,
)
from lightning_is.experiments.compare.target import Target, time_to_target, told

Place = tuple[str, float]  # an arm, and its share of the budget


@dataclass(frozen=True)
class Row:
    """An arm with one budget.

    Args:
        arm: Its name.
        share: Of the budget.
        loss: Mean training loss at the end, by which rows are sorted; infinite if the
            arm diverged or failed.
        cells: What the table says of it, by column.
        loss_ratio: To the baseline's training loss, over paired seeds.
        errors: In points: difference to the baseline's test error, by part.
        error: What went wrong, if a run failed.
        reached: Means over seeds, by name; errors in percent; `target` is a median.
    """

    arm: str
    share: float
    loss: float
    cells: Mapping[str, str]
    loss_ratio: Interval | None = None
    errors: Mapping[str, Interval] | None = None
    error: str | None = None
    reached: Mapping[str, float] = field(default_factory=dict)


def summarise(
    results: Sequence[Result],
    failures: Mapping[Place, str],
    baseline: str = "uniform",
    grid: Sequence[float] = (),
) -> list[Row]:
    """Make the rows: for each budget arms by training loss, then those that failed.

    Args:
        results: Of all arms, budgets and seeds that have any.
        failures: What went wrong.
        baseline: The arm that the others are compared with.
        grid: Rates that were tried.
    """
    groups: dict[Place, list[Result]] = {place: [] for place in failures}
    for run in results:
        groups.setdefault((run.arm, run.share), []).append(run)
    rows = []
    for (arm, share), runs in groups.items():
        error = failures.get((arm, share))
        if runs:
            base = groups.get((baseline, share), [])
            rows.append(_row(runs, base, baseline, error, grid))
        else:
            rows.append(Row(arm, share, inf, {"arm": arm}, error=error))
    return sorted(rows, key=lambda row: (row.share, row.loss, row.arm))


def _row(
    runs: Sequence[Result],
    base: Sequence[Result],
    baseline: str,
    error: str | None,
    grid: Sequence[float],
) -> Row:
    paired = {run.seed: run.end for run in base}
    both = [(run.end, paired[run.seed]) for run in runs if run.seed in paired]
    ratio = ratios(
        [one.train_loss for one, _ in both], [other.train_loss for _, other in both]
    )
    errors = {
        part: differences(
            [error_of(one, part) for one, _ in both],
            [error_of(other, part) for _, other in both],
        )
        for part in runs[0].end.errors
    }
    reached, target = _reached(runs), time_to_target(runs, base)
    if target is not None:
        reached["target"] = target.share
    cells = {"arm": runs[0].arm}
    if runs[0].rate is not None:
        at_end = runs[0].rate in (min(grid), max(grid)) if grid else False
        cells["rate"] = f"{runs[0].rate:g}" + " !" * at_end
    alone = bool(base) and len(both) < len(runs)  # some are
    cells["seeds"] = f"{len(runs)}" + f" ({len(both)} paired)" * alone
    cells |= _results(runs, baseline, ratio, target, errors)
    loss = reached["loss"] if isfinite(reached["loss"]) else inf
    place = runs[0].arm, runs[0].share
    return Row(*place, loss, cells, ratio, errors, error, reached)


def _results(
    runs: Sequence[Result],
    baseline: str,
    ratio: Interval,
    target: Target | None,
    errors: Mapping[str, Interval],
) -> dict[str, str]:
    ends, itself = [run.end for run in runs], runs[0].arm == baseline
    cells = {
        "steps": f"{fmean(end.steps for end in ends):.0f}",
        "training loss": spread([end.train_loss for end in ends], "{:.3g}", "{:.1g}"),
        f"/ {baseline}": "1" if itself else within(ratio, "{:.3g}"),
    }
    if target is not None:
        cells[f"{baseline}'s loss at"] = told(target)
    for part, difference in errors.items():
        several = [error_of(end, part) for end in ends]
        cells[f"{part} error [%]"] = spread(several, "{:.2f}", "{:.1g}")
        beside = "0" if itself else within(difference, "{:+.2f}")
        cells[f"{part} - {baseline}"] = beside
    return cells | {"open": share(fmean(run.open_share for run in runs))}


def _reached(runs: Sequence[Result]) -> dict[str, float]:
    taus = [point.tau for run in runs for point in run.points]
    found = {
        "seeds": float(len(runs)),
        "steps": fmean(run.end.steps for run in runs),
        "spent_per_step": fmean(run.end.spent / run.end.steps for run in runs),
        "loss": fmean(run.end.train_loss for run in runs),
        "test_loss": fmean(run.end.test_loss for run in runs),
        "open": fmean(run.open_share for run in runs),
        "tau": fmean(run.end.tau for run in runs),
        "highest_tau": max(filter(isfinite, taus), default=nan),
    }
    for part in runs[0].end.errors:
        found[f"{part}_error"] = fmean(error_of(run.end, part) for run in runs)
    return found if runs[0].rate is None else {"rate": runs[0].rate, **found}


def error_of(point: Point, part: str) -> float:
    """Test error of a part, in percent."""
    return 100 * point.errors[part]


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
    if not all(map(isfinite, values)):
        return "diverged"
    several = f" ± {deviation.format(stdev(values))}" if len(values) > 1 else ""
    return mean.format(fmean(values)) + several


def within(found: Interval, form: str) -> str:
    """Write a mean and its interval, as far as there are any.

    Example:
        >>> within(Interval(0.5, 0.25, 1.0), "{:.2g}")
        '0.5 [0.25, 1]'
    """
    if isnan(found.mean):
        return "-"
    mean, ends = form.format(found.mean), (found.low, found.high)
    if any(map(isnan, ends)):
        return mean
    return f"{mean} [{', '.join(form.format(end) for end in ends)}]"


def columns(rows: Sequence[Row]) -> list[str]:
    """All columns that any row has, in their order."""
    widest_first = sorted(rows, key=lambda row: -len(row.cells))
    return list(dict.fromkeys(name for row in widest_first for name in row.cells))


def cells(row: Row, names: Sequence[str]) -> list[str]:
    """What a row has in the columns, with dashes where it has nothing."""
    return [row.cells.get(name, "-") for name in names]


def note(rows: Sequence[Row], baseline: str) -> str:
    """Say what the columns mean."""
    target = (
        f"{baseline}'s loss at: time until the training loss is first what the "
        "baseline ends with, in the baseline's own, median of paired seeds, with how "
        "many get there where not all do; "
    )
    return (
        "± standard deviation over seeds, brackets: 95 % confidence of paired seeds. "
        f"/ {baseline}: ratio of training losses, geometric mean; - {baseline}: "
        f"difference of errors in points; {target * _has_target(rows)}"
        "open: share of steps on a draw from what was loaded; rate !: at an end of "
        "those tried"
    )


def _has_target(rows: Sequence[Row]) -> bool:
    return any("target" in row.reached for row in rows)


def failed(rows: Sequence[Row]) -> list[str]:
    """Say which arms failed, and why."""
    return [f"{row.arm} failed: {row.error}" for row in rows if row.error]


def write_runs(results: Sequence[Result], path: Path) -> None:
    """Write one line a run, as CSV."""
    names = ["spent", "steps", "train_loss", "val_loss", "val_error"]
    names += ["test_loss", "test_error"]
    parts = sorted({part for run in results for part in run.end.errors})
    parts = parts if len(parts) > 1 else []  # one is all there is
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        errors = [f"{part}_error" for part in parts]
        own = ["arm", "share", "rate", "seed", "open_share"]
        table.writerow([*own, *names, *errors])
        for run in results:
            numbers = [vars(run.end)[name] for name in names]
            found = [run.end.errors.get(part) for part in parts]
            which = [run.arm, run.share, run.rate, run.seed, run.open_share]
            table.writerow([*which, *numbers, *found])
