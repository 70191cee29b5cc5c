"""One training run, from its configuration to its table."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan, nan
from operator import mul
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.fabric.utilities.warnings import PossibleUserWarning
from omegaconf import DictConfig, OmegaConf

from lightning_is.experiments.checkpoint import checkpoint
from lightning_is.experiments.curves import CurveRecorder, samplings
from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.report import draw_curves, print_table, write_results

# The only arithmetic in `conf/`: a presample is a multiple of the batch, and as many
# classes are left as were chosen.
OmegaConf.register_new_resolver("times", mul, replace=True)
OmegaConf.register_new_resolver(
    "chosen", lambda some, of: of if some is None else len(some), replace=True
)


def train(cfg: DictConfig) -> dict[str, float]:
    """Train, test, print a table, write ``results.json`` and ``training.png``.

    Writes the network as well, where ``save_network`` names a folder.

    Args:
        cfg: As composed from ``conf/train.yaml``.

    Returns:
        Steps, seconds, last tau, share of open steps, loss on the whole training set,
        and loss and accuracy of each test part.

    Raises:
        ValueError: If the network could not be written as asked, before it is trained.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    data: TensorDataModule = instantiate(cfg.data)
    model: LightningModule = instantiate(cfg.classifier, _convert_="all")
    written = None if cfg.save_network is None else checkpoint(model, data)
    curves = CurveRecorder()
    trainer = make_trainer(cfg, curves)
    with cpu_threads(cfg.threads), known_warnings():
        trainer.fit(model, datamodule=presampled(cfg, data), ckpt_path=cfg.ckpt_path)
        results = {
            **summary(trainer, curves),
            "train/loss": training_loss(trainer, model, data),
            **part_results(trainer, model, data),
        }
    if trainer.is_global_zero:
        leave_behind(results, curves, cfg)
        if written is not None:
            written.write(Path(cfg.save_network).expanduser())
    return results


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use that many threads meanwhile; its own choice if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def known_warnings() -> Iterator[None]:
    """Keep back what a reader of the output could do nothing about."""
    with warnings.catch_warnings():
        # Lightning asks for workers; sets in memory are slower with them.
        warnings.filterwarnings("ignore", ".*many workers", PossibleUserWarning)
        # Lightning's own use of PyTorch, on its way to be replaced there.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield


def make_trainer(
    cfg: DictConfig, last: Callback, *, sampling: Callback | None = None
) -> Trainer:
    """Build the trainer with the callbacks of method and configuration, then one more.

    Args:
        cfg: As composed.
        last: Comes after all others.
        sampling: In place of the callback of the method.
    """
    first = instantiate(cfg.method.callback) if sampling is None else sampling
    others = [instantiate(callback) for callback in (cfg.callbacks or {}).values()]
    callbacks = [callback for callback in (first, *others) if callback is not None]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer: Trainer = instantiate(
        cfg.trainer, callbacks=[*callbacks, last], logger=loggers or False
    )
    return trainer


def refuse_saving(cfg: DictConfig) -> None:
    """Refuse to write the network, where a program does not.

    Raises:
        ValueError: If that is asked for.
    """
    if cfg.save_network is not None:
        raise ValueError(
            "Networks are written by scripts/train.py alone, got save_network="
            f"{cfg.save_network} of another program. Train with that one, or drop it."
        )


def presampled(cfg: DictConfig, data: TensorDataModule) -> LightningDataModule:
    """Let the data emit presamples, where the method asks for them."""
    if cfg.method.presample_size is None:
        return data
    from lightning_is import OversamplingDataModule

    return OversamplingDataModule(data, cfg.method.presample_size)


def summary(trainer: Trainer, curves: CurveRecorder) -> dict[str, float]:
    """How long it took, and how much of it was importance sampling."""
    sampled = [point for point in curves.points if not isnan(point.tau)]
    draws = any(sampling.draws_from_batches for sampling in samplings(trainer))
    share = curves.drawn / max(curves.batches, 1)
    return {
        "steps": float(trainer.global_step),
        "seconds": curves.seconds,
        "tau": sampled[-1].tau if sampled else nan,
        "open_share": share if draws else nan,
    }


def training_loss(
    trainer: Trainer, model: LightningModule, data: TensorDataModule
) -> float:
    """Mean loss over the whole training set, as it is and in evaluation mode.

    The losses logged while training are of a moving target, of augmented images, or of
    examples selected for being hard. This one compares runs honestly. Loggers do not
    hear of it: they would take it for a loss of the test.
    """
    with unlogged(trainer):
        found = trainer.test(
            model, dataloaders=data.ordered_train_dataloader(), verbose=False
        )
    return float(found[0]["test/loss"])


@contextmanager
def unlogged(trainer: Trainer) -> Iterator[None]:
    """Let a trainer have no loggers meanwhile."""
    loggers = trainer.loggers
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.loggers = loggers


def part_results(
    trainer: Trainer, model: LightningModule, data: TensorDataModule
) -> dict[str, float]:
    """Loss and accuracy of each test part; one that stands alone needs no name."""
    rows = trainer.test(model, dataloaders=data.test_dataloader(), verbose=False)
    results: dict[str, float] = {}
    for position, (name, row) in enumerate(zip(data.splits.tests, rows, strict=True)):
        for key, value in row.items():
            metric = key.removesuffix(f"/dataloader_idx_{position}").split("/")[-1]
            results[f"test/{metric}" if len(rows) == 1 else f"{name}/{metric}"] = value
    return results


def leave_behind(
    results: dict[str, float], curves: CurveRecorder, cfg: DictConfig
) -> None:
    """Print the table; write numbers and figure beside the configuration of the run."""
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(results, folder / "results.json")
    draw_curves(curves.points, cfg.title, folder / "training.png")
    print_table(results, f"{cfg.title}\n{folder}")
