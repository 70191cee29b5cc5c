"""What would be silently wrong is refused, mended or said aloud."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.sampling import AlwaysOpen, NeverOpen, Warmup
from lightning_is.scoring import Loss


def opened(batch_size=4, **settings):
    return ImportanceSamplingCallback(batch_size, gate=AlwaysOpen(), **settings)


def fit(kit, module, data=None, *, sampling=None, **settings):
    trainer = kit.trainer(sampling or opened(), **settings)
    trainer.fit(module, kit.loader() if data is None else data)
    return trainer


def step_of(kit, function, net=None):
    """A user's module whose training step is ``function(self, x, y)``."""

    class Module(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return function(self, x, y)

    return Module(kit.mlp() if net is None else net)


def plain(self, x, y):
    return functional.cross_entropy(self.net(x), y)


# Parameters that would escape the weights.


def test_a_second_head_in_training_only_is_found(kit):
    """Both heads are weighted: on average the update is the presample's."""

    def step(self, x, y):
        hidden = self.net[1](self.net[0](x))
        loss = functional.cross_entropy(self.net[2](hidden), y)
        if self.training:
            loss = loss + self.other(hidden).mean()
        return loss

    module = step_of(kit, step)
    module.other = nn.Linear(8, 1)
    start, sampling, weights = module.other.bias.item(), opened(), []

    class Peek(L.Callback):
        def on_train_batch_end(self, *args):
            weights.append(sampling._fit.engine._step.weights)

    kit.trainer(sampling, Peek(), max_steps=1).fit(module, kit.loader())
    moved = (start - module.other.bias.item()) / 0.1
    assert moved == pytest.approx(weights[0].mean().item(), rel=1e-5)
    assert moved != pytest.approx(1, abs=1e-3)


def test_a_term_that_joins_the_loss_later_is_refused(kit):
    def step(self, x, y):
        loss = plain(self, x, y)
        if self.global_step >= 5:
            loss = loss + self.other(x).square().mean()
        return loss

    module = step_of(kit, step)
    module.other = nn.Linear(6, 1)
    with pytest.raises(RuntimeError, match=r"escapes the weights, got other\.weight"):
        fit(kit, module, max_epochs=4)


def test_a_temperature_behind_a_head_of_zeros_is_refused_in_time(kit):
    def step(self, x, y):
        return functional.cross_entropy(self.net(x) * self.temperature, y)

    module = step_of(kit, step)
    nn.init.zeros_(module.net[2].weight)
    nn.init.zeros_(module.net[2].bias)
    module.temperature = nn.Parameter(torch.tensor(0.5))
    with pytest.raises(RuntimeError, match="got temperature beside it"):
        fit(kit, module, max_epochs=4)


def test_losses_of_ones_own_do_not_hide_a_second_head(kit):
    def step(self, x, y):
        return plain(self, x, y) + self.other(x).square().mean()

    def losses(module, batch):
        return functional.cross_entropy(
            module.net(batch[0]), batch[1], reduction="none"
        )

    module = step_of(kit, step)
    module.other = nn.Linear(6, 1)
    sampling = opened(head="net.2", per_sample_loss=losses)
    with pytest.raises(RuntimeError, match=r"other\.weight"):
        fit(kit, module, sampling=sampling)


def test_heads_that_feed_one_another_are_refused_when_given_too(kit):
    with pytest.raises(RuntimeError, match="must lie side by side"):
        fit(kit, kit.Classifier(kit.mlp()), sampling=opened(head=["net.0", "net.2"]))


def test_a_reparametrised_head_is_found(kit):
    net = kit.mlp()
    net[2] = weight_norm(nn.Linear(8, 3, bias=False))
    module = kit.Classifier(net)
    fit(kit, module)
    assert module.seen == [4] * 4


# Steps that are not as they seem.


@pytest.mark.parametrize("gate", [AlwaysOpen(), NeverOpen()], ids=["open", "closed"])
def test_a_step_may_write_to_its_batch(kit, gate):
    """It scores on copies: training sees each example written to once."""

    def in_place(self, x, y):
        return functional.cross_entropy(self.net(x.mul_(0.5)), y)

    def plainly(self, x, y):
        return functional.cross_entropy(self.net(x * 0.5), y)

    found = []
    for step in (in_place, plainly):
        torch.manual_seed(0)
        module = step_of(kit, step)
        fit(kit, module, sampling=ImportanceSamplingCallback(4, gate=gate))
        found.append(nn.utils.parameters_to_vector(module.parameters()))
    assert torch.equal(*found)


def test_a_step_that_begins_to_write_later_is_refused(kit):
    def step(self, x, y):
        return functional.cross_entropy(
            self.net(x.mul_(0.5) if self.global_step else x), y
        )

    with pytest.raises(RuntimeError, match="got one that began later"):
        fit(kit, step_of(kit, step))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_may_skip_the_batches_at_which_the_head_is_checked_again(kit):
    class Skipping(kit.Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 9 else super().training_step(batch, batch_idx)

    module = Skipping(kit.mlp())
    fit(kit, module, kit.loader(144))
    assert module.seen == [4] * 11


def test_odd_attributes_are_left_alone(kit):
    """Configurations that cannot be read, inference tensors, lists in themselves."""
    module = kit.Classifier(kit.mlp())
    module.cfg = OmegaConf.create({"path": "???", "other": "${nope}"})
    module.endless = []
    module.endless.append(module.endless)
    with torch.inference_mode():
        module.register_buffer("sample", torch.ones(3))
        module.plain = torch.ones(3)
    fit(kit, module)
    assert module.seen == [4] * 4


def test_small_batches_and_scoring_as_in_training_make_no_fuss(kit):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    module = kit.Classifier(net)
    fit(kit, module, sampling=opened(2, score_mode="train"))
    assert module.seen == [2] * 4


def test_a_step_may_take_its_batch_apart(kit):
    class Popping(kit.Classifier):
        def training_step(self, batch, batch_idx):
            y = batch.pop("y")
            return super().training_step((batch["x"], y), batch_idx)

    def collate(rows):
        x, y = torch.utils.data.default_collate(rows)
        return {"x": x, "y": y}

    module = Popping(kit.mlp())
    fit(kit, module, kit.loader(collate_fn=collate))
    assert module.seen == [4] * 4


def test_hidden_state_in_buffers_and_dicts_is_refused(kit):
    def buffered(self, x, y):
        z = self.net(x)
        loss = functional.cross_entropy(z + self.memory, y)
        self.memory.copy_(z.detach().mean(0))
        return loss

    def nested(self, x, y):
        z = self.net(x)
        loss = functional.cross_entropy(z + self._kept.get("z", 0), y)
        self._kept["z"] = z.detach()
        return loss

    for step, name in ((buffered, "memory"), (nested, "_kept")):
        module = step_of(kit, step)
        module.register_buffer("memory", torch.zeros(3))
        module._kept = {}
        with pytest.raises(RuntimeError, match=f"from the last one: .*{name}"):
            fit(kit, module)


def test_counters_in_buffers_and_submodules_count_trained_steps_alone(kit):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("replaced", torch.zeros(2))

        def forward(self, x):
            self.calls += 1
            self.count += 1
            self.replaced = self.replaced + 1
            return x

    counting = Counting()
    module = kit.Classifier(nn.Sequential(counting, *kit.mlp()))
    fit(kit, module)
    assert (counting.calls, counting.count.item()) == (4, 4)
    assert counting.replaced.tolist() == [4, 4]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_summed_loss_keeps_its_scale_when_fewer_are_drawn(kit, reduce):
    """The step of b of B has the size, on average, of the step of all B."""

    def step(self, x, y):
        return functional.cross_entropy(self.net(x), y, reduction=reduce)

    x, y = kit.examples(12)
    data = DataLoader(TensorDataset(x, y), batch_size=12)
    net = kit.mlp()
    module = step_of(kit, step, copy.deepcopy(net))
    loss = functional.cross_entropy(net(x), y, reduction=reduce)
    full = -0.1 * torch.autograd.grad(loss, net[2].bias)[0]

    moves = []
    for seed in range(150):
        module.load_state_dict({f"net.{k}": v for k, v in net.state_dict().items()})
        fit(kit, module, data, sampling=opened(seed=seed))
        moves.append((module.net[2].bias - net[2].bias).detach())
    moves = torch.stack(moves)
    error = moves.std(0) / len(moves) ** 0.5
    assert ((moves.mean(0) - full).abs() <= 4 * error).all()


@pytest.mark.parametrize("when_closed", ["all", "subset"])
def test_open_steps_of_a_summed_loss_are_as_long_as_closed_ones(kit, when_closed):
    """Exactly, among examples that are all alike."""

    def step(self, x, y):
        return functional.cross_entropy(self.net(x), y, reduction="sum")

    x, y = torch.ones(12, 6), torch.zeros(12, dtype=torch.int64)
    data, net = DataLoader(TensorDataset(x, y), batch_size=12), kit.mlp()
    moves = []
    for gate in (AlwaysOpen(), NeverOpen()):
        module = step_of(kit, step, copy.deepcopy(net))
        sampling = ImportanceSamplingCallback(4, gate=gate, when_closed=when_closed)
        fit(kit, module, data, sampling=sampling)
        moves.append((module.net[2].bias - net[2].bias).detach())
    assert moves[0].norm() > 0.01
    torch.testing.assert_close(*moves)


def test_a_loss_that_couples_the_examples_is_said_aloud(kit):
    def step(self, x, y):
        z = self.net(x)
        return functional.cross_entropy(z @ z.T, torch.arange(len(x)))

    with pytest.warns(UserWarning, match="couples the examples"):
        fit(kit, step_of(kit, step))


def test_a_random_step_couples_nothing(kit):
    def step(self, x, y):
        return functional.cross_entropy(self.net(x + torch.randn_like(x)), y)

    fit(kit, step_of(kit, step))  # a warning would be an error


def test_heads_under_the_users_own_no_grad_do_not_count(kit):
    """A teacher's targets carry no gradient: open and closed scores agree."""

    def step(self, x, y):
        with torch.no_grad():
            target = self.net(x + 0.1).softmax(1)
        return functional.cross_entropy(self.net(x), target)

    taus = []
    for gate in (AlwaysOpen(), NeverOpen()):
        torch.manual_seed(0)
        sampling = ImportanceSamplingCallback(4, gate=gate)
        trainer = fit(kit, step_of(kit, step), sampling=sampling, max_steps=1)
        taus.append(float(trainer.callback_metrics["is/tau"]))
    assert taus[0] == pytest.approx(taus[1], rel=1e-4)


@pytest.mark.parametrize("flat", ["sequence", "views"])
def test_row_layouts_are_told_apart_by_a_head_of_zeros(kit, flat):
    """Scores are all equal at first: what the head is given tells the layout."""

    def step(self, x, y):
        if flat == "views":
            return functional.cross_entropy(self.net(torch.cat([x, -x])), y.repeat(2))
        rows = torch.stack([x, -x], 1).flatten(0, 1)
        return functional.cross_entropy(self.net(rows), y.repeat_interleave(2))

    module = step_of(kit, step)
    nn.init.zeros_(module.net[2].weight)
    nn.init.zeros_(module.net[2].bias)
    sampling = opened()
    layouts = []

    class Peek(L.Callback):
        def on_train_batch_end(self, *args):
            layouts.append(sampling._fit.engine._tap.stacked)

    trainer = kit.trainer(sampling, Peek())
    trainer.fit(module, kit.loader())
    assert layouts == [flat == "views"] * 4


def test_a_layout_that_losses_cannot_tell_is_refused(kit):
    def step(self, x, y):
        z = torch.cat([self.net(x), self.net(-x)])
        return functional.cross_entropy(z, y.repeat(2))

    module = step_of(kit, step)
    nn.init.zeros_(module.net[2].weight)
    nn.init.zeros_(module.net[2].bias)
    with pytest.raises(RuntimeError, match="do not tell their order"):
        fit(kit, module, sampling=opened(scorer=Loss()))


# Loaders, precision, resuming.


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_trains_in_both_phases(kit, precision):
    for gate in (AlwaysOpen(), NeverOpen()):
        module = kit.Classifier(kit.mlp())
        sampling = ImportanceSamplingCallback(4, gate=gate)
        trainer = fit(kit, module, sampling=sampling, precision=precision)
        assert float(trainer.callback_metrics["is/tau"]) > 1
        assert all(p.isfinite().all() for p in module.parameters())


def test_an_overflow_under_a_gradient_scaler_is_no_evidence(kit):
    """Scaled by 1e38 two backward passes overflow; then the scaler has backed off."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2**-60)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    gate = Warmup(100)
    steps, observe = [], gate.observe
    gate.observe = lambda evidence: steps.append(evidence.steps) or observe(evidence)
    sampling = ImportanceSamplingCallback(4, gate=gate)
    trainer = fit(kit, kit.Classifier(kit.mlp()), sampling=sampling, plugins=plugin)
    assert steps == [3, 1]
    assert float(trainer.callback_metrics["is/tau"]) > 1.01
    assert float(trainer.callback_metrics["is/skipped"]) == 0


def test_an_empty_training_loader_is_refused(kit):
    data = kit.loader(8, batch_size=12, drop_last=True)
    with (
        pytest.warns(UserWarning, match="Total length of"),
        pytest.raises(ValueError, match="batches, got none"),
    ):
        fit(kit, kit.Classifier(kit.mlp()), data)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
def test_a_checkpoint_of_the_middle_and_the_end_of_an_epoch_resumes(kit, tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path, filename="{step}", monitor="val/size", save_top_k=-1
    )
    data = kit.loader()
    trainer = kit.trainer(
        opened(), checkpoint, val_check_interval=2, enable_checkpointing=True
    )
    trainer.fit(kit.Classifier(kit.mlp()), data, data)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 2
    for path in saved:
        beside = ModelCheckpoint(tmp_path, filename="again", monitor="val/size")
        again = kit.trainer(
            opened(),
            beside,
            val_check_interval=2,
            max_epochs=2,
            enable_checkpointing=True,
        )
        again.fit(kit.Classifier(kit.mlp()), data, data, ckpt_path=path)
        assert again.global_step == 8


def test_a_reloaded_loader_knows_that_the_gate_is_open(kit):
    module, sampling = kit.Classifier(kit.mlp()), opened()
    data = OversamplingDataModule(kit.loader(batch_size=4), 12)
    seen = []
    trainer = kit.trainer(sampling, max_epochs=2, reload_dataloaders_every_n_epochs=1)

    class Peek(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(sampling.is_sampling)

    trainer.callbacks.append(Peek())
    trainer.fit(module, datamodule=data)
    assert all(seen)


def test_attributes_of_the_wrapped_data_module_show(kit):
    class Data(L.LightningDataModule):
        classes = 3

    assert OversamplingDataModule(Data(), 8).classes == 3
    with pytest.raises(AttributeError, match="nothing"):
        _ = OversamplingDataModule(Data(), 8).nothing
    copied = copy.deepcopy(OversamplingDataModule(Data(), 8))
    assert copied.classes == 3
