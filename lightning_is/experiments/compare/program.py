"""A comparison from its configuration to its table."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from lightning_is.experiments.compare.arms import clock_of, composed
from lightning_is.experiments.compare.figure import draw
from lightning_is.experiments.compare.jobs import check, executed, part, plan
from lightning_is.experiments.compare.meter import parse_budget, written
from lightning_is.experiments.compare.published import finding
from lightning_is.experiments.compare.report import print_rows, write_markdown
from lightning_is.experiments.compare.run import Job, Result, read
from lightning_is.experiments.compare.table import (
    Place,
    Row,
    note,
    summarise,
    write_runs,
)
from lightning_is.experiments.compare.tuning import (
    hopeless,
    trials,
    tuned,
    write_trials,
)
from lightning_is.experiments.docs import check_target, commit, publish


def compare(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Train every arm from every seed; leave tables, figures and numbers.

    Runs that the folder already holds are not made again.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        overrides: What it was composed with.

    Returns:
        The exit status: 1 if a run failed, else 0.

    Raises:
        ValueError: If a setting makes no sense, or the folder holds other runs.
    """
    check(cfg, overrides)
    if cfg.publish is not None:
        check_target(cfg.publish)  # before hours of runs
    folder = Path(cfg.out)
    arms = composed(cfg, overrides)
    tries, failed_tries = made(trials(cfg, arms), cfg.jobs, "tuning: ")
    rates = tuned(tries, cfg.tuned_by)
    results, failures = made(plan(cfg, arms, rates), cfg.jobs)
    failures = failed_tries | failures
    folder.mkdir(parents=True, exist_ok=True)
    if tries:
        write_trials(tries, cfg.tuned_by, folder / "tuning.csv")
    write_runs(results, folder / "runs.csv")
    rows = summarise(results, failures, cfg.baseline, cfg.rates or ())
    title, told = heading(cfg), note(rows, cfg.baseline) + hopeless(tries, cfg)
    write_markdown(rows, title, told, folder / "table.md")
    draw_all(results, rows, folder, cfg)
    print_rows(rows, f"{title}\n{folder}", told)
    if cfg.publish is not None:
        found = finding(rows, title, told)
        figure = folder / figure_name(1.0 if 1 in cfg.shares else max(cfg.shares))
        commits = [*(run.commit for run in (*tries, *results)), commit()]
        shown = figure if figure.is_file() else None  # where all have failed
        publish(cfg.publish, found, figure=shown, commits=commits)
    return 1 if failures else 0


def made(
    jobs: Sequence[Job], side_by_side: int, what: str = ""
) -> tuple[list[Result], dict[Place, str]]:
    """Make the runs that are missing; show which are being made.

    Returns:
        All there are, and what went wrong, by arm and share of the budget.
    """
    failures: dict[Place, str] = {}
    left = [job for job in jobs if read(job) is None]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    # Redrawn seldom: its thread is on the clock of a run in the same process.
    with Progress(
        text, *columns, console=Console(stderr=True), refresh_per_second=1
    ) as bar:
        shown = what + running(left, side_by_side)
        task = bar.add_task(shown, total=len(left), visible=bool(left))
        for job, error in executed(list(left), side_by_side):
            left.remove(job)
            shown = what + running(left, side_by_side)
            bar.update(task, advance=1, description=shown)
            if error is not None:
                place = job.arm, job.share
                failures.setdefault(place, f"{error} ({job.error_path})")
    return [result for job in jobs if (result := read(job)) is not None], failures


def running(left: Sequence[Job], side_by_side: int) -> str:
    """Name the runs being made: they begin in their order."""
    return ", ".join(named(job) for job in left[:side_by_side]) or "done"


def named(job: Job) -> str:
    """Name a run, as far as it differs from others."""
    share = "" if job.share == 1 else f"{job.share:.0%}: "
    rate = "" if job.rate is None else f" rate {job.rate:g}"
    return f"{share}{job.arm}{rate} seed {job.seed}"


def heading(cfg: DictConfig, share: float = 1.0) -> str:
    """Say what was compared, on what terms."""
    clock = clock_of(cfg)
    return f"{cfg.title}: {written(parse_budget(cfg.budget, clock) * share, clock)}"


def draw_all(
    results: Sequence[Result], rows: Sequence[Row], folder: Path, cfg: DictConfig
) -> None:
    """Draw a figure for each budget."""
    for share in dict.fromkeys(run.share for run in results):
        some = [run for run in results if run.share == share]
        order = [row.arm for row in rows if row.share == share]
        unit = "arithmetic spent [examples]" if clock_of(cfg) == "cost" else ""
        path = folder / figure_name(share)
        title = heading(cfg, share)
        draw(some, order, title, path, baseline=cfg.baseline, unit=unit)


def figure_name(share: float) -> str:
    """Name the figure of a budget.

    Example:
        >>> figure_name(0.3), figure_name(1.0)
        ('compare_30.png', 'compare.png')
    """
    return f"compare{part(share) and '_' + part(share).rstrip('%')}.png"
