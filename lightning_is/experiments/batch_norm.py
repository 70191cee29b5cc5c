"""What importance sampling does to batch normalisation, with a cure and without."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeAlias, final

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from typing_extensions import override

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.data.tensors import Splits
from lightning_is.experiments.docs import Finding, check_target, publish
from lightning_is.experiments.train import (
    cpu_threads,
    known_warnings,
    part_results,
    presampled,
)

Row: TypeAlias = dict[str, float]  # of one seed: accuracies in percent

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
UNIFORM, CURED, DRAWN = "uniform", "presample", "drawn"
TITLES = {
    UNIFORM: "uniform",
    CURED: "sampled, statistics of all that was loaded",
    DRAWN: "sampled, statistics of what was drawn",
}
COLUMNS = (
    "difference to uniform in test accuracy, in points",
    "statistics of all that was loaded",
    "of what was drawn",
)
NOTE = "± standard error over paired seeds"


class Trained(NamedTuple):
    """A run: accuracies [%] with its own statistics and with the drawn ones; length."""

    own: float
    drawn: float
    images: int
    steps: int


@final
class DrawnStatistics(Callback):
    """Keeps the running statistics of the batches that steps train on.

    They are what batch normalisation would hold if nothing were done about them. As
    training normalises by the batch in hand, they have no part in it: one run ends in
    one network and two sets of statistics.
    """

    def __init__(self) -> None:
        self._twins: dict[nn.Module, nn.Module] = {}
        self._handles: list[Any] = []
        self._trains = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        norms = [m for m in pl_module.modules() if isinstance(m, BATCH_NORMS)]
        self._twins = {norm: deepcopy(norm) for norm in norms}
        self._handles = [norm.register_forward_pre_hook(self._see) for norm in norms]

    def _see(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Normalise once more, for the sake of the averages alone."""
        if self._trains:
            with torch.no_grad():
                self._twins[norm](*inputs)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._trains = True  # it was scored before

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._trains = False

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the module use them meanwhile, instead of its own."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for norm, twin in self._twins.items():
                for own, other in zip(norm.buffers(), twin.buffers(), strict=True):
                    kept = own.clone()
                    own.copy_(other)
                    other.copy_(kept)


@final
class WithOutliers(TensorDataModule):
    """Serves the data of another module, a share of its training images spoilt.

    These are negatives with labels of chance: they stay hard, so they are drawn again
    and again, and they look like nothing else.

    Args:
        data: The module.
        share: Of the training images.
    """

    def __init__(self, data: TensorDataModule, share: float) -> None:
        super().__init__(data.batch_size, data.loader)
        self.data, self.share = data, share

    @override
    def load(self) -> Splits:
        splits = self.data.splits
        train, generator = splits.train, torch.Generator().manual_seed(0)
        spoilt = torch.rand(len(train), generator=generator) < self.share
        rows = [-1, *[1] * (train.x.ndim - 1)]
        x = torch.where(spoilt.reshape(rows), train.x.amax() - train.x, train.x)
        chance = torch.randint(
            int(train.y.max()) + 1, train.y.shape, generator=generator
        )
        y = torch.where(spoilt, chance, train.y)
        return replace(splits, train=replace(train, x=x, y=y))


def compare_statistics(cfg: DictConfig) -> list[Row]:
    """Train from every seed, uniformly and by a method, for as many steps.

    Prints a table and leaves ``batch_norm.json``, and a file of results if asked to.

    Args:
        cfg: As composed from ``conf/batch_norm.yaml``.

    Returns:
        A row for every seed: accuracies on the test set in percent.

    Raises:
        ValueError: If the network has no batch normalisation, or one seed is to be
            published.
    """
    if cfg.publish is not None and len(cfg.seeds) < 2:
        raise ValueError(
            "Published are means with their errors, which need two seeds at least, got "
            f"{cfg.seeds}. Add seeds, or leave out `publish`."
        )
    if cfg.publish is not None:
        check_target(cfg.publish)
    rows: list[Row] = []
    with cpu_threads(cfg.threads), known_warnings():
        for seed in cfg.seeds:
            own = OmegaConf.merge(cfg, {"seed": seed})
            assert isinstance(own, DictConfig)  # noqa: S101  merged of such
            plain, run = accuracies(own, samples=False), accuracies(own)
            rows.append({UNIFORM: plain.own, CURED: run.own, DRAWN: run.drawn})
            _print(rows, cfg.title)
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": rows, "differences": differences(rows)}, indent=2)
    (folder / "batch_norm.json").write_text(text + "\n")
    if cfg.publish is not None:
        publish(cfg.publish, finding(rows, run, cfg.title))
    return rows


def finding(rows: Sequence[Row], run: Trained, title: str) -> Finding:
    """Return the row that documents show of several seeds; all runs are as long."""
    found = differences(rows)
    what = f"{title}, {run.images:,} images, {run.steps} steps, {len(rows)} seeds"
    shown = [f"{mean:.2f} ± {error:.2f}" for mean, error in found.values()]
    values = {name: {"mean": m, "error": e} for name, (m, e) in found.items()}
    return Finding(title, COLUMNS, [[what, *shown]], NOTE, values)


def accuracies(cfg: DictConfig, *, samples: bool = True) -> Trained:
    """Train once; evaluate with the network's own statistics, and the drawn ones."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    data: TensorDataModule = instantiate(cfg.data)
    if cfg.outliers > 0:
        data = WithOutliers(data, cfg.outliers)
    model: LightningModule = instantiate(cfg.classifier, _convert_="all")
    if not any(isinstance(part, BATCH_NORMS) for part in model.modules()):
        raise ValueError(
            "The network must have batch normalisation, got one without. Choose "
            "model=wrn28_2."
        )
    drawn = DrawnStatistics()
    method = [instantiate(cfg.method.callback)] if samples else []
    trainer: Trainer = instantiate(
        cfg.trainer, callbacks=[*method, drawn], logger=False
    )
    trainer.fit(model, datamodule=presampled(cfg, data) if samples else data)
    images, steps = len(data.splits.train), trainer.global_step
    own = _accuracy(trainer, model, data)
    with drawn.in_place():
        return Trained(own, _accuracy(trainer, model, data), images, steps)


def _accuracy(
    trainer: Trainer, model: LightningModule, data: TensorDataModule
) -> float:
    return 100 * part_results(trainer, model, data)["test/acc"]


def differences(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return mean and standard error of the paired differences to uniform."""
    found = {}
    for name in (CURED, DRAWN):
        each = [row[name] - row[UNIFORM] for row in rows]
        error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        found[name] = [fmean(each), error]
    return found


def _print(rows: Sequence[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: test accuracy [%]")
    for heading in ("seed", *TITLES.values()):
        table.add_column(heading, justify="right")
    for number, row in enumerate(rows):
        table.add_row(str(number), *(f"{row[name]:.2f}" for name in TITLES))
    table.add_section()
    shown = [f"{mean:+.2f} ± {error:.2f}" for mean, error in differences(rows).values()]
    table.add_row("to uniform", "", *shown)
    Console().print(table)
