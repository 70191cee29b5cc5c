"""Which runs a comparison consists of, and how they are made."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lightning_is.experiments.compare.run import Job, execute
from lightning_is.experiments.compare.stopwatch import Clock, parse_seconds
from lightning_is.experiments.machine import steady_memory

# What says which runs to make, or where, and nothing of a run itself.
PLAN = ("methods", "seeds", "jobs", "out", "output_dir", "title")


def plan(cfg: DictConfig, overrides: Sequence[str]) -> list[Job]:
    """List the runs, all methods of a seed side by side.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        overrides: What it was composed with; every run is too.

    Raises:
        ValueError: If settings contradict one another or name nothing.
    """
    check(cfg, overrides)
    clock, folder = clock_of(cfg), Path(cfg.out)
    # Where results go is no part of a run: a moved folder can be resumed.
    nowhere = ["out=null", "title=null"]
    arms = {
        name: compose("compare", [*overrides, *nowhere, f"method={name}"])
        for name in methods(cfg)
    }
    return [
        Job(name, seed, settings(arm, clock, seed), folder / name / f"seed{seed}.json")
        for seed in cfg.seeds
        for name, arm in arms.items()
    ]


def methods(cfg: DictConfig) -> list[str]:
    """Names of the methods that were chosen, or of all.

    Raises:
        ValueError: If a chosen one has no file.
    """
    known: list[str] = (
        GlobalHydra.instance().config_loader().get_group_options("method")
    )
    chosen = known if cfg.methods is None else list(cfg.methods)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(
            f"`methods` must name files of conf/method, got {unknown or chosen}. "
            f"Choose among {', '.join(known)}, or leave it out for all."
        )
    return chosen


def settings(arm: DictConfig, clock: Clock, seed: int) -> dict[str, Any]:
    """Everything that determines a run, resolved.

    Args:
        arm: As composed for its method.
        clock: Counts its time.
        seed: Of weights, order and draws.
    """
    own = {"budget": parse_seconds(arm.budget), "clock": clock, "seed": seed}
    plain = OmegaConf.to_container(OmegaConf.merge(arm, own), resolve=True)
    return {k: v for k, v in cast("dict[str, Any]", plain).items() if k not in PLAN}


def clock_of(cfg: DictConfig) -> Clock:
    """Return the clock that was asked for, or the one that suits the accelerator.

    Raises:
        ValueError: If it is unknown, or would not see all the work.
    """
    name = cfg.trainer.accelerator
    on_cpu = name == "cpu" or (name == "auto" and not torch.accelerator.is_available())
    if cfg.clock not in ("auto", "cpu", "wall"):
        raise ValueError(
            f"`clock` must be auto, cpu or wall, got {cfg.clock!r}. Leave it out for "
            "the CPU's time without an accelerator and time as it passes with one."
        )
    if cfg.clock == "wall" or not (on_cpu or cfg.clock == "cpu"):
        return "wall"
    if not on_cpu or cfg.loader.num_workers > 0:
        place = f"{cfg.loader.num_workers} loader workers" if on_cpu else f"a {name}"
        raise ValueError(
            "The clock must see all the work, got clock=cpu, which counts one process, "
            f"and {place}. Choose clock=wall, or keep the work in the process."
        )
    return "cpu"


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
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise ValueError(
            f"`seeds` must be different numbers, got {cfg.seeds}. Write seeds=[0,1,2]."
        )
    for own, cure in {"method": "methods=[trim]", "seed": "seeds=[0,1]"}.items():
        if any(text.lstrip("+").startswith(f"{own}=") for text in overrides):
            raise ValueError(
                f"`{own}` is what is compared and cannot be set, got it in "
                f"{' '.join(overrides)!r}. Choose by {cure}."
            )
    if cfg.scheduler is not None:
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
        for future in as_completed(running):
            yield running[future], _outcome(future)


def _outcome(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a process died, perhaps for want of memory; start again to resume"
