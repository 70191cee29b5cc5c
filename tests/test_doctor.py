"""The report: what it says, by a fake clock, and that it disturbs nothing."""

import logging

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchmetrics.classification import MulticlassAccuracy

from lightning_is import (
    ImportanceSamplingCallback,
    OversamplingDataModule,
    host,
    monitor,
)
from lightning_is.data import PassSource
from lightning_is.doctor import doctor as doctoring
from lightning_is.doctor.measuring import Trials
from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    EfficiencyGate,
    ImportanceSubset,
    LossPercentile,
    NeverOpen,
    Prioritized,
    TauGate,
    Warmup,
    Window,
)
from lightning_is.scoring import Loss

N, B = 128, 64


@pytest.fixture
def listening(caplog):
    """As outside the tests: Lightning's messages are wanted."""
    caplog.set_level(logging.INFO, "lightning.pytorch")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(monitor, "time", found)
    return found


class LookUp(L.LightningModule):
    """Takes the time that it is told to, by the example, and for an update."""

    def __init__(self, clock, score=1.0, step=3.0, update=0.0):
        super().__init__()
        self.clock, self.score, self.step, self.update = clock, score, step, update
        self.head = nn.Linear(N, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        cost = self.step if torch.is_grad_enabled() else self.score
        self.clock.now += cost * len(x)
        return functional.cross_entropy(self.head(x), y)

    def on_before_optimizer_step(self, optimizer):
        self.clock.now += self.update

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(clock=None, load=0.0, batch_size=B, **settings):
    def collate(rows):
        if clock is not None:
            clock.now += load * len(rows)
        return default_collate(rows)

    data = TensorDataset(torch.eye(N), torch.arange(N) % 3)
    return DataLoader(data, batch_size, shuffle=True, collate_fn=collate, **settings)


def report(kit, sampling, module, data=None, **settings):
    quiet = {"log_every_n_steps": 10**9, "max_epochs": -1, "max_steps": 8}
    trainer = kit.trainer(sampling, **(quiet | settings))
    trainer.fit(module, loader() if data is None else data)
    return sampling.diagnosis


# What is said.


def test_the_figures_are_those_of_the_clock(kit, clock, listening):
    sampling = ImportanceSamplingCallback(16, gate=EfficiencyGate())
    module = LookUp(clock, score=1.0, step=3.0, update=8.0)
    found = report(kit, sampling, module, loader(clock, load=0.5))
    assert found.ordinary.compute == pytest.approx(3 * B + 8)
    assert found.ordinary.wait == pytest.approx(0.5 * B)
    (only,) = found.prospects
    assert only.score == pytest.approx(1.0 * B)
    assert only.step == pytest.approx(3 * 16 + 8)
    closed, opened = 3.5 * B + 8, 1.5 * B + 3 * 16 + 8
    assert found.limit == only.limit == pytest.approx(closed / opened)
    assert only.opens_above == pytest.approx(1.05 * 4 * opened / closed, rel=1e-4)


def test_every_size_of_a_menu_is_measured(kit, clock, listening):
    found = report(kit, ImportanceSamplingCallback(), LookUp(clock))
    assert [p.sizes.batch for p in found.prospects] == [8, 16, 32]
    steps = [p.step for p in found.prospects]
    assert steps == pytest.approx([3.0 * 8, 3.0 * 16, 3.0 * 32])
    assert found.limit == pytest.approx(3 * B / (B + 3 * 8))


def test_presamples_are_measured_before_the_first_is_loaded(kit, clock, listening):
    sampling = ImportanceSamplingCallback.paper(16, tau_threshold=1.5)
    data = OversamplingDataModule(loader(clock, load=1.0, batch_size=16), 80)
    found = report(kit, sampling, LookUp(clock), data)
    (only,) = found.prospects
    assert only.sizes == (80, 16)
    assert (only.score, only.step) == pytest.approx((80.0, 48.0))
    assert only.cost == pytest.approx((80 + 48 + 80) / (48 + 16))
    assert found.opening.measure == "is/tau"
    assert found.opening.above == pytest.approx(1.5, rel=1e-4)
    assert "presample: 16 of 80 loaded, or 16 while closed" in str(found)


def test_steps_from_one_presample_share_what_it_costs(kit, clock, listening):
    sampling = ImportanceSamplingCallback.paper(8, score_chunk_size=64)
    data = OversamplingDataModule(loader(clock, batch_size=8), 64, score_every=4)

    class Slow(LookUp):
        def training_step(self, batch, batch_idx):
            self.clock.now += 100.0  # whatever is in it
            return super().training_step(batch, batch_idx)

    (only,) = report(kit, sampling, Slow(clock), data).prospects
    assert only.sizes == (16, 8)
    assert only.score == pytest.approx((64 + 100) / 4)


def test_an_acceptance_scores_batches_until_one_is_full(kit, clock, listening):
    sampling = ImportanceSamplingCallback(
        scorer=Loss(), acceptance=LossPercentile(beta=3.0), gate=Window()
    )
    found = report(kit, sampling, LookUp(clock))
    (only,) = found.prospects
    assert only.sizes == (4 * B, B)
    assert (only.score, only.step) == pytest.approx((4.0 * B, 3.0 * B))
    assert found.opening is None
    assert "acceptance: 64 of about 256 scored" in str(found)


def test_of_a_source_alone_only_ordinary_steps_are_measured(kit, clock, listening):
    sampling = ImportanceSamplingCallback(source=PassSource(ImportanceSubset(0.5)))
    found = report(kit, sampling, LookUp(clock))
    assert (found.prospects, found.keep, found.limit) == ((), 0.5, 2.0)
    assert "source alone: ImportanceSubset" in str(found)
    assert "at most 2x by loading 50% a pass" in str(found)


def test_a_share_that_follows_the_scores_is_not_known_before(kit, clock, listening):
    sampling = ImportanceSamplingCallback(source=PassSource(ImportanceSubset("auto")))
    found = report(kit, sampling, LookUp(clock))
    assert (found.keep, found.limit) == (None, 1.0)


def test_two_stages_multiply(kit, clock, listening):
    data = OversamplingDataModule(loader(clock), keep=0.5)
    found = report(kit, ImportanceSamplingCallback(), LookUp(clock), data)
    assert found.limit == pytest.approx(2 * 3 * B / (B + 3 * 8))
    assert "two stages: 8, 16 or 32 of every 64 that ImportanceSubset loads" in str(
        found
    )


def test_a_source_whose_gain_nobody_knows_promises_none(kit, clock, listening):
    sampling = ImportanceSamplingCallback(
        scorer=Loss(), source=PassSource(Prioritized())
    )
    found = report(kit, sampling, LookUp(clock))
    assert (found.keep, found.limit) == (None, 1.0)


def test_accumulated_gradients_share_an_update(kit, clock, listening):
    module, data = LookUp(clock, update=8.0), loader(batch_size=16)
    sampling = ImportanceSamplingCallback()
    found = report(kit, sampling, module, data, accumulate_grad_batches=4)
    assert found.ordinary.compute == pytest.approx(3 * 16 + 2)


def test_the_first_update_makes_its_state_and_does_not_count(kit, clock, listening):
    class Slow(LookUp):
        def on_before_optimizer_step(self, optimizer):
            self.clock.now += 8.0 if self.global_step else 800.0

    found = report(kit, ImportanceSamplingCallback(), Slow(clock))
    assert found.ordinary.compute == pytest.approx(3 * B + 8)


def test_the_batches_that_workers_have_in_store_do_not_count(
    kit, clock, listening, monkeypatch
):
    """A fake clock stands still in another process: waits are made up here."""

    class Waiting(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            waits = [None, 0.0, 0.0]
            wait = waits[batch_idx] if batch_idx < 3 else 100.0
            monkeypatch.setattr(monitor.Timekeeper, "wait", wait)

    sampling = ImportanceSamplingCallback()
    data = loader(num_workers=1, persistent_workers=True, batch_size=8)
    quiet = {"log_every_n_steps": 10**9, "max_steps": 9}
    kit.trainer(Waiting(), sampling, **quiet).fit(LookUp(clock), data)
    found = sampling.diagnosis
    assert found.ordinary.wait == 100.0
    assert found.ordinary.is_loader_bound
    assert found.limit == 1.0
    assert any(
        "steps wait for the loader 81% of the time" in note for note in found.warnings
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_a_step_or_two_is_reported_on_all_the_same(kit, listening, steps):
    sampling = ImportanceSamplingCallback(4)
    found = report(
        kit, sampling, kit.Classifier(kit.mlp()), kit.loader(), max_steps=steps
    )
    assert found.ordinary.compute > 0


def test_the_report_is_short_and_printed_once(kit, listening, capsys):
    sampling = ImportanceSamplingCallback()
    found = report(kit, sampling, kit.Classifier(kit.mlp()), kit.loader(), max_steps=20)
    shown = capsys.readouterr().out
    assert shown.count("Importance sampling: what the first batches show") == 1
    assert str(found) in shown
    lines = str(found).splitlines()
    assert 7 <= len(lines) <= 12
    assert max(map(len, lines)) <= 120
    assert "net.2 (Linear), found; the loss is a mean over the examples" in lines[2]


@pytest.mark.parametrize("way", ["argument", "logger"])
def test_it_can_be_switched_off(kit, listening, caplog, capsys, monkeypatch, way):
    monkeypatch.setattr(doctoring, "Trials", None)  # nothing is measured either
    if way == "logger":
        caplog.set_level(logging.WARNING, "lightning.pytorch")
    sampling = ImportanceSamplingCallback(4, report=way == "logger")
    assert report(kit, sampling, kit.Classifier(kit.mlp()), kit.loader()) is None
    assert "Importance" not in capsys.readouterr().out


def test_the_next_fit_is_reported_on_anew(kit, listening):
    sampling = ImportanceSamplingCallback(4)
    first = report(kit, sampling, kit.Classifier(kit.mlp()), kit.loader())
    again = report(kit, sampling, kit.Classifier(kit.mlp()), kit.loader(batch_size=24))
    assert first.prospects[0].sizes == (12, 4)
    assert again.prospects[0].sizes == (24, 4)


def test_what_goes_wrong_in_measuring_costs_no_run(kit, listening, monkeypatch):
    def fail(self, course):
        raise RuntimeError("no room for 640 of them")

    monkeypatch.setattr(Trials, "run", fail)
    sampling, module = ImportanceSamplingCallback(4), kit.Classifier(kit.mlp())
    found = report(kit, sampling, module, kit.loader())
    assert found.ordinary is None
    assert "not measured: RuntimeError: no room for 640" in str(found)
    assert len(module.seen) == 8


@pytest.mark.parametrize("what", ["module", "part", "in place"])
def test_what_is_compiled_is_not_compiled_for_more_sizes(kit, what):
    module = kit.Classifier(kit.mlp())
    if what == "module":
        module = from_compiled(torch.compile(module, backend="eager"))
    elif what == "part":
        module.net = torch.compile(module.net, backend="eager")
    else:
        module.net.compile(backend="eager")
    assert host.is_compiled(module)
    assert not host.is_compiled(kit.Classifier(kit.mlp()))


# What stands in the way.


def notes(kit, module, data=None, sampling=None, **settings):
    sampling = ImportanceSamplingCallback(4) if sampling is None else sampling
    data = kit.loader() if data is None else data
    return "\n".join(report(kit, sampling, module, data, **settings).warnings)


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
        )


def test_batch_normalisation_in_train_mode(kit, listening):
    found = notes(kit, kit.Classifier(Normed()))
    assert "BatchNorm1d in train mode (1 of them)" in found
    assert "come from all 12 as they are scored" in found
    proxied = ImportanceSamplingCallback(4, proxy=kit.Classifier(kit.mlp()))
    assert "come from what is drawn" in notes(
        kit, kit.Classifier(Normed()), sampling=proxied
    )
    settled = kit.Classifier(Normed())
    settled.on_train_start = lambda: settled.net[1].eval()
    assert "BatchNorm" not in notes(kit, settled)


def test_a_frozen_backbone(kit, listening):
    module = kit.Classifier(kit.mlp())
    module.net[0].requires_grad_(False)
    assert "all but 27 of 83 parameters are frozen" in notes(kit, module)
    assert "frozen" not in notes(kit, kit.Classifier(kit.mlp()))


@pytest.mark.filterwarnings("ignore:The loss couples")
def test_a_loss_that_couples_its_examples(kit, listening):
    class Coupled(kit.Classifier):
        def training_step(self, batch, batch_idx):
            z = functional.normalize(self.net(batch[0]), dim=1)
            return -torch.log_softmax(z @ z.T / 0.1, 1).diagonal().mean()

    sampling = ImportanceSamplingCallback(4)
    found = report(kit, sampling, Coupled(kit.mlp()), kit.loader())
    assert found.loss == "coupled"
    assert "no unbiased estimate" in str(found)


@pytest.mark.parametrize(
    ("reduction", "loss"), [("mean", "mean"), ("sum", "sum")], ids=["mean", "sum"]
)
def test_means_are_told_from_sums(kit, listening, reduction, loss):
    class Reduced(kit.Classifier):
        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(
                self.net(batch[0]), batch[1], reduction=reduction
            )

    sampling = ImportanceSamplingCallback(4)
    found = report(kit, sampling, Reduced(kit.mlp(), lr=1e-3), kit.loader())
    assert found.loss == loss
    assert f"the loss is a {loss} over" in str(found)


def scheduled(kit, make, **config):
    class Scheduled(kit.Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": make(optimizer), **config},
            }

    return Scheduled(kit.mlp())


def test_a_schedule_by_epochs_matters_where_they_are_no_passes(kit, listening):
    def module(interval):
        return scheduled(
            kit, lambda o: torch.optim.lr_scheduler.StepLR(o, 5), interval=interval
        )

    source = {"sampling": ImportanceSamplingCallback(source=PassSource(Prioritized()))}
    assert "StepLR steps by epoch" in notes(kit, module("epoch"), **source)
    assert "StepLR" not in notes(kit, module("step"), **source)
    assert "StepLR" not in notes(kit, module("epoch"))
    cycled = OversamplingDataModule(kit.loader(batch_size=4), 12)
    paper = ImportanceSamplingCallback.paper(4)
    assert "StepLR steps by epoch" in notes(kit, module("epoch"), cycled, paper)


def test_a_schedule_that_watches_the_loss_of_drawn_examples(kit, listening):
    module = scheduled(
        kit, torch.optim.lr_scheduler.ReduceLROnPlateau, monitor="train/loss"
    )
    found = notes(kit, module)
    assert "ReduceLROnPlateau watches train/loss" in found
    module = scheduled(
        kit, torch.optim.lr_scheduler.ReduceLROnPlateau, monitor="val/size"
    )
    watched = {"max_epochs": 1, "max_steps": -1}
    trainer = kit.trainer(sampling := ImportanceSamplingCallback(4), **watched)
    trainer.fit(module, kit.loader(), kit.loader())
    assert not any("watches" in note for note in sampling.diagnosis.warnings)


def test_a_gate_that_opens_too_early(kit, clock, listening):
    def found(threshold, score):
        gate = TauGate(threshold)
        sampling = ImportanceSamplingCallback(16, gate=gate)
        return notes(kit, LookUp(clock, score=score), loader(clock), sampling)

    # Break-even is 4 (64 + 48) / 192 = 2.33, of which tau cannot be below the root.
    assert "opens at tau > 1.2, too early: nothing pays below 1.5" in found(1.2, 1.0)
    assert not found(1.6, 1.0)
    assert "where no draw can pay" in found(1.6, 2.9)


def test_a_loader_without_workers_that_takes_long(kit, clock, listening):
    found = notes(kit, LookUp(clock), loader(clock, load=2.0))
    assert "loading takes 40% of the time" in found
    assert "loading" not in notes(kit, LookUp(clock), loader(clock, load=0.5))


def test_steps_too_short_to_gain_anything(kit, clock, listening):
    short = LookUp(clock, score=1e-5, step=3e-5)
    assert "steps this short" in notes(kit, short, loader(clock))
    assert "steps this short" not in notes(kit, LookUp(clock), loader(clock))


# Nothing is disturbed.


class Sensitive(L.LightningModule):
    """Shows whatever a pass too many would leave behind.

    But for Python's random numbers, which the types' own checks draw from.
    """

    def __init__(self):
        super().__init__()
        self.net, self.accuracy = Normed(), MulticlassAccuracy(3)
        self.calls = 0

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 0 and self.current_epoch == 0:
            assert all(p.grad is None for p in self.parameters())

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.calls += 1
        x = x + 0.1 * np.random.rand()
        logits = self.net(x + 0.1 * torch.randn_like(x))
        self.accuracy(logits, y)
        loss = functional.cross_entropy(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def noisily(batch, indices):
    """Pick examples, and draw a random number that nobody expects."""
    np.random.rand()
    x, y = batch
    return len(y) if indices is None else [x[indices], y[indices]]


EXACT = {"costs": "assumed", "smoothing": 0.0}
METHODS = {
    "open": lambda: ImportanceSamplingCallback(4, gate=AlwaysOpen()),
    "closed": lambda: ImportanceSamplingCallback(4, gate=NeverOpen()),
    "gated": lambda: ImportanceSamplingCallback(gate=AdaptiveSize(**EXACT)),
    "source": lambda: ImportanceSamplingCallback(source=PassSource(Prioritized())),
    "two-stages": lambda: ImportanceSamplingCallback(
        4, gate=Warmup(6), source=PassSource(ImportanceSubset(0.5))
    ),
    "acceptance": lambda: ImportanceSamplingCallback(
        scorer=Loss(), acceptance=LossPercentile(), gate=AlwaysOpen()
    ),
    "cheap": lambda: ImportanceSamplingCallback(
        4, gate=AlwaysOpen(), score_precision="bf16", score_mode="train"
    ),
    "own-batches": lambda: ImportanceSamplingCallback(
        4, gate=AlwaysOpen(), index_fn=noisily
    ),
    "paper": lambda: ImportanceSamplingCallback.paper(12, tau_threshold=1.01),
}


def trained(kit, folder, method, *, reports, **settings):
    np.random.seed(0)
    torch.manual_seed(0)
    sampling, module = METHODS[method](), Sensitive()
    sampling._fit._settings.__dict__["report"] = reports
    data, sizes = kit.loader(shuffle=True), []
    if method == "paper":
        data = OversamplingDataModule(data, 36)

    class Sizes(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sizes.append(batch[0].tolist())

    logger = CSVLogger(folder)
    kit.trainer(
        sampling, Sizes(), logger=logger, max_epochs=3, log_every_n_steps=1, **settings
    ).fit(module, data)
    assert (sampling.diagnosis is not None) == reports
    log = (folder / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    names, *rows = (row.split(",") for row in log.splitlines())
    timed = names.index("is/score_time_share")
    state = sampling.state_dict()
    return {
        "module": [value.tolist() for value in module.state_dict().values()],
        "calls": module.calls,
        "batches": sizes,
        "logged": [row[:timed] + row[timed + 1 :] for row in rows],
        "gate": repr(state["gate"]),
        "source": repr(state.get("source")),
        "draws": [state["draws"], state["batches"], state["pending"]],
        "random": [np.random.rand(), torch.rand(()).item()],
    }


@pytest.mark.filterwarnings("ignore:Of 32 batches too few")
@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_same_to_the_last_bit(kit, tmp_path, listening, method):
    with_it = trained(kit, tmp_path / "a", method, reports=True)
    without = trained(kit, tmp_path / "b", method, reports=False)
    for name, value in with_it.items():
        assert value == without[name], name


def test_accumulated_gradients_are_left_alone(kit, tmp_path, listening):
    accumulated = {"accumulate_grad_batches": 3, "precision": "bf16-mixed"}
    with_it = trained(kit, tmp_path / "a", "open", reports=True, **accumulated)
    without = trained(kit, tmp_path / "b", "open", reports=False, **accumulated)
    assert with_it == without


def test_no_gate_is_told_of_what_the_doctor_timed(kit, clock, listening, monkeypatch):
    plain = EfficiencyGate.observe

    def told(*, reports):
        clock.now, gate, seen = 0.0, EfficiencyGate(), []

        def observe(self, evidence):
            if self is gate:
                seen.extend(evidence.timings)
            plain(self, evidence)

        monkeypatch.setattr(EfficiencyGate, "observe", observe)
        sampling = ImportanceSamplingCallback(16, gate=gate, report=reports)
        data = loader(clock, 0.5, batch_size=32)
        report(kit, sampling, LookUp(clock), data, max_steps=24)
        return seen

    seen = told(reports=True)
    assert seen == told(reports=False)
    assert seen


def test_it_takes_a_few_steps_at_most(kit, clock, listening):
    """Where steps are long: two rounds of one step, its scores and those drawn."""

    def taken(*, reports):
        clock.now = 0.0
        sampling = ImportanceSamplingCallback(report=reports)
        report(kit, sampling, LookUp(clock), max_steps=6)
        return clock.now

    more = (taken(reports=True) - taken(reports=False)) / (3 * B)
    assert more == pytest.approx(2 * (1 + 1 / 3 + 1 / 8 + 1 / 4 + 1 / 2))


@pytest.mark.parametrize("score", [2.9, 1.0])
def test_what_cannot_pay_is_said(kit, clock, listening, score):
    sampling = ImportanceSamplingCallback(16, gate=AlwaysOpen())
    found = str(report(kit, sampling, LookUp(clock, score=score)))
    if score > 2:  # 2.9 + 0.75 of 3
        assert "at most 0.82x; cannot pay" in found
        assert "none, as scoring costs too much here; the gate opens by itself" in found
    else:  # 1 + 0.75 of 3, times 4
        assert "at most 1.7x; pays when is/effective_batch > 2.3 of 4" in found
        assert "at most 1.7x by drawing, if few examples matter; the gate" in found


class Synchronised(L.Callback):
    """Checks in both processes."""

    def __init__(self, sampling):
        self.sampling = sampling

    def on_train_end(self, trainer, pl_module):
        found = self.sampling.diagnosis
        assert found.ordinary.compute > 0
        mine = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
        ranks = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(ranks, mine)
        assert torch.equal(*ranks)


def test_ranks_measure_together_and_one_speaks(kit, listening, capfd):
    """One hears nothing: it measures all the same, or the other would wait for it."""

    class Deaf(ImportanceSamplingCallback):
        def on_fit_start(self, trainer, pl_module):
            if trainer.global_rank:
                logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            super().on_fit_start(trainer, pl_module)

    class Asking(kit.Classifier):
        def training_step(self, batch, batch_idx):
            torch.distributed.barrier()  # in every pass
            return super().training_step(batch, batch_idx)

    sampling = Deaf(4, gate=AlwaysOpen())
    two = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 3}
    trainer = kit.trainer(sampling, Synchronised(sampling), **two)
    trainer.fit(Asking(kit.mlp()), kit.loader())
    assert capfd.readouterr().out.count("Importance sampling: what the first") == 1
