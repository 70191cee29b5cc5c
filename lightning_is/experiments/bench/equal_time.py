"""Which arm learns more in the same CPU time, the learning rate falling to zero."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from typing_extensions import override

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.bench.problem import (
    BATCH,
    RATE,
    classifier,
    evaluate,
    load,
    trainer,
)
from lightning_is.experiments.data import HubImages


class CpuBudget(Callback):
    """Ends a run when its CPU time is spent; the learning rate falls to zero by then.

    Args:
        seconds: CPU seconds of the run, everything the Trainer does included.
        rate: Learning rate to start from.
    """

    def __init__(self, seconds: float, rate: float) -> None:
        self.seconds, self.rate = seconds, rate
        self._begin = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = time.process_time()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        left = 1 - (time.process_time() - self._begin) / self.seconds
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * max(left, 0.0)
        trainer.should_stop = left <= 0


class OpenShare(Callback):
    """Counts the steps that trained on a drawn batch."""

    def __init__(self) -> None:
        self.drawn = 0

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.drawn += len(batch[1]) == BATCH


def run(data: HubImages, sampling: Callback | None, seed: int, seconds: float) -> Any:
    """Train one arm from one seed; report what it reached."""
    module, share = classifier(data, seed), OpenShare()
    extra = [] if sampling is None else [sampling]
    fit = trainer(
        *extra, CpuBudget(seconds, RATE), share, max_epochs=-1, limit_val_batches=0
    )
    fit.fit(module, datamodule=data)
    loss, _ = evaluate(module, data.train_dataloader())
    test = data.test_dataloader()
    _, error = evaluate(module, test[0] if isinstance(test, list) else test)
    return {
        "loss": loss,
        "test error": error,
        "steps": fit.global_step,
        "open share": share.drawn / max(fit.global_step, 1),
    }


def equal_time(path: str, seeds: int, seconds: float) -> dict[str, Any]:
    """Compare uniform training and trim at equal CPU time over paired seeds.

    Args:
        path: Images on the hub or in a folder.
        seeds: Pairs of runs, from the same start and in the same order of examples.
        seconds: CPU seconds of each run.

    Returns:
        Every run, and the mean loss and test error of each arm.
    """
    torch.set_num_threads(1)
    data = load(path)
    runs: list[dict[str, Any]] = []
    for seed in track(range(seeds), "seeds"):
        for arm in ("uniform", "trim"):
            trims = arm == "trim"
            sampling = ImportanceSamplingCallback(BATCH, seed=seed) if trims else None
            result = run(data, sampling, seed, seconds)
            runs.append({"arm": arm, "seed": seed} | result)
    mean = {
        arm: {
            name: sum(r[name] for r in runs if r["arm"] == arm) / seeds
            for name in ("loss", "test error", "steps", "open share")
        }
        for arm in ("uniform", "trim")
    }
    ratio = mean["trim"]["loss"] / mean["uniform"]["loss"]
    return {"runs": runs, "mean": mean, "trim / uniform loss": ratio}
