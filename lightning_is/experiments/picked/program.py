"""A run whose picks are counted, and what it leaves behind."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import Finding, check_target, publish
from lightning_is.experiments.picked.counting import (
    OverheardScorer,
    PickCounter,
    by_count,
    top_share,
)
from lightning_is.experiments.picked.numbered import NumberedData
from lightning_is.experiments.picked.picture import draw
from lightning_is.experiments.train import (
    cpu_threads,
    known_warnings,
    part_results,
    presampled,
)
from lightning_is.scoring import UpperBound

TOPS = {"top_1": 0.01, "top_10": 0.1, "top_25": 0.25}
COLUMNS = (
    *("", "examples", "trainings"),
    *("top 1 % take", "top 10 %", "top 25 %", "never trained on"),
)
NOTE = (
    "Trainings: examples of all steps together. The top 1 % are those trained on most "
    "often; uniform sampling gives them 1 % of the trainings."
)


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
        ValueError: If the method picks nothing, or the examples are no images.
    """
    if cfg.publish is not None:
        check_target(cfg.publish)
    with cpu_threads(cfg.threads), known_warnings():
        run = count(cfg)
        tests = part_results(run.trainer, run.model, run.data)
    results = {**summary(run.counter), "steps": float(run.trainer.global_step), **tests}
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_examples(run, folder / "examples.csv")
    names = None if cfg.names is None else list(cfg.names)
    draw(run.counter, run.data.splits.train, names, cfg.title, folder / "picked.png")
    found = finding(results, cfg.title)
    print_finding(found, folder)
    if cfg.publish is not None:
        publish(cfg.publish, finding(results, cfg.title), figure=folder / "picked.png")
    return results


def count(cfg: DictConfig) -> Run:
    """Train as ``scripts/train.py`` does, to the last bit but for clocks, and count.

    Raises:
        ValueError: If the method picks nothing, or the examples are no images.
    """
    if cfg.method.callback is None:
        raise ValueError(
            "Picks are counted of a method that picks, got one without a callback. "
            "Choose method=trim or method=two_stage, say."
        )
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
    scorer = OverheardScorer(own_scorer(cfg))
    sampling: Callback = instantiate(cfg.method.callback, _partial_=True)(
        scorer=scorer, report=False
    )
    counter = PickCounter(len(train), scorer)
    others = [instantiate(one) for one in (cfg.callbacks or {}).values() if one]
    trainer: Trainer = instantiate(
        cfg.trainer, callbacks=[sampling, *others, counter], logger=False
    )
    numbered = NumberedData(data, counter.hear)
    trainer.fit(model, datamodule=presampled(cfg, numbered))
    return Run(counter, trainer, model, data)


def own_scorer(cfg: DictConfig) -> Any:
    """Return the scorer of the method: the default where it names none."""
    given = cfg.method.callback.get("scorer")
    return UpperBound() if given is None else instantiate(given)


def summary(counter: PickCounter) -> dict[str, float]:
    """Sum up the counts."""
    trained = counter.trained
    return {
        "examples": float(len(trained)),
        "loaded": float(counter.loaded.sum()),
        "trained": float(trained.sum()),
        "drawn": float(counter.drawn.sum()),
        "most": float(trained.max()),
        "least": float(trained.min()),
        "never": float((trained == 0).double().mean()),
        **{name: top_share(trained, share) for name, share in TOPS.items()},
    }


def write_examples(run: Run, path: Path) -> None:
    """Write one line an example, those trained on most often first."""
    counter, labels = run.counter, run.data.splits.train.y
    scores = counter.scores
    columns = ("example", "label", "loaded", "trained", "drawn", "per_load", "score")
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for place in by_count(counter.trained, scores).tolist():
            loaded, trained, drawn = (
                int(counts[place])
                for counts in (counter.loaded, counter.trained, counter.drawn)
            )
            per_load = f"{trained / loaded:.4g}" if loaded else ""
            score = f"{float(scores[place]):.4g}" if counter.scored[place] else ""
            label = int(labels[place])
            table.writerow([place, label, loaded, trained, drawn, per_load, score])


def finding(results: dict[str, float], title: str) -> Finding:
    """Return the row that documents show."""
    tops = [f"{results[name]:.1%}" for name in TOPS]
    counts = [f"{results[name]:,.0f}" for name in ("examples", "trained")]
    row = [title, *counts, *tops, f"{results['never']:.1%}"]
    plain = {name.replace("/", "_"): value for name, value in results.items()}
    return Finding(title, COLUMNS, [row], NOTE, plain)


def print_finding(found: Finding, folder: Path) -> None:
    """Print the row, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), caption=NOTE)
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if number else "left")
    for row in found.rows:
        table.add_row(*row)
    Console().print(table)
