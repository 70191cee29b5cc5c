"""Draws are measured when they should be, without a trace, or refused at once."""

import gc
import weakref

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is.experiments.variance import measuring, observer
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.draws import arms
from lightning_is.experiments.variance.measuring import Measurer
from lightning_is.experiments.variance.observer import VarianceObserver, spaced
from lightning_is.sampling import Proportional
from lightning_is.sampling.randomness import draw_generator
from tests.experiments.gradients import single_gradients

SIZE, DRAWN = 36, 9
ENDLESS = {"max_epochs": -1, "log_every_n_steps": 10**9}


class Busy(L.LightningModule):
    """Has all that a pass could change: statistics, dropout, counters, augmentation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(8, 3),
        )
        self.steps = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x + 0.1 * torch.randn_like(x) * np.random.rand(), y

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.steps += 1
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def busy_run(kit, *observers, **settings):
    torch.manual_seed(3)
    np.random.seed(3)
    module = Busy()
    trainer = kit.trainer(*observers, max_epochs=2, **settings)
    trainer.fit(module, DataLoader(TensorDataset(*kit.examples()), 12, shuffle=True))
    streams = torch.rand(3).tolist(), float(np.random.rand())
    logged = {k: float(v) for k, v in trainer.logged_metrics.items()}
    return module.state_dict(), streams, logged, module.steps


def observing(kit, *, steps=(0, 1, 3), keep=lambda _: None, **design):
    return VarianceObserver(
        kit.examples(SIZE),
        Design(**{"batch_size": DRAWN, "repeats": 2, **design}),
        steps=list(steps),
        keep=keep,
    )


def fit(kit, watch, module=None, **settings):
    trainer = kit.trainer(watch, **{"max_steps": 3, **ENDLESS, **settings})
    trainer.fit(module or kit.Classifier(kit.mlp()), kit.loader())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_measuring_changes_nothing_in_the_fit(kit, accumulated):
    watch = observing(kit)
    settings = {"accumulate_grad_batches": accumulated}
    state, *plain = busy_run(kit, **settings)
    seen_state, *seen = busy_run(kit, watch, **settings)
    assert plain == seen
    assert all(torch.equal(state[name], seen_state[name]) for name in state)
    last = 8 // accumulated
    assert [found.step for found in watch.measurements] == [0, 1, 3, last]


def test_what_is_measured_follows_from_the_seed_and_the_step_alone(kit):
    runs = {}
    for name, steps, seed in (
        *(("one", (0, 1, 3), 0), ("again", (0, 1, 3), 0)),
        *(("fewer", (3,), 0), ("other", (3,), 1)),
    ):
        watch = observing(kit, steps=steps, seed=seed)
        busy_run(kit, watch)
        runs[name] = {found.step: found.rows for found in watch.measurements}
    assert runs["one"] == runs["again"]
    assert runs["one"][3] == runs["fewer"][3] != runs["other"][3]


def test_no_two_draws_are_made_by_the_same_numbers(kit, monkeypatch):
    used = []

    def noted(seed, rank, counter):
        used.append((seed, rank, counter))
        return draw_generator(seed, rank, counter)

    monkeypatch.setattr(measuring, "draw_generator", noted)
    fit(kit, observing(kit))
    assert len(used) == len(set(used)) == 3 * len(arms(Proportional())) * 2
    assert {(seed, rank) for seed, rank, _ in used} == {(0, 0)}


def test_networks_that_normalise_and_drop_are_measured_as_in_evaluation(kit):
    module, batch = Busy().eval(), kit.examples(SIZE)
    single = single_gradients(module.net, *batch)
    module.train()
    module.on_after_batch_transfer = lambda batch, _: batch
    watch = observing(kit, steps=(0,))
    fit(kit, watch, module, max_steps=1)
    found = watch.measurements[0]
    assert found.norm == pytest.approx(float(single.mean(0).norm()), rel=1e-4)
    expected = single.norm(dim=1) / single.norm(dim=1).sum()
    torch.testing.assert_close(
        found.probabilities["gradient_norm"], expected, rtol=1e-3, atol=1e-6
    )


def test_the_module_hooks_of_a_batch_are_called_on_what_is_measured(kit):
    module = Busy()
    module.on_after_batch_transfer = lambda batch, _: (0 * batch[0], 0 * batch[1])
    watch = observing(kit, steps=(0,))
    fit(kit, watch, module, max_steps=1)
    p = watch.measurements[0].probabilities["loss"]
    torch.testing.assert_close(p, torch.full_like(p, 1 / SIZE))


def test_nothing_of_the_fit_is_kept_afterwards(kit, monkeypatch):
    module, watch, made = kit.Classifier(kit.mlp()), observing(kit), []

    def noted(*args, **settings):
        measurer = Measurer(*args, **settings)
        made.append(weakref.ref(measurer))
        return measurer

    monkeypatch.setattr(observer, "Measurer", noted)
    fit(kit, watch, module, max_steps=4)
    assert not any(part._forward_hooks for part in module.modules())
    gc.collect()
    assert watch.measurements
    assert [kept() for kept in made] == [None]


def test_each_measurement_is_handed_over_as_soon_as_it_is_made(kit):
    handed, module = [], Busy()

    def keep(found):
        handed.append((module.steps, [each.step for each in found]))

    watch = observing(kit, keep=keep)
    fit(kit, watch, module, max_steps=4)
    assert handed == [(0, [0]), (1, [0, 1]), (3, [0, 1, 3]), (4, [0, 1, 3, 4])]


def test_steps_are_spaced_by_their_logarithm_and_end_with_the_run(kit):
    assert spaced(2340, 8) == [23, 45, 87, 168, 325, 628, 1212, 2340]
    assert spaced(50, 1) == [50]
    watch = VarianceObserver(
        kit.examples(SIZE), Design(batch_size=DRAWN, repeats=1), points=3
    )
    fit(kit, watch, max_steps=20)
    assert [found.step for found in watch.measurements] == [1, 2, 20]


# What is refused


def test_steps_beyond_the_run_are_refused(kit):
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\].*got \[5, -1\]"):
        fit(kit, observing(kit, steps=(1, 5, -1)))


def test_a_run_without_end_is_refused(kit):
    with pytest.raises(ValueError, match="needs an end"):
        fit(kit, observing(kit), max_steps=-1, max_time={"seconds": 5})


def test_several_processes_are_fit(kit, monkeypatch):
    class Grown(L.Callback):
        def on_train_start(self, trainer, pl_module):
            monkeypatch.setattr(L.Trainer, "world_size", 2)

    trainer = kit.trainer(Grown(), observing(kit), max_steps=3, **ENDLESS)
    with pytest.raises(RuntimeError, match=r"one process, got a Trainer with 2"):
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader())


def test_coarse_numbers_are_refused(kit):
    with pytest.raises(RuntimeError, match=r"full precision, got `bf16-mixed`"):
        fit(kit, observing(kit), precision="bf16-mixed")


class Peeking(Busy):
    """Looks at its loss, which only one backward pass at a time allows."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() > 0 else 2 * loss


def test_a_step_that_gradients_cannot_be_taken_of_is_refused_before_the_run(kit):
    module = Peeking()
    with pytest.raises(RuntimeError, match="item"):
        fit(kit, observing(kit, steps=(3,)), module)
    assert module.trainer.global_step == 0


def test_any_step_is_measured_by_a_loop(kit):
    module, plain = Peeking(), Busy()
    plain.load_state_dict(module.state_dict())
    norms = []
    for each, way in ((module, "loop"), (plain, "vmap")):
        each.on_after_batch_transfer = lambda batch, _: batch
        watch = observing(kit, steps=(0,), norms=way)
        fit(kit, watch, each, max_steps=1)
        norms.append(watch.measurements[0].probabilities["gradient_norm"])
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("sum", lambda z, y: functional.cross_entropy(z, y, reduction="sum")),
        ("coupled", lambda z, y: functional.cross_entropy(z - z.mean(0), y)),
    ],
)
@pytest.mark.filterwarnings("ignore:The loss couples the examples")
def test_losses_that_are_no_mean_of_single_ones_are_fit(kit, kind, loss):
    module = kit.Classifier(kit.mlp())
    module.training_step = lambda batch, batch_idx: loss(module.net(batch[0]), batch[1])
    with pytest.raises(ValueError, match=f"must be a mean.*kind `{kind}`"):
        fit(kit, observing(kit), module)


def test_a_step_without_a_loss_is_refused(kit):
    module = kit.Classifier(kit.mlp())
    module.training_step = lambda batch, batch_idx: None
    with pytest.raises(RuntimeError, match="got None"):
        fit(kit, observing(kit), module)
