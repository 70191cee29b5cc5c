"""A measured run, from its configuration to its figures."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import check_target, publish
from lightning_is.experiments.train import cpu_threads, known_warnings, part_results
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.figures import draw_probabilities, draw_variance
from lightning_is.experiments.variance.observer import Show, VarianceObserver
from lightning_is.experiments.variance.published import finding
from lightning_is.experiments.variance.record import Measurement, pooled_errors
from lightning_is.experiments.variance.tables import (
    note,
    print_table,
    write_markdown,
    write_probabilities,
    write_variances,
)
from lightning_is.sampling.randomness import draw_generator

_ITS_OWN = 1  # rank of the generator that picks the examples: no draw has it


def measure_variance(cfg: DictConfig) -> list[Measurement]:
    """Train uniformly and measure draws on the way; leave tables, figures and numbers.

    Args:
        cfg: As composed from ``conf/variance_reduction.yaml``.

    Returns:
        What was found, in order.

    Raises:
        ValueError: If a setting makes no sense.
    """
    _refuse_sampling(cfg)
    if cfg.publish is not None:
        check_target(cfg.publish)  # before a long run
    made = instantiate(cfg.distribution)
    design = Design(cfg.drawn, cfg.repeats, made, cfg.seed, cfg.norms)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data: TensorDataModule = instantiate(cfg.data)
    rows = chosen(len(data.splits.train), cfg.presample_size, design)
    model: LightningModule = instantiate(cfg.classifier, _convert_="all")
    with cpu_threads(cfg.threads), known_warnings():
        with progress() as show:
            observer = VarianceObserver(
                data.splits.train.__getitems__(rows.tolist()),
                design,
                steps=None if cfg.steps is None else list(cfg.steps),
                points=cfg.points,
                show=show,
            )
            trainer = make_trainer(cfg, observer)
            trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
        _refuse_nothing(observer)
        tests = part_results(trainer, model, data)
    leave_behind(observer.measurements, rows, tests, cfg)
    return observer.measurements


def make_trainer(cfg: DictConfig, observer: VarianceObserver) -> Trainer:
    """Build the trainer with the callbacks of the configuration, then the observer."""
    callbacks = [
        instantiate(callback)
        for callback in (cfg.callbacks or {}).values()
        if callback is not None
    ]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer: Trainer = instantiate(
        cfg.trainer, callbacks=[*callbacks, observer], logger=loggers or False
    )
    return trainer


def chosen(there_are: int, wanted: int, design: Design) -> Int[Tensor, " B"]:
    """Choose the examples that all draws are made from, uniformly, by the seed.

    Args:
        there_are: Examples in the training set.
        wanted: Of them, ``B``.
        design: Knows the seed, and how many are drawn.

    Raises:
        ValueError: If so many are not there, or no more than are drawn.

    Example:
        >>> chosen(10, 3, Design(batch_size=2)).shape
        torch.Size([3])
    """
    if not design.batch_size < wanted <= there_are:
        raise ValueError(
            f"`presample_size` must exceed the {design.batch_size} that are drawn, and "
            f"{there_are} training examples suffice for it, got {wanted}. Change it, "
            "or `drawn`."
        )
    generator = draw_generator(design.seed, _ITS_OWN, 0)
    return torch.randperm(there_are, generator=generator)[:wanted]


def _refuse_sampling(cfg: DictConfig) -> None:
    """Refuse to train by a method that samples.

    Raises:
        ValueError: If it is asked for.
    """
    if cfg.method.callback is not None or cfg.method.presample_size is not None:
        raise ValueError(
            "Draws are measured along uniform training, got a method that samples. "
            "Pass `method=uniform`."
        )


def _refuse_nothing(observer: VarianceObserver) -> None:
    """Refuse a run without steps, which the Trainer passes in silence.

    Raises:
        ValueError: If it had none.
    """
    if not observer.measurements:
        raise ValueError(
            "A measured run needs steps to make, got none. Raise `trainer.max_epochs` "
            "or `trainer.max_steps`, above those of a checkpoint."
        )


@contextmanager
def progress() -> Iterator[Show]:
    """Show how far the run is, and what is being measured."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    with Progress(
        *(*columns, text), console=Console(stderr=True), refresh_per_second=2
    ) as bar:
        task = bar.add_task("loading", total=None)

        def show(step: int, total: int, what: str) -> None:
            bar.update(task, completed=step, total=total, description=what)

        yield show


def leave_behind(
    measurements: Sequence[Measurement],
    rows: Int[Tensor, " B"],
    tests: dict[str, float],
    cfg: DictConfig,
) -> None:
    """Print the table; write numbers and figures into the folder of the run."""
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{cfg.title}: {cfg.drawn} drawn of {cfg.presample_size}"
    explained = note(cfg.drawn, cfg.presample_size, cfg.repeats)
    results = {
        "title": title,
        "settings": OmegaConf.to_container(cfg, resolve=True),
        "at_the_end": tests,
        "squared_errors": pooled_errors(measurements),
        "measurements": [found.plain() for found in measurements],
    }
    text = json.dumps(_finite(results), indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    write_markdown(measurements, title, explained, folder / "table.md")
    write_variances(measurements, folder / "variance.csv")
    write_probabilities(measurements, rows, folder / "probabilities.csv")
    draw_variance(measurements, title, folder / "variance.png")
    draw_probabilities(measurements, title, folder / "probabilities.png")
    print_table(measurements, f"{title}\n{folder}", explained)
    if cfg.publish is not None:
        found = finding(measurements, title, explained)
        publish(cfg.publish, found, figure=folder / "variance.png")


def _finite(value: Any) -> Any:
    """Turn what does not exist (NaN) into null, which JSON knows."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value
