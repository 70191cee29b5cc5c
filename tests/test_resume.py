"""A run that was killed, resumed from its last checkpoint, goes on as if nothing was.

Runs are killed by a signal nobody can catch, in a process of their own, at a random
step; what is compared is every index drawn, every tau, the gate, the history of scores
and the weights, bit for bit.
"""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler as StatefulSampler

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    EfficiencyGate,
    ImportanceSubset,
    LossPercentile,
    TauGate,
)
from lightning_is.scoring import Loss

N, BATCH, CLASSES, STEPS = 44, 8, 3, 26  # last batches of an epoch are smaller
SAVED_EVERY = 3
CLOCKED = {"is/score_time_share"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create",
    "ignore:'set_vital' is deprecated",  # by PyTorch; torchdata calls it
    "ignore:Checkpoint directory .* exists",
    "ignore:.*use of fork\\(\\) may lead to deadlocks",
)


class Numbered(L.LightningModule):
    """Notes which examples every step trained on, and what was logged of it."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.dies_at, self.rows = dies_at, []

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return functional.cross_entropy(self.net(x), y)

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        logged = self.trainer.callback_metrics
        seen = {name: logged[name].item() for name in logged.keys() - CLOCKED}
        self.rows.append((self.trainer.global_step, batch[2].tolist(), seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(kind: type[DataLoader], shuffled: type[Sampler], workers: int) -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, 4, generator=generator) * torch.linspace(0.1, 3, N)[:, None]
    rows = TensorDataset(x, torch.arange(N) % CLASSES, torch.arange(N))
    context = "fork" if workers else None
    return kind(
        rows,
        batch_size=BATCH,
        # Its generator is not the loader's, of which loaders take a number an epoch.
        sampler=shuffled(rows, generator=generator),
        num_workers=workers,
        multiprocessing_context=context,
    )


def stateful(workers: int) -> DataLoader:
    return loader(StatefulDataLoader, StatefulSampler, workers)


def plain(workers: int) -> DataLoader:
    return loader(DataLoader, RandomSampler, workers)


def presampled(workers: int, every: int = 1) -> OversamplingDataModule:
    return OversamplingDataModule(plain(workers), 4 * BATCH, score_every=every)


def shuffled_by_the_loader(workers: int) -> OversamplingDataModule:
    """One generator for the order and for what the loader itself takes of it."""
    made = plain(workers)  # none
    one = DataLoader(
        made.dataset,
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(4),
    )
    return OversamplingDataModule(one, 3 * BATCH)


def gate() -> AdaptiveSize:
    return AdaptiveSize(costs="assumed", smoothing=0.3)


KINDS = {  # what is trained: data for so many workers, and the callback
    "uniform": (stateful, lambda: None),
    "trim": (stateful, lambda: ImportanceSamplingCallback(gate=gate())),
    "two_stage": (
        lambda workers: OversamplingDataModule(plain(workers), keep=0.6),
        lambda: ImportanceSamplingCallback(gate=gate()),
    ),
    "indexed": (
        plain,
        lambda: ImportanceSamplingCallback(
            source=PassSource(ImportanceSubset(keep=0.5))
        ),
    ),
    "presample": (
        presampled,
        lambda: ImportanceSamplingCallback(
            BATCH, gate=TauGate(1.15, smoothing=0.5), when_closed="subset"
        ),
    ),
    "shuffled": (
        shuffled_by_the_loader,
        lambda: ImportanceSamplingCallback(BATCH, gate=AlwaysOpen()),
    ),
    "score_every": (
        lambda workers: presampled(workers, every=3),
        lambda: ImportanceSamplingCallback(BATCH, gate=AlwaysOpen()),
    ),
    "score_now_and_then": (
        lambda workers: presampled(workers, every=2),
        lambda: ImportanceSamplingCallback(
            BATCH, gate=TauGate(1.3, smoothing=0.5), when_closed="subset"
        ),
    ),
    "accepted": (
        plain,
        lambda: ImportanceSamplingCallback(scorer=Loss(), acceptance=LossPercentile()),
    ),
}


def quiet(callbacks: list[L.Callback], **settings: object) -> L.Trainer:
    """Make a Trainer that tells nobody, and stops by its steps unless told."""
    calm = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": -1,
    }
    return L.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, **(calm | settings)
    )


class Run:
    """A run of a kind, and what it left behind."""

    def __init__(self, kind: str, workers: int, folder: Path) -> None:
        make_data, make_callback = KINDS[kind]
        self.data, self.sampling = make_data(workers), make_callback()
        self.module, self.folder = Numbered(), folder

    def train(self, ckpt: Path | None = None, dies_at: int | None = None) -> "Run":
        self.module.dies_at = dies_at
        keep = ModelCheckpoint(
            self.folder,
            filename="{step:03d}",
            every_n_train_steps=SAVED_EVERY,
            save_top_k=-1,
        )
        callbacks = [keep] if self.sampling is None else [self.sampling, keep]
        trainer = quiet(callbacks, max_steps=STEPS, log_every_n_steps=1)
        ours = isinstance(self.data, L.LightningDataModule)
        given = {"datamodule" if ours else "train_dataloaders": self.data}
        trainer.fit(self.module, **given, ckpt_path=ckpt, weights_only=True)
        return self

    def train_apart(self, ckpt: Path | None = None) -> "Run":
        """Train where no garbage collection waits for the workers of torchdata."""
        if not (isinstance(self.data, StatefulDataLoader) and self.data.num_workers):
            return self.train(ckpt)
        path = self.folder.with_suffix(".left")

        def work() -> None:
            self.train(ckpt)
            module, sampling = self.module, self.sampling
            draws = None if sampling is None else sampling.state_dict()
            torch.save([module.rows, module.state_dict(), draws], path)
            os._exit(0)

        process = get_context("fork").Process(target=work)
        process.start()
        process.join(120)
        self.module.rows, weights, draws = torch.load(path, weights_only=True)
        self.module.load_state_dict(weights)
        if self.sampling is not None:
            self.sampling.load_state_dict(draws)
        return self


def killed(kind: str, workers: int, folder: Path, dies_at: int) -> Path:
    """Train in another process until it is killed; return its last checkpoint."""
    run = Run(kind, workers, folder)
    process = get_context("fork").Process(target=run.train, args=(None, dies_at))
    process.start()
    while process.exitcode is None:  # its workers would hold up a `join`
        time.sleep(0.02)
    assert process.exitcode == -signal.SIGKILL
    return last(folder)


def last(folder: Path) -> Path:
    return max(folder.glob("*.ckpt"))


def same(a, b) -> bool:
    """Whether two states hold the same, to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def refuse_difference(whole: Run, resumed: Run) -> None:
    rows = whole.module.rows[-len(resumed.module.rows) :]
    assert rows[-1] == resumed.module.rows[-1]
    for (step, drawn, logged), again in zip(rows, resumed.module.rows, strict=True):
        assert again[:2] == (step, drawn)
        # Evidence that came before the checkpoint is not logged once more.
        assert again[2].items() <= logged.items()
    assert same(whole.module.state_dict(), resumed.module.state_dict())
    if whole.sampling is not None:
        assert same(whole.sampling.state_dict(), resumed.sampling.state_dict())


@pytest.mark.parametrize(
    ("kind", "workers"),
    [(kind, n) for kind in KINDS for n in (0, 2) if kind != "shuffled" or n == 0],
)
def test_a_killed_run_goes_on_as_if_nothing_was(kind, workers, tmp_path):
    whole = Run(kind, workers, tmp_path / "whole").train_apart()
    dice = random.Random(f"{kind} {workers}")  # noqa: S311  a step is no secret
    dies_at = dice.randrange(SAVED_EVERY + 1, STEPS - 1)
    ckpt = killed(kind, workers, tmp_path / "killed", dies_at)
    resumed = Run(kind, workers, tmp_path / "killed").train_apart(ckpt)
    assert len(resumed.module.rows) < STEPS
    refuse_difference(whole, resumed)


def old(version: int, gate: dict[str, float]) -> dict[str, object]:
    """What the callback saved in an earlier version."""
    state: dict[str, object] = {
        "version": version,
        "seed": 5,
        "draws": 7,
        "gate": gate,
    }
    return state if version == 1 else state | {"batches": 9, "pending": 2}


@pytest.mark.parametrize("version", [1, 2])
def test_states_of_older_versions_load(version):
    sampling = ImportanceSamplingCallback(4, gate=TauGate(1.5))
    sampling.load_state_dict(old(version, {"tau": 1.25, "threshold": 1.5}))
    state = sampling.state_dict()
    assert (state["seed"], state["draws"]) == (5, 7)
    assert (state["batches"], state["pending"]) == ((0, 0) if version == 1 else (9, 2))
    assert sampling.gate.tau == 1.25
    assert state["version"] == 3
    assert state["kept"] == []


@pytest.mark.parametrize(
    ("make", "gate"),
    [
        (AdaptiveSize, {"gain_0": 1.0, "gain_1": 1.0, "gain_2": 1.0, "place": 0.0}),
        (EfficiencyGate, {"gain": 1.2, "break_even": 2.0}),
        (EfficiencyGate, {"gain_0": 1.2, "place": 0.0, "is_far": 1.0}),
    ],
)
def test_a_gate_that_changed_since_says_so_and_how_to_go_on(make, gate, tmp_path):
    size = None if make is AdaptiveSize else 4
    sampling = ImportanceSamplingCallback(size, gate=make(costs="assumed"))
    path, key = tmp_path / "old.ckpt", "ImportanceSamplingCallback"
    torch.save({"callbacks": {key: old(2, gate)}}, path)
    checkpoint = torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="or by an older version") as caught:
        sampling.load_state_dict(checkpoint["callbacks"][key])
    assert '["callbacks"]["ImportanceSamplingCallback"]["gate"]' in str(caught.value)

    del checkpoint["callbacks"]["ImportanceSamplingCallback"]["gate"]  # as it says
    fresh = sampling.gate.state_dict()
    sampling.load_state_dict(checkpoint["callbacks"][key])
    assert sampling.state_dict()["draws"] == 7
    assert sampling.gate.state_dict() == fresh


def test_a_run_is_resumed_by_a_callback_that_the_checkpoint_knows_nothing_of(tmp_path):
    Run("uniform", 0, tmp_path).train()
    run = Run("trim", 0, tmp_path)
    run.train(max(tmp_path.glob("*012.ckpt")))
    assert run.sampling.state_dict()["batches"] == STEPS - 12


def test_saving_and_logging_change_no_draw(tmp_path):
    often = Run("presample", 2, tmp_path).train()
    seldom = Run("presample", 2, tmp_path)
    saves = {"enable_checkpointing": False, "log_every_n_steps": 10**9}
    trainer = quiet([seldom.sampling], max_steps=STEPS, **saves)
    trainer.fit(seldom.module, datamodule=seldom.data)
    drawn = [[row[1] for row in run.module.rows] for run in (often, seldom)]
    assert drawn[0] == drawn[1]


class Summed(Numbered):
    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return functional.cross_entropy(self.net[0](x)[:, :3], y, reduction="sum")


def begun(rows: list[list[int]], state: dict | None = None) -> dict:
    """State of a callback after a fit over these batches, that summed its loss."""
    sampling, data = ImportanceSamplingCallback(2, gate=AlwaysOpen()), plain(0).dataset
    trainer = quiet([sampling], max_epochs=1, enable_checkpointing=False)
    if state is not None:  # restored as from a checkpoint: between setup and fit
        before = sampling.on_fit_start

        def restore(*given: object) -> None:
            sampling.load_state_dict(state)
            before(*given)

        sampling.on_fit_start = restore
    trainer.fit(Summed(), DataLoader(data, batch_sampler=rows))
    return sampling.state_dict()


def test_what_a_large_batch_showed_outlives_a_small_one():
    large, small = list(range(8)), [8, 9, 10, 11]
    told = begun([large, small])
    assert told["sums"][0]
    assert told["largest"] == 8
    unsure = begun([small])
    assert not unsure["sums"][0]  # of four nothing can be said
    assert begun([small], told)["sums"] == told["sums"]
    assert begun([small], told)["largest"] == 8
    assert begun([small, large])["sums"] == told["sums"]  # asked again in time


def test_a_second_fit_knows_nothing_of_the_loader_of_the_first():
    sampling, data = ImportanceSamplingCallback(2, gate=AlwaysOpen()), plain(0).dataset
    for size in (8, 4):
        rows = [list(range(size))] * 2
        trainer = quiet([sampling], max_epochs=1, enable_checkpointing=False)
        trainer.fit(Numbered(), DataLoader(data, batch_sampler=rows))
        assert sampling.state_dict()["largest"] == size


def test_a_presample_that_was_not_loaded_again_is_not_drawn_from(tmp_path):
    """What is left of one belongs to no other: a new loader begins with a new one."""
    run = Run("score_every", 0, tmp_path).train()
    scores = torch.ones(4 * BATCH)
    kept = [[torch.arange(BATCH), torch.full((BATCH,), 99.0), True, scores]]
    again = Run("score_every", 0, tmp_path)
    again.sampling.load_state_dict(run.sampling.state_dict() | {"kept": kept})
    again.train()
    assert all(row[2]["is/max_weight"] < 99 for row in again.module.rows)
