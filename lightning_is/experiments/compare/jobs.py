"""Which runs a comparison consists of, and how they are made."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from omegaconf import DictConfig

from lightning_is.experiments.compare.arms import clock_of, settings
from lightning_is.experiments.compare.budget import DECAYS
from lightning_is.experiments.compare.run import Job, execute
from lightning_is.experiments.machine import steady_memory

Rates = Mapping[tuple[str, float], float]  # of an arm with a share of the budget


def plan(cfg: DictConfig, arms: Mapping[str, DictConfig], rates: Rates) -> list[Job]:
    """List the runs, all arms of a seed side by side.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        arms: As composed.
        rates: Learning rates that were tuned; if any were, what has none is not run,
            as its trials failed.
    """
    clock, folder = clock_of(cfg), Path(cfg.out)
    return [
        Job(
            *(name, seed, share, rates.get((name, share))),
            settings(arm, clock, seed, share=share, rate=rates.get((name, share))),
            folder / part(share) / name / f"seed{seed}.json",
        )
        for share in map(float, cfg.shares)
        for seed in cfg.seeds
        for name, arm in arms.items()
        if cfg.rates is None or (name, share) in rates
    ]


def part(share: float) -> str:
    """Name the folder of a share of the budget; the whole needs none.

    Example:
        >>> part(0.3), part(1.0)
        ('30%', '')
    """
    return "" if share == 1 else f"{100 * share:g}%"


def check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse what contradicts a comparison.

    Raises:
        ValueError: If a number is out of range, or a setting is not the user's here.
    """
    for name, least in (("jobs", 1), ("points", 1)):
        if cfg[name] < least:
            raise ValueError(
                f"`{name}` must be at least {least}, got {cfg[name]}. Leave it out."
            )
    for name, cure in (("seeds", "[0,1,2]"), ("shares", "[0.3,1,3]")):
        if not cfg[name] or len(set(cfg[name])) < len(cfg[name]):
            raise ValueError(
                f"`{name}` must be different numbers, got {cfg[name]}. Write "
                f"{name}={cure}."
            )
    if min(cfg.shares) <= 0:
        raise ValueError(
            f"`shares` of the budget must be positive, got {cfg.shares}. 0.3 is 30 %."
        )
    if cfg.decay not in DECAYS:
        raise ValueError(
            f"`decay` must be one of {', '.join(DECAYS)}, got {cfg.decay!r}. Leave it "
            "out for a rate that falls to zero on a line."
        )
    if cfg.jobs > 1 and clock_of(cfg) == "wall":
        raise ValueError(
            "Runs side by side slow one another, and clock=wall charges them for that, "
            f"got jobs={cfg.jobs}. Take jobs=1; on a CPU also clock=cpu."
        )
    if cfg.trainer.max_epochs != -1 or cfg.trainer.get("max_steps", -1) != -1:
        raise ValueError(
            "The budget alone must end a run, got trainer.max_epochs="
            f"{cfg.trainer.max_epochs} and trainer.max_steps="
            f"{cfg.trainer.get('max_steps', -1)}. Leave them out, and trainer=quick."
        )
    for own, cure in {"method": "methods=[trim]", "seed": "seeds=[0,1]"}.items():
        if any(text.lstrip("+").startswith(f"{own}=") for text in overrides):
            raise ValueError(
                f"`{own}` is what is compared and cannot be set, got it in "
                f"{' '.join(overrides)!r}. Choose by {cure}."
            )
    asked = [text for text in overrides if text.lstrip("+").startswith("scheduler=")]
    if not all(text.endswith(("=none", "=null")) for text in asked):
        raise ValueError(
            "The learning rate must fall with the budget alone, got a scheduler as "
            "well. Leave out `scheduler`."
        )


def executed(
    jobs: Sequence[Job], side_by_side: int
) -> Iterator[tuple[Job, str | None]]:
    """Make runs; yield each as it ends, with what went wrong if something did.

    Args:
        jobs: The runs, in the order in which they begin.
        side_by_side: How many at a time; each in a process of its own if several.
    """
    if side_by_side == 1:
        yield from ((job, execute(job)) for job in jobs)
        return
    # A forked process would inherit locks that PyTorch's threads hold.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(side_by_side, spawn, initializer=steady_memory) as pool:
        running = {pool.submit(execute, job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], _outcome(future)
        except (
            BaseException
        ):  # an interrupt ends the runs being made, and no more begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _outcome(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a process died, perhaps for want of memory; start again to resume"
