"""Styles of optimisation: whoever steps, and how, trains on the same draws."""

import copy
import pickle
from contextlib import suppress

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import ManualOptimBoringModel, RandomDataset
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, NeverOpen, TauGate
from lightning_is.sampling.subset import ImportanceSubset
from lightning_is.scoring import Loss, UpperBound


class Automatic(L.LightningModule):
    """The step as the Trainer would have it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def loss(self, batch):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Manual(Automatic):
    """The same, by hand."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class ZeroedAfterwards(Manual):
    def training_step(self, batch, batch_idx):
        optimizer, loss = self.optimizers(), self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss}


class ByAClosure(Manual):
    def training_step(self, batch, batch_idx):
        def closure():
            self.optimizers().zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


class Toggled(Manual):
    """Catches whatever goes wrong in its backward pass."""

    def training_step(self, batch):
        optimizer = self.optimizers()
        with optimizer.toggle_model():
            loss = self.loss(batch)
            optimizer.zero_grad()
            with suppress(Exception):
                self.manual_backward(loss)
            optimizer.step()
        return loss


class Bare(Manual):
    """Steps the optimizer that Lightning wrapped."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Rows(L.Callback):
    """Collects what was logged of each step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        row = {name: float(v) for name, v in trainer.logged_metrics.items()}
        row.pop("is/score_time_share", None)
        self.rows.append(row | {"step": trainer.global_step})


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def fitted(kit, kind, gate, *, data=None, scorer=None, **settings):
    """Return the parameters, the draws and what was logged of a run."""
    torch.manual_seed(0)
    module, rows = kind(kit.mlp()), Rows()
    sampling = ImportanceSamplingCallback(4, gate=gate(), scorer=scorer or UpperBound())
    trainer = kit.trainer(sampling, rows, **({"max_epochs": 2} | settings))
    trainer.fit(module, data or kit.loader())
    return parameters(module), sampling.state_dict(), rows.rows


def crossing():
    """Return a gate that opens in mid-run."""
    return TauGate(1.15, smoothing=0.5)


# Manual optimisation.


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen, crossing])
@pytest.mark.parametrize("kind", [Manual, ZeroedAfterwards, ByAClosure, Toggled])
def test_manual_optimisation_is_automatic_optimisation_by_hand(kit, kind, gate):
    """Parameters, draws, evidence, logs and counts of steps, bit for bit."""
    theirs, their_state, their_rows = fitted(kit, Automatic, gate)
    ours, our_state, our_rows = fitted(kit, kind, gate)
    assert torch.equal(ours, theirs)
    assert our_state == their_state
    assert our_rows == their_rows
    assert our_rows[-1]["step"] == 8
    assert {"is/tau", "is/open", "is/presample_loss"} <= our_rows[-1].keys()
    if gate is crossing:
        assert {row["is/open"] for row in our_rows} == {0.0, 1.0}


def test_the_wrapped_optimizer_may_be_stepped_itself(kit):
    ours, state, _ = fitted(kit, Bare, AlwaysOpen)
    theirs, expected, _ = fitted(kit, Automatic, AlwaysOpen)
    assert torch.equal(ours, theirs)
    assert state == expected


@pytest.mark.parametrize("scaled", [False, True], ids=["bf16", "scaler"])
def test_manual_optimisation_in_mixed_precision(kit, scaled):
    def precision():
        if not scaled:
            return {"precision": "bf16-mixed"}
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}

    for gate in (AlwaysOpen, NeverOpen):
        theirs = fitted(kit, Automatic, gate, **precision())
        ours = fitted(kit, Manual, gate, **precision())
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_manual_optimisation_by_the_loss(kit):
    theirs = fitted(kit, Automatic, crossing, scorer=Loss())
    ours = fitted(kit, Manual, crossing, scorer=Loss())
    assert torch.equal(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_accumulation_by_hand_is_that_of_the_trainer(kit, gate):
    """Gradients that lie ready for the next step survive the scoring passes."""

    class Accumulating(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            if batch_idx % 2 == 0:
                optimizer.zero_grad()
            self.manual_backward(self.loss(batch) / 2)
            if batch_idx % 2 == 1:
                optimizer.step()

    ours, state, rows = fitted(kit, Accumulating, gate)
    theirs, expected, their_rows = fitted(
        kit, Automatic, gate, accumulate_grad_batches=2
    )
    torch.testing.assert_close(ours, theirs)
    assert state["draws"] == expected["draws"]
    assert [row["step"] for row in rows] == [row["step"] for row in their_rows]
    for ours_then, theirs_then in zip(rows[1::2], their_rows[1::2], strict=True):
        assert ours_then["is/tau"] == pytest.approx(theirs_then["is/tau"])


def test_scoring_leaves_gradients_and_schedules_alone(kit):
    """What a step does before its backward pass is done once: when it trains."""

    class Scheduled(Manual):
        def training_step(self, batch, batch_idx):
            self.lr_schedulers().step()
            self.had.append(self.net[0].weight.grad is not None)
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(batch))
            self.optimizers().step()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    module = Scheduled(kit.mlp())
    module.had = []
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen())
    trainer = kit.trainer(sampling)
    with pytest.warns(UserWarning, match="lr_scheduler.step.*before"):
        trainer.fit(module, kit.loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**4)
    assert module.had == [False, True, True, True]
    assert trainer.global_step == 4


def test_lbfgs_by_hand_draws_once_and_is_read_at_its_first_evaluation(kit):
    """Its closure runs several times a step, each time on the same weighted draw."""

    class Quasi(ByAClosure):
        evaluations = 0

        def loss(self, batch):
            self.evaluations += 1
            return super().loss(batch)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    class QuasiAutomatic(Automatic):
        configure_optimizers = Quasi.configure_optimizers

    theirs, expected, _ = fitted(kit, QuasiAutomatic, AlwaysOpen)
    ours, state, _ = fitted(kit, Quasi, AlwaysOpen)
    torch.testing.assert_close(ours, theirs)
    assert state["draws"] == expected["draws"] == 8

    for scorer in (UpperBound(), Loss()):
        _, _, rows = fitted(kit, Quasi, NeverOpen, scorer=scorer, max_steps=1)
        _, _, plain = fitted(kit, Automatic, NeverOpen, scorer=scorer, max_steps=1)
        _, _, auto = fitted(kit, QuasiAutomatic, NeverOpen, scorer=scorer, max_steps=1)
        assert auto[0]["is/tau"] == pytest.approx(plain[0]["is/tau"])
        names = "is/tau", "is/presample_loss"
        assert [rows[0][n] for n in names] == pytest.approx(
            [plain[0][n] for n in names]
        )

    module = Quasi(kit.mlp())
    kit.trainer(max_steps=1).fit(module, kit.loader())
    assert module.evaluations > 2


def test_a_summed_loss_is_told_from_how_it_is_handed_over(kit):
    """A vector of losses and a gradient of ones is their sum: steps stay as long."""

    class Summed(Automatic):
        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])
            return 0.01 * functional.cross_entropy(z, batch[1], reduction="sum")

    class Vector(Manual):
        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])
            losses = 0.01 * functional.cross_entropy(z, batch[1], reduction="none")
            self.optimizers().zero_grad()
            self.manual_backward(losses, torch.ones_like(losses))
            self.optimizers().step()

    theirs, ours = fitted(kit, Summed, AlwaysOpen), fitted(kit, Vector, AlwaysOpen)
    torch.testing.assert_close(ours[0], theirs[0])


def test_a_source_weights_steps_by_hand(kit):
    def run(kind):
        torch.manual_seed(0)
        module = kind(kit.mlp())
        source = PassSource(ImportanceSubset(0.5))
        sampling = ImportanceSamplingCallback(source=source)
        kit.trainer(sampling, max_epochs=3).fit(module, kit.loader())
        return parameters(module)

    assert torch.equal(run(Manual), run(Automatic))


def test_a_step_by_hand_may_skip(kit):
    class Skipping(Manual):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                super().training_step(batch, batch_idx)

    _, state, rows = fitted(kit, Skipping, AlwaysOpen, max_epochs=1)
    assert state["draws"] == 2
    assert rows[-1]["step"] == 2


def test_boring_manual_module_trains(kit):
    module = ManualOptimBoringModel()
    sampling = ImportanceSamplingCallback(2, gate=AlwaysOpen())
    trainer = kit.trainer(sampling)
    trainer.fit(module, DataLoader(RandomDataset(32, 24), batch_size=8))
    assert trainer.global_step == 3
    assert sampling.state_dict()["draws"] == 3


def refused(kit, kind, message):
    module = kind(kit.mlp())
    sampling = ImportanceSamplingCallback(4, gate=NeverOpen())
    trainer = kit.trainer(sampling)
    with pytest.raises(RuntimeError, match=message):
        trainer.fit(module, kit.loader())
    assert trainer.global_step <= 1
    left_alone(module)


def left_alone(module):
    assert "manual_backward" not in vars(module)
    for way in (True, False):
        found = module.optimizers(use_pl_optimizer=way)
        for optimizer in found if isinstance(found, list) else [found]:
            assert {"step", "zero_grad"}.isdisjoint(vars(optimizer))


def test_several_losses_in_one_step_are_refused(kit):
    class Two(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            super().training_step(batch, batch_idx)

    class TwoInAClosure(Manual):
        def training_step(self, batch, batch_idx):
            def closure():
                self.manual_backward(self.loss(batch))
                self.manual_backward(self.loss(batch))

            self.optimizers().step(closure)

    class TwoClosures(ByAClosure):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            super().training_step(batch, batch_idx)

    for kind in (Two, TwoInAClosure, TwoClosures):
        refused(kit, kind, "one loss of a step, got a second.*Add the losses up")


def test_several_optimizers_are_refused_before_the_first_batch(kit):
    class Two(Manual):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            parts = (self.net[0].parameters(), self.net[2].parameters())
            return [torch.optim.SGD(part, lr=0.1) for part in parts]

    refused(kit, Two, r"one optimizer, got 2 of them \(SGD, SGD\).*parameter groups")


@pytest.mark.parametrize("bare", [False, True])
def test_a_backward_pass_around_lightning_is_refused(kit, bare):
    """The optimizer must not step in a step that is only scored."""

    class Direct(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=not bare)
            self.loss(batch).backward()
            optimizer.step()

    module = Direct(kit.mlp())
    before = parameters(module)
    trainer = kit.trainer(ImportanceSamplingCallback(4, gate=AlwaysOpen()))
    with pytest.raises(RuntimeError, match=r"from `manual_backward`.*in place of"):
        trainer.fit(module, kit.loader())
    assert torch.equal(parameters(module), before)
    left_alone(module)


def test_manual_optimisation_leaves_nothing_behind(kit):
    module = Manual(kit.mlp())
    trainer = kit.trainer(ImportanceSamplingCallback(4, gate=AlwaysOpen()))
    trainer.fit(module, kit.loader())
    left_alone(module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, kit.loader())
    pickle.dumps(copy.deepcopy(module.net))
    left_alone(module)


# Automatic optimisation.


def test_accumulation_weights_every_batch_by_its_own_draw(kit):
    """Two batches and one step: the mean of their weighted gradients."""
    torch.manual_seed(0)
    net = kit.mlp()
    halves = fitted_gradients(kit, copy.deepcopy(net), 1)
    together = fitted_gradients(kit, net, 2)
    torch.testing.assert_close(together[0], (halves[0] + halves[1]) / 2)


def fitted_gradients(kit, net, accumulate):
    """Return the gradient of each step of a run that does not move."""

    class Still(Automatic):
        def on_before_optimizer_step(self, optimizer):
            rows = [p.grad.flatten() for p in self.parameters()]
            found.append(torch.cat(rows))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    found = []
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen())
    kit.trainer(sampling, accumulate_grad_batches=accumulate).fit(
        Still(net), kit.loader()
    )
    return found


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_accumulation_changes_no_evidence(kit, gate):
    """Scores of a run that does not move, however many batches make a step."""

    class Still(Automatic):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def taus(accumulate):
        settings = {"accumulate_grad_batches": accumulate, "max_epochs": 1}
        rows = fitted(kit, Still, gate, **settings)[2]
        return [row["is/tau"] for row in rows[1::2]]

    assert taus(1) == pytest.approx(taus(2))
