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

from lightning_is.experiments.compare.figure import draw
from lightning_is.experiments.compare.jobs import executed, plan
from lightning_is.experiments.compare.run import Job, read
from lightning_is.experiments.compare.table import (
    print_rows,
    summarise,
    write_markdown,
    write_runs,
)


def compare(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Train by every method from every seed; leave table, figure and numbers.

    Runs that the folder already holds are not made again.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        overrides: What it was composed with.

    Returns:
        The exit status: 1 if a run failed, else 0.

    Raises:
        ValueError: If a setting makes no sense, or the folder holds other runs.
    """
    jobs = plan(cfg, overrides)
    missing = [job for job in jobs if read(job) is None]
    failures = make(missing, cfg.jobs)
    results = [result for job in jobs if (result := read(job)) is not None]
    rows = summarise(results, failures)
    folder, title = Path(cfg.out), heading(cfg.title, jobs[0])
    folder.mkdir(parents=True, exist_ok=True)
    write_runs(results, folder / "runs.csv")
    write_markdown(rows, title, folder / "table.md")
    if results:
        order = [row.method for row in rows]
        draw(results, order, title, folder / "compare.png")
    print_rows(rows, f"{title}\n{folder}")
    return 1 if failures else 0


def make(jobs: Sequence[Job], side_by_side: int) -> dict[str, str]:
    """Make the runs that are missing; show which are being made.

    Returns:
        What went wrong in the methods that failed.
    """
    failures: dict[str, str] = {}
    left = list(jobs)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    # Redrawn seldom: its thread is on the clock of a run in the same process.
    with Progress(
        text, *columns, console=Console(stderr=True), refresh_per_second=1
    ) as bar:
        task = bar.add_task(running(left, side_by_side), total=len(left))
        for job, error in executed(jobs, side_by_side):
            left.remove(job)
            bar.update(task, advance=1, description=running(left, side_by_side))
            if error is not None:
                failures.setdefault(job.method, f"{error} ({job.error_path})")
    return failures


def running(left: Sequence[Job], side_by_side: int) -> str:
    """Name the runs being made: they begin in their order."""
    now = [f"{job.method} seed {job.seed}" for job in left[:side_by_side]]
    return ", ".join(now) or "done"


def heading(title: str, job: Job) -> str:
    """Say what was compared, on what terms."""
    clock = {"cpu": "CPU time of one thread", "wall": "time"}[job.settings["clock"]]
    return f"{title}: {job.settings['budget']:g} s of {clock}"
