"""A run whose picks are counted, from its configuration to its picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import check_target, publish
from lightning_is.experiments.picked.counting import Overheard, PickCounter
from lightning_is.experiments.picked.numbered import NumberedData
from lightning_is.experiments.picked.picture import draw
from lightning_is.experiments.picked.report import (
    finding,
    print_finding,
    summary,
    write_examples,
)
from lightning_is.experiments.report import write_results
from lightning_is.experiments.train import (
    cpu_threads,
    known_warnings,
    make_trainer,
    part_results,
    presampled,
    refuse_saving,
)
from lightning_is.scoring import UpperBound


@dataclass
class Run:
    """A run that was counted.

    Args:
        counter: Has the counts.
        trainer: Ran it.
        model: Was trained.
        data: It was trained on.
    """

    counter: PickCounter
    trainer: Trainer
    model: LightningModule
    data: TensorDataModule


def picked(cfg: DictConfig) -> dict[str, float]:
    """Train, count, draw the picture, write ``results.json`` and ``examples.csv``.

    Args:
        cfg: As composed from ``conf/picked.yaml``.

    Returns:
        How many examples were loaded, trained on and drawn, by how many steps; what
        share of the trainings those trained on most often take; loss and accuracy on
        the test parts.

    Raises:
        ValueError: If the method picks nothing, the examples are no images, the names
            are not one a class, or there are no steps.
    """
    names = None if cfg.names is None else [str(name) for name in cfg.names]
    _refuse_names(names, cfg)
    if cfg.publish is not None:
        check_target(cfg.publish)
    with cpu_threads(cfg.threads), known_warnings():
        run = count(cfg)
        tests = part_results(run.trainer, run.model, run.data)
    results = {**summary(run.counter), "steps": float(run.trainer.global_step), **tests}
    train, folder = run.data.splits.train, Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(results, folder / "results.json")
    write_examples(run.counter, train.y, folder / "examples.csv")
    picture, found = folder / "picked.png", finding(results, cfg.title)
    draw(run.counter, train, names=names, title=cfg.title, path=picture)
    print_finding(found, folder)
    if cfg.publish is not None:
        publish(cfg.publish, found, figure=picture)
    return results


def count(cfg: DictConfig) -> Run:
    """Train as ``scripts/train.py`` does with the same settings, and count.

    To the last bit, but for clocks. ``trainer.limit_val_batches`` is one of these
    settings: each validation takes a number off the stream that also shuffles the
    training set.

    Raises:
        ValueError: If the method picks nothing, the examples are no images, or there
            are no steps.
    """
    if cfg.method.callback is None:
        raise ValueError(
            "Picks are counted of a method that picks, got one without a callback. "
            "Choose method=trim or method=two_stage, say."
        )
    refuse_saving(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data: TensorDataModule = instantiate(cfg.data)
    model: LightningModule = instantiate(cfg.classifier, _convert_="all")
    data.prepare_data()
    train = data.splits.train
    if train.x.ndim != 4:
        raise ValueError(
            "The picture shows images, got examples of shape "
            f"{tuple(train.x.shape[1:])}. Choose data=digits, mnist or cifar10, say."
        )
    scorer = own_scorer(cfg)
    counter = PickCounter(len(train), Overheard(scorer))
    sampling: Callback = instantiate(cfg.method.callback, _partial_=True)(
        scorer=scorer, report=False
    )
    trainer = make_trainer(cfg, counter, sampling=sampling)
    numbered = presampled(cfg, NumberedData(data, counter.hear))
    trainer.fit(model, datamodule=numbered, ckpt_path=cfg.ckpt_path)
    _refuse_nothing(counter)
    return Run(counter, trainer, model, data)


def own_scorer(cfg: DictConfig) -> Any:
    """Return the scorer of the method: the default where it names none."""
    given = cfg.method.callback.get("scorer")
    return UpperBound() if given is None else instantiate(given)


def _refuse_names(names: list[str] | None, cfg: DictConfig) -> None:
    """Refuse names that are not one for every class, before a long run."""
    if names is not None and len(names) != cfg.inputs.classes:
        raise ValueError(
            f"`names` must name every class, {cfg.inputs.classes} in all, got "
            f"{len(names)}. List them in the order of their numbers, or drop it."
        )


def _refuse_nothing(counter: PickCounter) -> None:
    """Refuse a run without steps, which the Trainer passes in silence."""
    if not counter.trained.any():
        raise ValueError(
            "A run that is counted needs steps to make, got none. Raise "
            "`trainer.max_epochs` or `trainer.max_steps`."
        )
