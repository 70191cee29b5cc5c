"""The gate goes by what steps and loading cost, in a fit, by a fake clock."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_is import (
    ImportanceSamplingCallback,
    OversamplingDataModule,
    host,
    monitor,
)
from lightning_is.sampling import AdaptiveSize, EfficiencyGate

N, B, CLASSES = 128, 64, 3


class Clock:
    """Moves on when it is told to, and only then."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(monitor, "time", found)
    return found


class LookUp(L.LightningModule):
    """Examples as uneven as asked; scoring and training take the time given."""

    def __init__(self, clock, score, step, steep=True):
        super().__init__()
        self.clock, self.score, self.step = clock, score, step
        self.head = nn.Linear(N, CLASSES, bias=False)
        margin = torch.full((N,), 7.0 if steep else 1.0)
        margin[::16] = -3.0 if steep else 1.0
        self.head.weight.data.zero_()
        self.head.weight.data[torch.arange(N) % CLASSES, torch.arange(N)] = margin
        self.sizes = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        cost = self.step if torch.is_grad_enabled() else self.score
        self.clock.now += cost * len(x)
        return functional.cross_entropy(self.head(x), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.sizes.append(len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(clock, load=0.0):
    def collate(rows):
        clock.now += load * len(rows)
        return default_collate(rows)

    data = TensorDataset(torch.eye(N), torch.arange(N) % CLASSES)
    return DataLoader(data, batch_size=B, shuffle=True, collate_fn=collate)


def fit(kit, gate, module, data, steps=400):
    size = None if gate.chooses_size else 16
    sampling = ImportanceSamplingCallback(size, gate=gate)
    quiet = {"log_every_n_steps": 10**9, "max_epochs": -1}
    trainer = kit.trainer(sampling, max_steps=steps, **quiet)
    trainer.fit(module, data)
    late = module.sizes[steps // 2 :]
    return sum(size < B for size in late) / len(late)


@pytest.mark.parametrize("gate", [AdaptiveSize, EfficiencyGate])
@pytest.mark.parametrize(
    ("score", "step", "load", "steep", "opens"),
    [
        pytest.param(1.0, 3.0, 0.0, True, True, id="uneven"),
        pytest.param(1.0, 3.0, 0.0, False, False, id="flat"),
        pytest.param(2.8, 3.0, 0.0, True, False, id="frozen-backbone"),
        pytest.param(1.0, 3.0, 1.0, True, True, id="loads-a-little"),
        pytest.param(1.0, 3.0, 99.0, True, False, id="loader-bound"),
    ],
)
def test_the_gate_opens_where_the_arithmetic_says(
    kit, clock, gate, score, step, load, steep, opens
):
    module = LookUp(clock, score, step, steep)
    share = fit(kit, gate(), module, loader(clock, load))
    assert share > 0.9 if opens else share < 0.1
    if not steep:
        assert set(module.sizes) == {B}


def test_a_step_that_becomes_dearer_to_score_closes_the_gate(kit, clock):
    class Changing(LookUp):
        def on_train_batch_start(self, batch, batch_idx):
            self.score = 1.0 if self.global_step < 200 else 2.9

    module = Changing(clock, 1.0, 3.0)
    fit(kit, AdaptiveSize(), module, loader(clock), steps=600)
    assert sum(size < B for size in module.sizes[100:200]) > 90
    assert sum(size < B for size in module.sizes[400:]) < 20


def test_presamples_are_paid_for_at_the_loader(kit, clock):
    """Loading five times as much costs what it costs; scoring alone would have paid."""

    def opened(load):
        clock.now = 0.0
        module = LookUp(clock, 0.05, 3.0)
        module.head.weight.data *= 0.6  # a presample is worth four batches
        data = DataLoader(
            loader(clock).dataset,
            batch_size=16,
            shuffle=True,
            collate_fn=loader(clock, load).collate_fn,
        )
        sampling = ImportanceSamplingCallback(
            16, gate=EfficiencyGate(), when_closed="subset"
        )
        quiet = {"log_every_n_steps": 10**9, "max_epochs": -1}
        trainer = kit.trainer(sampling, max_steps=400, **quiet)
        drawn = []

        class Noting(L.Callback):
            def on_train_batch_end(self, *_):
                drawn.append(sampling.is_sampling)

        trainer.callbacks.append(Noting())
        trainer.fit(module, datamodule=OversamplingDataModule(data, 80))
        return sum(drawn[200:]) / 200

    assert opened(0.0) > 0.9
    assert opened(100.0) < 0.1


def test_costs_are_logged(kit, clock):
    sampling = ImportanceSamplingCallback()
    trainer = kit.trainer(sampling, max_steps=300, max_epochs=-1, log_every_n_steps=100)
    trainer.fit(LookUp(clock, 1.0, 3.0), loader(clock))
    share = trainer.callback_metrics["is/share"].item()
    assert share in (0.125, 0.25, 0.5)
    expected = (1.0 + 3.0 * share) / 3.0
    assert trainer.callback_metrics["is/cost"].item() == pytest.approx(expected)


@pytest.mark.parametrize("gate", [AdaptiveSize, EfficiencyGate])
def test_batches_of_any_size_are_measured(kit, clock, gate):
    """As where they are filled up to a number of tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(400):
        size = int(torch.randint(40, B + 1, (), generator=generator))
        rows.append(torch.randperm(N, generator=generator)[:size].tolist())
    data = DataLoader(loader(clock).dataset, batch_sampler=rows)
    module = LookUp(clock, 1.0, 3.0)
    sampling = ImportanceSamplingCallback(
        None if gate is AdaptiveSize else 16, gate=gate()
    )
    quiet = {"log_every_n_steps": 10**9, "max_epochs": 1}
    kit.trainer(sampling, **quiet).fit(module, data)
    assert sum(size < 40 for size in module.sizes[200:]) > 170


def test_a_small_last_batch_keeps_two_examples():
    assert min(AdaptiveSize().candidates(5, 5)) == 2  # or it could not be normalised


def test_validation_is_not_taken_for_a_slow_loader(kit, clock, monkeypatch):
    monkeypatch.setattr(host, "loads_ahead", lambda trainer: True)

    class Validated(LookUp):
        def validation_step(self, batch, batch_idx):
            self.clock.now += 5000.0

    module = Validated(clock, 1.0, 3.0)
    data = loader(clock)
    sampling = ImportanceSamplingCallback(gate=AdaptiveSize())
    trainer = kit.trainer(
        sampling,
        max_steps=400,
        max_epochs=-1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        log_every_n_steps=10**9,
    )
    checked = DataLoader(data.dataset, batch_size=B)
    trainer.fit(module, data, checked)
    late = module.sizes[200:]
    assert sum(size < B for size in late) > 0.9 * len(late)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_gate_is_told_whether_the_loader_works_ahead(kit, workers):
    gate, seen = EfficiencyGate(), []
    observe = gate.observe
    gate.observe = lambda evidence: (seen.extend(evidence.timings), observe(evidence))
    data = TensorDataset(torch.eye(N), torch.arange(N) % CLASSES)
    given = DataLoader(data, batch_size=32, num_workers=workers)
    fit(kit, gate, LookUp(Clock(), 1.0, 3.0), given, steps=24)
    assert {timing.overlaps for timing in seen} == {workers > 0}
