"""Learning rates, chosen for every arm and budget from the same few."""

import csv
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeAlias, get_args

from omegaconf import DictConfig

from lightning_is.experiments.compare.arms import clock_of, settings
from lightning_is.experiments.compare.jobs import Rates, part
from lightning_is.experiments.compare.run import Job, Result

Criterion: TypeAlias = Literal["train_loss", "val_loss", "val_error"]


def trials(cfg: DictConfig, arms: Mapping[str, DictConfig]) -> list[Job]:
    """List the runs that choose; none if rates are not tuned.

    Args:
        cfg: As composed from ``conf/compare.yaml``.
        arms: As composed.

    Raises:
        ValueError: If a setting makes no sense, or seeds choose and are compared too.
    """
    if cfg.rates is None:
        return []
    _check(cfg)
    clock, folder = clock_of(cfg), Path(cfg.out) / "tuning"
    return [
        Job(
            *(name, seed, share, rate),
            settings(arm, clock, seed, share=share, rate=rate),
            folder / part(share) / name / f"rate{rate:g}" / f"seed{seed}.json",
        )
        for share in map(float, cfg.shares)
        for seed in cfg.tuning_seeds
        for name, arm in arms.items()
        for rate in map(float, cfg.rates)
    ]


def _check(cfg: DictConfig) -> None:
    if len(set(cfg.rates)) < max(len(cfg.rates), 2) or min(cfg.rates) <= 0:
        raise ValueError(
            "`rates` to choose from must be several different positive numbers, got "
            f"{cfg.rates}. Write rates=[0.02,0.05,0.1], or leave it out."
        )
    if not cfg.tuning_seeds or set(cfg.tuning_seeds) & set(cfg.seeds):
        raise ValueError(
            "Seeds that choose a rate must not be those that are compared, got "
            f"tuning_seeds={cfg.tuning_seeds} and seeds={cfg.seeds}. Choose others."
        )
    fixed = [str(n) for n, told in cfg.arms.items() if "optimizer.lr=" in str(told)]
    if fixed:
        raise ValueError(
            "Rates are tuned for every arm, or set by the arms, got `rates` and "
            f"optimizer.lr in {', '.join(fixed)}. Leave out one of them."
        )
    if cfg.tuned_by not in get_args(Criterion):
        raise ValueError(
            f"`tuned_by` must be one of {', '.join(get_args(Criterion))}, got "
            f"{cfg.tuned_by!r}. Leave it out for the training loss."
        )


def tuned(results: Sequence[Result], by: Criterion) -> Rates:
    """Choose the rate with the lowest mean for every arm and budget.

    Args:
        results: Of the trials; whatever diverged is as bad as can be.
        by: The loss or error to go by, at the end of a run.
    """
    return {
        place: min(losses, key=losses.__getitem__)
        for place, losses in _losses(results, by).items()
    }


def _losses(
    results: Sequence[Result], by: Criterion
) -> dict[tuple[str, float], dict[float, float]]:
    """Mean loss of every rate, by arm and share of the budget."""
    runs: dict[tuple[str, float], dict[float, list[float]]] = {}
    for run in results:
        if run.rate is not None:
            loss = getattr(run.end, by)
            of_rate = runs.setdefault((run.arm, run.share), {})
            of_rate.setdefault(run.rate, []).append(loss if isfinite(loss) else inf)
    return {place: _means(of_rate) for place, of_rate in runs.items()}


def _means(losses: Mapping[float, Sequence[float]]) -> dict[float, float]:
    # A rate whose trials failed in part is no better than one that diverged.
    most = max(map(len, losses.values()))
    return {r: fmean(of) if len(of) == most else inf for r, of in losses.items()}


def hopeless(results: Sequence[Result], cfg: DictConfig) -> str:
    """Name the rates with which no trial, or not every one, came to a good end.

    Args:
        results: Of the trials. An arm that has none failed as a whole, and is no news.
        cfg: As composed; knows which rates were tried.

    Returns:
        Words that follow those on a table's columns; none if all ended well.
    """
    several = len(cfg.shares) > 1
    named = [
        f"{arm} at {rate:g}" + f" ({share:.0%} of the budget)" * several
        for (arm, share), losses in _losses(results, cfg.tuned_by).items()
        for rate in map(float, cfg.rates)
        if not isfinite(losses.get(rate, inf))
    ]
    return f"; trials diverged or failed: {', '.join(named)}" if named else ""


def write_trials(results: Sequence[Result], by: Criterion, path: Path) -> None:
    """Write mean losses of every arm, budget and rate as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arm", "share", "rate", by, "chosen"])
        for (arm, share), losses in _losses(results, by).items():
            best = min(losses, key=losses.__getitem__)
            for rate, loss in losses.items():
                table.writerow([arm, share, rate, loss, int(rate == best)])
