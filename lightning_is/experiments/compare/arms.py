"""What is compared: methods, and whatever else differs from arm to arm."""

import re
import shlex
from collections.abc import Sequence
from typing import Any, cast

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lightning_is.experiments.compare.meter import Clock, parse_budget

# What says which runs to make, or where, and nothing of a run itself.
PLAN = (
    *("methods", "arms", "seeds", "shares", "rates", "tuning_seeds", "tuned_by"),
    *("baseline", "jobs", "out", "output_dir", "title", "publish"),
)
# Settings that read a clock, and what they are without one.
UNTIMED = {
    "method.callback.gate.costs": ("measured", "assumed"),
    "method.callback.score_precision": ("auto", None),
}


def composed(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, DictConfig]:
    """Configure every arm: the methods that were chosen, then the arms.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        overrides: What it was composed with; every arm is too, and then with its own.

    Raises:
        ValueError: If one has no method, or names are taken twice or unfit.
    """
    own = {name: [f"method={name}"] for name in methods(cfg)}
    arms = {str(name): shlex.split(str(told)) for name, told in cfg.arms.items()}
    both = sorted(own.keys() & arms.keys())
    unfit = [name for name in arms if not re.fullmatch(r"[\w.-]+", name)]
    if both or unfit:
        raise ValueError(
            "Arms need names of their own, of letters, digits, dots and dashes, got "
            f"{both or unfit}. Choose others."
        )
    if cfg.baseline not in own | arms:
        raise ValueError(
            f"`baseline` must be one of the arms, got {cfg.baseline!r} and "
            f"{', '.join(own | arms)}. Add it to `methods`, or name another."
        )
    for name, many in arms.items():
        if not any(one.startswith("method=") for one in many):
            raise ValueError(
                f"An arm must choose its method, got {many} for {name!r}. Begin it "
                "with method=uniform or another."
            )
    # Where results go is no part of a run: a moved folder can be resumed. And the rate
    # falls with the budget, whatever an experiment says.
    common = [*overrides, "out=null", "title=null"]
    if not any(one.lstrip("+").startswith("scheduler=") for one in overrides):
        common.append("scheduler=none")
    return {
        name: compose("compare", [*common, *many])
        for name, many in (own | arms).items()
    }


def methods(cfg: DictConfig) -> list[str]:
    """Names of the methods that were chosen; else of all, or of the baseline of arms.

    Raises:
        ValueError: If a chosen one has no file.
    """
    known: list[str] = (
        GlobalHydra.instance().config_loader().get_group_options("method")
    )
    if cfg.methods is None:
        return ([cfg.baseline] if cfg.baseline in known else []) if cfg.arms else known
    chosen = list(cfg.methods)
    unknown = [name for name in chosen if name not in known]
    if unknown or not (chosen or cfg.arms):
        raise ValueError(
            f"`methods` must name files of conf/method, got {unknown or chosen}. "
            f"Choose among {', '.join(known)}, or leave it out for all."
        )
    return chosen


def settings(
    arm: DictConfig,
    clock: Clock,
    seed: int,
    *,
    share: float = 1.0,
    rate: float | None = None,
) -> dict[str, Any]:
    """Everything that determines a run, resolved.

    Args:
        arm: As composed.
        clock: Counts what it uses.
        seed: Of weights, order and draws.
        share: Of the budget that it gets.
        rate: Learning rate, if another than its own.
    """
    limit = parse_budget(arm.budget, clock) * share
    own: dict[str, Any] = {"budget": limit, "clock": clock, "seed": seed}
    if rate is not None:
        own["optimizer"] = {"lr": rate}
    merged = OmegaConf.merge(arm, own)
    if clock == "cost":
        # What goes by a clock would go by that of the counting.
        for key, (timed, untimed) in UNTIMED.items():
            if OmegaConf.select(merged, key) == timed:
                OmegaConf.update(merged, key, untimed)
    plain = OmegaConf.to_container(merged, resolve=True)
    return {k: v for k, v in cast("dict[str, Any]", plain).items() if k not in PLAN}


def clock_of(cfg: DictConfig) -> Clock:
    """Return the clock that was asked for, or the one that suits the accelerator.

    Raises:
        ValueError: If it is unknown, or would not see all the work.
    """
    name = cfg.trainer.accelerator
    on_cpu = name == "cpu" or (name == "auto" and not torch.accelerator.is_available())
    if cfg.clock not in ("auto", "cpu", "wall", "cost"):
        raise ValueError(
            f"`clock` must be auto, cpu, wall or cost, got {cfg.clock!r}. Leave it out "
            "for the CPU's time without an accelerator and time as it passes with one."
        )
    if cfg.clock == "cost":
        return "cost"
    if cfg.clock == "wall" or not (on_cpu or cfg.clock == "cpu"):
        return "wall"
    if not on_cpu or cfg.loader.num_workers > 0:
        place = f"{cfg.loader.num_workers} loader workers" if on_cpu else f"a {name}"
        raise ValueError(
            "The clock must see all the work, got clock=cpu, which counts one process, "
            f"and {place}. Choose clock=wall, or keep the work in the process."
        )
    return "cpu"
