"""One run of one method from one seed, and the file it leaves behind."""

import json
import logging
import traceback
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import nan
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from lightning_is import host
from lightning_is.experiments.compare.arithmetic import Arithmetic, of_example
from lightning_is.experiments.compare.budget import Budget, Point
from lightning_is.experiments.compare.meter import Meter, Stopwatch
from lightning_is.experiments.compare.referee import Referee, stored
from lightning_is.experiments.curves import CurveRecorder, samplings
from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import commit
from lightning_is.experiments.report import nulls
from lightning_is.experiments.train import (
    cpu_threads,
    known_warnings,
    make_trainer,
    presampled,
    summary,
)

WARM_UP = 3  # steps that are thrown away


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        arm: Name of a method, or of an arm of its own.
        seed: Of weights, order and draws.
        share: Of the budget.
        rate: Learning rate, if it was tuned or is on trial.
        settings: All there is to know of the run, resolved, as JSON can hold it.
        path: Where its result belongs.
    """

    arm: str
    seed: int
    share: float
    rate: float | None
    settings: dict[str, Any]
    path: Path

    @property
    def error_path(self) -> Path:
        """Where the traceback belongs, should the run fail."""
        return self.path.with_suffix(".error.txt")


@dataclass(frozen=True)
class Result:
    """What a run reached.

    Args:
        arm: Name of a method, or of an arm of its own.
        seed: Of weights, order and draws.
        share: Of the budget.
        rate: Learning rate, if it was tuned or is on trial.
        open_share: Share of steps that trained on a draw; NaN without draws.
        points: Measurements along the run, the last one at its end.
        commit: Of the code that made it.
    """

    arm: str
    seed: int
    share: float
    rate: float | None
    open_share: float
    points: list[Point]
    commit: str = "unknown"

    @property
    def end(self) -> Point:
        """The measurement at the end."""
        return self.points[-1]


def execute(job: Job) -> str | None:
    """Make a run and write its result at once, or its traceback.

    Returns:
        What went wrong, in one line; None if nothing did.
    """
    job.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = run(job)
    except Exception as error:  # whatever it was, the other runs should not be lost
        job.error_path.write_text(traceback.format_exc())
        return shorten(f"{type(error).__name__}: {error}", 300)
    write(result, job)
    job.error_path.unlink(missing_ok=True)
    return None


def run(job: Job) -> Result:
    """Train for all of the budget, and no longer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    made_by = commit()
    cfg = DictConfig(job.settings)
    data = loaded(json.dumps(OmegaConf.to_container(cfg.data), sort_keys=True))
    with cpu_threads(cfg.threads if cfg.clock == "wall" else 1), known_warnings():
        # The first steps of a process import and allocate, at nobody's expense.
        brief = cfg.copy()
        brief.trainer.max_steps = WARM_UP
        fit(brief, data)
        limit, meter = cfg.budget, meter_of(cfg, data)
        budget = Budget(limit, meter, Referee(data), cfg.points, decay=cfg.decay)
        open_share = fit(cfg, data, budget)
    if budget.share() < 1:
        raise ValueError(
            f"A run must use its budget, got one that ended at {budget.share():.0%} of "
            "it. Leave out what else ends a run, such as callbacks that stop early."
        )
    place = job.arm, job.seed, job.share, job.rate
    return Result(*place, open_share, budget.points, made_by)


def meter_of(cfg: DictConfig, data: TensorDataModule) -> Meter:
    """Make what counts the time of a run, or its arithmetic."""
    if cfg.clock != "cost":
        return Stopwatch(cfg.clock)
    examples = stored(data.ordered_train_dataloader())
    some = range(min(len(examples), data.batch_size))
    module: LightningModule = instantiate(cfg.classifier, _convert_="all")
    return Arithmetic(of_example(module, examples.__getitems__(some)))


@lru_cache(maxsize=2)  # decoding images takes longer than a short run
def loaded(settings: str) -> TensorDataModule:
    """Load the data, or find them as the run before left them."""
    data: TensorDataModule = instantiate(json.loads(settings))
    data.prepare_data()
    data.setup("fit")
    return data


def fit(cfg: DictConfig, data: TensorDataModule, budget: Budget | None = None) -> float:
    """Train afresh; return the share of steps on a draw, NaN without draws."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    model = instantiate(cfg.classifier, _convert_="all")
    curves = CurveRecorder()
    trainer = make_trainer(cfg, curves)
    if budget is not None:
        attach(budget, trainer)
    trainer.fit(model, datamodule=presampled(cfg, data))
    return summary(trainer, curves)["open_share"]


def attach(budget: Budget, trainer: Trainer) -> None:
    """Put the budget last, and let annealed methods go by it."""
    for sampling in samplings(trainer):
        sampling.progress = budget.share
    host.callbacks(trainer).append(budget)


def write(result: Result, job: Job) -> None:
    """Write a result with its settings, whole or not at all."""
    plain = {"settings": job.settings, **asdict(result)}
    partial = job.path.with_suffix(".partial")
    partial.write_text(json.dumps(nulls(plain), indent=2) + "\n")
    partial.replace(job.path)


def read(job: Job) -> Result | None:
    """Read the result of a run, if it was made.

    Raises:
        ValueError: If it was made with other settings.
    """
    if not job.path.is_file():
        return None
    stored = json.loads(job.path.read_text())
    differing = sorted(_differences(stored["settings"], job.settings))
    if differing:
        raise ValueError(
            f"A folder holds runs of one setting, got {job.path} made with other "
            f"{', '.join(differing)}. Choose another `out=`, or repeat the settings."
        )
    points = [Point(**_nans(point)) for point in stored["points"]]
    share = _nans({"share": stored["open_share"]})["share"]
    place = job.arm, job.seed, job.share, job.rate
    return Result(*place, share, points, stored["commit"])


def _differences(one: Any, other: Any, name: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        pairs = [(one.get(k), other.get(k), f"{name}.{k}".lstrip(".")) for k in keys]
        return set().union(*(_differences(*pair) for pair in pairs))
    return set() if one == other else {name}


def _nans(values: dict[str, Any]) -> dict[str, Any]:
    # Of what a point holds, errors of parts are a dictionary themselves.
    return {
        key: _nans(value)
        if isinstance(value, dict)
        else nan
        if value is None
        else value
        for key, value in values.items()
    }
