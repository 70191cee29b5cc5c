"""A measured run, from its configuration to its figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from torch import Tensor

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import check_target
from lightning_is.experiments.train import (
    cpu_threads,
    known_warnings,
    make_trainer,
    part_results,
    refuse_saving,
)
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.files import Files
from lightning_is.experiments.variance.observer import Show, VarianceObserver
from lightning_is.experiments.variance.record import Measurement
from lightning_is.sampling.randomness import draw_generator

_ITS_OWN = 1  # rank of the generator that picks the examples: no draw has it


@dataclass
class Run:
    """A run that was measured.

    Args:
        measurements: What was found, in order.
        trainer: Ran it.
        model: Was trained.
        data: It was trained on.
        files: Have what was found; the figures are to come.
    """

    measurements: list[Measurement]
    trainer: Trainer
    model: LightningModule
    data: TensorDataModule
    files: Files


def measure_variance(cfg: DictConfig) -> list[Measurement]:
    """Train uniformly and measure draws on the way; leave tables, figures and numbers.

    Args:
        cfg: As composed from ``conf/variance_reduction.yaml``.

    Returns:
        What was found, in order.

    Raises:
        ValueError: If a setting makes no sense.
    """
    if cfg.publish is not None:
        check_target(cfg.publish)  # before a long run
    with cpu_threads(cfg.threads), known_warnings():
        run = observe(cfg)
        tests = part_results(run.trainer, run.model, run.data)
    run.files.finish(run.measurements, tests)
    return run.measurements


def observe(cfg: DictConfig) -> Run:
    """Train as ``scripts/train.py`` does with the same settings, and measure.

    To the last bit. ``trainer.limit_val_batches`` is one of these settings. Numbers are
    written after each measurement.

    Raises:
        ValueError: If a setting makes no sense.
    """
    _refuse_sampling(cfg)
    refuse_saving(cfg)
    design = Design(
        batch_size=cfg.drawn,
        repeats=cfg.repeats,
        distribution=instantiate(cfg.distribution),
        seed=cfg.seed,
        norms=cfg.norms,
    )
    seed_everything(cfg.seed, workers=True, verbose=False)
    data: TensorDataModule = instantiate(cfg.data)
    model: LightningModule = instantiate(cfg.classifier, _convert_="all")
    train = data.splits.train
    files = Files(cfg, chosen(len(train), cfg.presample_size, design=design))
    with progress() as show:
        observer = VarianceObserver(
            train.__getitems__(files.rows.tolist()),
            design,
            steps=None if cfg.steps is None else list(cfg.steps),
            points=cfg.points,
            show=show,
            keep=files.write,
        )
        trainer = make_trainer(cfg, observer)
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    _refuse_nothing(observer)
    return Run(observer.measurements, trainer, model, data, files)


def chosen(there_are: int, wanted: int, *, design: Design) -> Int[Tensor, " B"]:
    """Choose the examples that all draws are made from, uniformly, by the seed.

    Args:
        there_are: Examples in the training set.
        wanted: Of them, ``B``.
        design: Knows the seed, and how many are drawn.

    Raises:
        ValueError: If so many are not there, or no more than are drawn.

    Example:
        >>> chosen(10, 3, design=Design(batch_size=2)).shape
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
