"""The callback through the Trainer: what it draws, and what it leaves alone."""

import copy
import dataclasses
import pickle
from collections import UserDict
from typing import NamedTuple

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.sampling import (
    AlwaysOpen,
    EfficiencyGate,
    Evidence,
    ImportancePlan,
    Multinomial,
    NeverOpen,
    PowerWeights,
    Proportional,
    TauGate,
    Warmup,
)
from lightning_is.sampling.randomness import draw_generator
from lightning_is.scoring import Loss, UpperBound


def opened(batch_size=4, **settings):
    return ImportanceSamplingCallback(batch_size, gate=AlwaysOpen(), **settings)


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def upper_bounds(net, x, y):
    with torch.no_grad():
        p = net(x).softmax(1)
        return (p - functional.one_hot(y, p.shape[1])).norm(dim=1)


# What a step trains on.


def test_trim_equals_a_hand_written_loop(kit):
    """Score, draw, weight, step: the same parameters after an epoch of it."""
    plan, batches = ImportancePlan(), list(kit.loader())
    net = kit.mlp()
    module = kit.Classifier(copy.deepcopy(net))
    kit.trainer(opened(seed=3)).fit(module, kit.loader())

    for step, (x, y) in enumerate(batches):
        scores = upper_bounds(net, x, y)
        drawn = plan.draw(scores, 4, generator=draw_generator(3, 0, step))
        z = net(x[drawn.indices])
        losses = functional.cross_entropy(z, y[drawn.indices], reduction="none")
        net.zero_grad()
        (losses * drawn.weights).mean().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad

    torch.testing.assert_close(parameters(module), parameters(net))


def test_the_paper_preset_is_algorithm_1(kit):
    """Line by line, over both phases, with tau from 0 and a threshold it crosses."""
    net, threshold, presample = kit.mlp(), 1.1, 12
    module = kit.Classifier(copy.deepcopy(net))
    sampling = ImportanceSamplingCallback.paper(4, threshold)
    data = OversamplingDataModule(kit.loader(96, batch_size=4), presample)
    kit.trainer(sampling, max_epochs=2).fit(module, datamodule=data)

    x_all, y_all = kit.examples(96)
    tau, draws, phases = 0.0, 0, []
    for _ in range(2):
        position = 0
        for _ in range(96 // 4):
            is_open = tau > threshold
            size = presample if is_open else 4
            index = torch.arange(position, position + size) % 96
            position += size
            x, y = x_all[index], y_all[index]
            scores = upper_bounds(net, x, y)
            g = scores / scores.sum()
            weights = torch.ones(4)
            if is_open:
                generator = draw_generator(0, 0, draws)
                drawn = Multinomial()(g, 4, generator=generator).indices
                x, y, weights = x[drawn], y[drawn], 1 / (presample * g[drawn])
                draws += 1
            losses = functional.cross_entropy(net(x), y, reduction="none")
            net.zero_grad()
            (losses * weights).mean().backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
            tau = 0.9 * tau + 0.1 * (len(g) * g.square().sum()).sqrt().item()
            phases.append(is_open)

    assert set(phases) == {False, True}
    assert module.seen[-1] == 4
    # Rounding grows over 48 steps; one draw missed moves the parameters by 0.1.
    torch.testing.assert_close(parameters(module), parameters(net), atol=1e-3, rtol=0)
    assert sampling.gate.tau == pytest.approx(tau, rel=1e-4)


def test_a_closed_gate_changes_nothing_bit_for_bit(kit):
    """Not the parameters, not the random stream, with dropout and batch norm."""

    def train(*callbacks):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )
        module = kit.Classifier(net)
        kit.trainer(*callbacks, max_epochs=2).fit(module, kit.loader(shuffle=True))
        return module

    plain = train()
    closed = train(ImportanceSamplingCallback(4, gate=NeverOpen()))

    for name, value in plain.state_dict().items():
        assert torch.equal(value, closed.state_dict()[name]), name


def test_a_closed_gate_trains_on_all_or_on_a_uniform_subset(kit):
    for when_closed, size in (("all", 12), ("subset", 4)):
        module = kit.Classifier(kit.mlp())
        sampling = ImportanceSamplingCallback(
            4, gate=NeverOpen(), when_closed=when_closed
        )
        kit.trainer(sampling).fit(module, kit.loader())
        assert module.seen[-4:] == [size] * 4


def test_the_uniform_subset_is_uniform_and_never_the_same(kit):
    class Noting(kit.Classifier):
        def training_step(self, batch, batch_idx):
            self.noted.append(batch[0][:, 0])
            return super().training_step(batch, batch_idx)

    module = Noting(kit.mlp())
    module.noted = []
    sampling = ImportanceSamplingCallback(4, gate=NeverOpen(), when_closed="subset")
    kit.trainer(sampling, max_epochs=300).fit(module, kit.loader(12))

    column = kit.examples(12)[0][:, 0].tolist()
    trained = [values for values in module.noted if len(values) == 4][-300:]
    counts = torch.zeros(12)
    for values in trained:
        picked = [column.index(v) for v in values.tolist()]
        assert len(set(picked)) == 4
        counts[picked] += 1
    deviations = (counts - 100) / (300 * (1 / 3) * (2 / 3)) ** 0.5
    assert deviations.abs().max() < 4


def test_the_gate_is_told_of_every_step_in_both_phases(kit):
    told: list[Evidence] = []
    gate = Warmup(2)
    observe = gate.observe
    gate.observe = lambda evidence: (told.append(evidence), observe(evidence))[1]
    module = kit.Classifier(kit.mlp())
    kit.trainer(ImportanceSamplingCallback(4, gate=gate)).fit(module, kit.loader())

    assert module.seen[-4:] == [12, 12, 4, 4]
    assert len(told) == 4
    assert all(e.presample_size == 12 and e.batch_size == 4 for e in told)
    assert all(1 < e.tau < 12**0.5 for e in told)


def test_closed_and_open_steps_see_the_same_tau(kit):
    """Free scores of a uniform step equal those of a scoring pass on its batch."""

    def first_evidence(gate):
        sampling = ImportanceSamplingCallback(4, gate=gate)
        seen = []
        observe = gate.observe
        gate.observe = lambda e: (seen.append(e), observe(e))[1]
        torch.manual_seed(0)
        module = kit.Classifier(kit.mlp())
        kit.trainer(sampling, max_steps=1).fit(module, kit.loader())
        return seen[0]

    closed, free = first_evidence(AlwaysOpen()), first_evidence(NeverOpen())
    assert closed.tau == pytest.approx(free.tau, rel=1e-5)
    assert closed.effective_batch == pytest.approx(free.effective_batch, rel=1e-5)


# Batches of any structure.


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


STRUCTURES = {
    "list": (lambda x, y: [x, y], lambda b: b),
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "named-tuple": (Pair, lambda b: (b.x, b.y)),
    "dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
    "user-dict": (lambda x, y: UserDict(x=x, y=y), lambda b: (b["x"], b["y"])),
    "dataclass": (Record, lambda b: (b.x, b.y)),
    "tensor": (
        lambda x, y: torch.cat([x, y[:, None]], 1),
        lambda b: (b[:, :-1], b[:, -1]),
    ),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_of_any_structure_are_trimmed_alike(kit, structure):
    wrap, unwrap = STRUCTURES[structure]

    class Module(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = unwrap(batch)
            return super().training_step((x, y.long()), batch_idx)

    def collate(rows):
        x, y = torch.utils.data.default_collate(rows)
        return wrap(x, y)

    torch.manual_seed(0)
    module = Module(kit.mlp())
    kit.trainer(opened()).fit(module, kit.loader(collate_fn=collate))
    torch.manual_seed(0)
    reference = kit.Classifier(kit.mlp())
    kit.trainer(opened()).fit(reference, kit.loader())

    assert module.seen[-1] == 4
    torch.testing.assert_close(parameters(module), parameters(reference))


def test_index_fn_counts_and_picks_from_time_first_batches(kit):
    class TimeFirst(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch  # (T, n, 6) and (n,)
            return super().training_step((x.mean(0), y), batch_idx)

    def index_fn(batch, indices):
        if indices is None:
            return batch[0].shape[1]
        return [batch[0][:, indices], batch[1][indices]]

    def collate(rows):
        x, y = torch.utils.data.default_collate(rows)
        return [torch.stack([x, x, x]), y]

    module = TimeFirst(kit.mlp())
    kit.trainer(opened(index_fn=index_fn)).fit(module, kit.loader(collate_fn=collate))
    assert module.seen == [4] * 4


# Optimisation, and what stands beside it.


def test_gradient_accumulation_draws_every_micro_batch(kit):
    module = kit.Classifier(kit.mlp())
    sampling = opened()
    trainer = kit.trainer(sampling, accumulate_grad_batches=2, gradient_clip_val=0.5)
    trainer.fit(module, kit.loader())
    assert trainer.global_step == 2
    assert sampling.state_dict()["draws"] == 4


def test_lbfgs_draws_once_per_batch(kit):
    class Quasi(kit.Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    module, sampling = Quasi(kit.mlp()), opened()
    kit.trainer(sampling).fit(module, kit.loader())
    assert sampling.state_dict()["draws"] == 4
    assert module.seen[-4:].count(4) >= 3  # one scoring pass, several closures

    gate = TauGate(1.01, smoothing=0.0)
    module, sampling = Quasi(kit.mlp()), ImportanceSamplingCallback(4, gate=gate)
    kit.trainer(sampling, max_steps=1).fit(module, kit.loader())
    assert gate.tau > 1


def test_validation_test_predict_and_sanity_see_whole_batches(kit):
    class Module(kit.Classifier):
        def __init__(self, net):
            super().__init__(net)
            self.others = []

        def validation_step(self, batch, batch_idx):
            self.others.append(len(batch[0]))
            return batch[1]

        test_step = predict_step = validation_step

    module = Module(kit.mlp())
    trainer = kit.trainer(opened(), num_sanity_val_steps=1, val_check_interval=2)
    data = kit.loader()
    trainer.fit(module, data, data)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert set(module.others) == {12}
    assert len(module.others) == 1 + 2 * 4 + 4 + 4


def test_metrics_of_the_user_see_the_trained_examples_alone(kit):
    class Module(kit.Classifier):
        def __init__(self, net):
            super().__init__(net)
            self.count = torchmetrics.SumMetric()
            self.outputs, self.steps = [], 0

        def training_step(self, batch, batch_idx):
            self.count(float(len(batch[0])))
            self.outputs.append(len(batch[0]))
            self.steps += 1
            return super().training_step(batch, batch_idx)

    module = Module(kit.mlp())
    kit.trainer(opened()).fit(module, kit.loader())
    assert module.count.compute() == 4 * 4
    assert module.outputs == [4] * 4
    assert module.steps == 4


def test_batch_norm_takes_its_statistics_from_the_presample(kit):
    """With a learning rate of 0 the buffers are those of uniform training."""

    def train(*callbacks):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        module = kit.Classifier(nn.Sequential(net, nn.Dropout(), nn.Linear(8, 3)), lr=0)
        kit.trainer(*callbacks).fit(module, kit.loader())
        return net[1]

    plain, sampled = train(), train(opened())
    torch.testing.assert_close(sampled.running_mean, plain.running_mean)
    torch.testing.assert_close(sampled.running_var, plain.running_var)
    assert sampled.num_batches_tracked == plain.num_batches_tracked == 4
    assert sampled.track_running_stats


def test_the_weighted_step_normalises_by_the_drawn_batch(kit):
    """Frozen statistics must not turn batch norm into its evaluation form."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    means = []
    net[1].register_forward_hook(
        lambda m, a, out: means.append((len(out), out.mean(0)))
    )
    kit.trainer(opened()).fit(kit.Classifier(net, lr=0), kit.loader())
    trained = [mean for size, mean in means[-8:] if size == 4]
    assert len(trained) == 4
    assert all(mean.abs().max() < 1e-5 for mean in trained)


# Before and after.


def test_it_fits_twice_and_leaves_nothing_behind(kit):
    module, sampling = kit.Classifier(kit.mlp()), opened()
    trainer = kit.trainer(sampling)
    strategy_before = set(vars(trainer.strategy))
    trainer.fit(module, kit.loader())
    again = kit.trainer(sampling, max_epochs=1)
    again.fit(module, kit.loader())

    assert module.seen[-1] == 4
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(again.strategy))
    assert set(vars(trainer.strategy)) - strategy_before == set()
    assert not any(part._forward_hooks for part in module.modules())
    assert "log" not in vars(module)
    pickle.loads(pickle.dumps(module.net))  # noqa: S301
    copied = copy.deepcopy(module)
    assert torch.equal(parameters(copied), parameters(module))
    assert copied.training_step.__self__ is copied
    pickle.loads(pickle.dumps(sampling))  # noqa: S301


def test_an_exception_in_the_middle_leaves_nothing_behind(kit):
    class Failing(kit.Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    module = Failing(nn.Sequential(kit.mlp(), nn.BatchNorm1d(3)))
    trainer = kit.trainer(opened())
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, kit.loader())
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(trainer.strategy))
    assert not any(part._forward_hooks for part in module.modules())
    assert module.net[1].track_running_stats
    assert module.training
    assert "log" not in vars(module)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_skips_is_skipped(kit):
    class Skipping(kit.Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx in (0, 2) else loss

    module, sampling = Skipping(kit.mlp()), opened()
    kit.trainer(sampling).fit(module, kit.loader())
    assert sampling.state_dict()["draws"] == 2


def test_a_resumed_run_equals_an_uninterrupted_one(kit, tmp_path):
    def fresh():
        torch.manual_seed(0)
        sampling = ImportanceSamplingCallback(4, gate=TauGate(1.1, smoothing=0.5))
        return kit.Classifier(kit.mlp()), sampling

    whole, sampling = fresh()
    kit.trainer(sampling, max_epochs=4).fit(whole, kit.loader())

    first, before = fresh()
    trainer = kit.trainer(before, max_epochs=2)
    trainer.fit(first, kit.loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]
    assert stored["ImportanceSamplingCallback"]["draws"] > 0

    second, after = fresh()
    kit.trainer(after, max_epochs=4).fit(
        second, kit.loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert torch.equal(parameters(second), parameters(whole))
    assert after.state_dict() == sampling.state_dict()


def test_a_checkpoint_without_the_callback_resumes(kit, tmp_path):
    plain = kit.trainer()
    plain.fit(kit.Classifier(kit.mlp()), kit.loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    module, sampling = kit.Classifier(kit.mlp()), opened()
    kit.trainer(sampling, max_epochs=2).fit(
        module, kit.loader(), ckpt_path=tmp_path / "plain.ckpt"
    )
    assert sampling.state_dict()["draws"] == 4


def test_a_checkpoint_of_a_newer_version_is_refused():
    sampling = opened()
    with pytest.raises(ValueError, match="version 3 or older, got 9"):
        sampling.load_state_dict(sampling.state_dict() | {"version": 9})


def test_draws_depend_on_the_seed_alone(kit):
    def train(seed, disturb):
        torch.manual_seed(0)
        module = kit.Classifier(kit.mlp())
        if disturb:
            module.on_train_batch_start = lambda *_: torch.rand(3) is None
        kit.trainer(opened(seed=seed)).fit(module, kit.loader())
        return parameters(module)

    assert torch.equal(train(0, False), train(0, True))
    assert not torch.equal(train(0, False), train(1, False))


# Modules of others, and options.


def test_boring_model_trains(kit):
    model, sampling = BoringModel(), opened(1)
    data = DataLoader(torch.randn(16, 32), batch_size=4)
    kit.trainer(sampling, limit_val_batches=0).fit(model, data)
    assert sampling.state_dict()["draws"] == 4


def test_lightning_transformer_trains(kit):
    class NoDownload(LightningTransformer):
        def prepare_data(self):
            pass

    tokens = torch.randint(50, (16, 9))
    data = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=8)
    model, sampling = NoDownload(vocab_size=50), opened(2)
    before = parameters(model)
    kit.trainer(sampling, max_epochs=2).fit(model, data)
    assert sampling.state_dict()["draws"] == 4
    assert not torch.equal(parameters(model), before)


@pytest.mark.parametrize("head", ["net.2", "module", ["net.2"]], ids=str)
def test_the_head_may_be_named(kit, head):
    torch.manual_seed(0)
    module = kit.Classifier(kit.mlp())
    chosen = module.net[2] if head == "module" else head
    kit.trainer(opened(head=chosen)).fit(module, kit.loader())
    torch.manual_seed(0)
    found = kit.Classifier(kit.mlp())
    kit.trainer(opened()).fit(found, kit.loader())
    assert torch.equal(parameters(module), parameters(found))


def test_the_loss_scorer_draws_by_the_loss(kit):
    plan = ImportancePlan(Proportional(), Multinomial(), PowerWeights())
    net = kit.mlp()
    module = kit.Classifier(copy.deepcopy(net))
    kit.trainer(opened(scorer=Loss(), plan=plan), max_steps=1).fit(module, kit.loader())

    x, y = next(iter(kit.loader()))
    losses = functional.cross_entropy(net(x), y, reduction="none")
    drawn = plan.draw(losses.detach(), 4, generator=draw_generator(0, 0, 0))
    weighted = losses[drawn.indices] * drawn.weights
    gradients = torch.autograd.grad(weighted.mean(), list(net.parameters()))
    expected = parameters(net) - 0.1 * nn.utils.parameters_to_vector(gradients)
    torch.testing.assert_close(parameters(module), expected)


def test_losses_of_ones_own_replace_the_steps_for_scoring(kit):
    asked = []

    def losses(module, batch):
        asked.append(len(batch[0]))
        return functional.cross_entropy(
            module.net(batch[0]), batch[1], reduction="none"
        )

    gate = Warmup(1)
    sampling = ImportanceSamplingCallback(
        4, scorer=Loss(), gate=gate, per_sample_loss=losses
    )
    module = kit.Classifier(kit.mlp())
    kit.trainer(sampling).fit(module, kit.loader())
    assert module.seen == [12, 4, 4, 4]  # the step itself never scores
    assert asked[-4:] == [12, 12, 12, 12]  # one closed step probed, three scored


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_scoring_has_dropout_only_in_train_mode(kit, mode):
    states = []
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    net[1].register_forward_hook(lambda m, a, out: states.append(m.training))
    kit.trainer(opened(score_mode=mode), max_steps=1).fit(
        kit.Classifier(net), kit.loader()
    )
    assert states[-2:] == [mode == "train", True]


def test_a_learning_rate_schedule_is_as_long_as_before(kit):
    class Scheduled(kit.Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.LinearLR(
                optimizer, 1.0, 0.0, total_iters=self.total
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Scheduled(kit.mlp())
    data = OversamplingDataModule(kit.loader(48, batch_size=4), 16)
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen())
    trainer = kit.trainer(sampling, max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert module.total == trainer.global_step == 24
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_two_processes_agree(kit):
    """Two ranks with different data: equal gates, equal parameters."""
    sampling = ImportanceSamplingCallback(2, gate=TauGate(1.1, smoothing=0.5))
    trainer = kit.trainer(
        sampling, AgreeingRanks(), strategy="ddp_fork", devices=2, max_epochs=3
    )
    module = kit.Classifier(kit.mlp())
    before = parameters(module)
    trainer.fit(module, kit.loader(batch_size=6))
    assert not torch.equal(parameters(module), before)


def test_two_processes_with_batches_of_different_sizes_agree(kit):
    class Uneven(kit.Classifier):
        def train_dataloader(self):
            return kit.loader(batch_size=(6, 12)[self.trainer.global_rank])

    sampling = ImportanceSamplingCallback(
        2, gate=EfficiencyGate("assumed", 20.0, smoothing=0.9, margin=0.0)
    )
    trainer = kit.trainer(
        sampling,
        AgreeingRanks(),
        strategy="ddp_fork",
        devices=2,
        max_steps=40,
        max_epochs=-1,
        limit_train_batches=4,
        use_distributed_sampler=False,
    )
    trainer.fit(Uneven(kit.mlp()))


class AgreeingRanks(L.Callback):
    """Raises in both processes unless gate, draws and parameters are the same."""

    def on_train_end(self, trainer, pl_module):
        sampling = trainer.callbacks[0]
        state = sampling.state_dict()
        mine = [*state["gate"].values(), float(state["draws"])]
        mine = torch.cat([torch.tensor(mine), parameters(pl_module)])
        everyone = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(everyone, mine)
        assert torch.equal(everyone[0], everyone[1])
        assert 0 < state["draws"] < trainer.global_step


def test_two_importance_callbacks_are_one_too_many(kit):
    with pytest.raises(RuntimeError, match="more than one"):
        kit.trainer(opened(), opened()).fit(kit.Classifier(kit.mlp()), kit.loader())


def test_the_trainer_of_another_does_not_sample(kit):
    """A Tuner swaps the callbacks; then the batch passes whole."""

    class Leaves(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.callbacks = [self]

    module = kit.Classifier(kit.mlp())
    kit.trainer(opened(), Leaves()).fit(module, kit.loader())
    assert module.seen == [12] * 4


@pytest.mark.parametrize("twice", [False, True], ids=["one-call", "two-calls"])
@pytest.mark.parametrize("scorer", [UpperBound(), Loss()], ids=["upper-bound", "loss"])
def test_two_views_stacked_are_scored_example_by_example(kit, scorer, twice):
    """Rows of an example lie a whole batch apart, in the logits or in the loss."""

    class TwoViews(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            if twice:
                z = torch.cat([self.net(x), self.net(-x)])
            else:
                z = self.net(torch.cat([x, -x]))
            return functional.cross_entropy(z, y.repeat(2))

    net = kit.mlp()
    plan = ImportancePlan(Proportional(), Multinomial(), PowerWeights())
    module = TwoViews(copy.deepcopy(net))
    kit.trainer(opened(scorer=scorer, plan=plan), max_steps=1).fit(module, kit.loader())

    x, y = next(iter(kit.loader()))
    z = torch.stack([net(x), net(-x)])
    losses = functional.cross_entropy(
        z.transpose(1, 2), y.repeat(2, 1), reduction="none"
    )
    scores = losses.mean(0)
    if scorer == UpperBound():
        errors = z.softmax(2) - functional.one_hot(y, 3)
        scores = errors.square().sum((0, 2)).sqrt()
    drawn = plan.draw(scores.detach(), 4, generator=draw_generator(0, 0, 0))
    weighted = losses.mean(0)[drawn.indices] * drawn.weights
    gradients = torch.autograd.grad(weighted.mean(), list(net.parameters()))
    expected = parameters(net) - 0.1 * nn.utils.parameters_to_vector(gradients)
    torch.testing.assert_close(parameters(module), expected, atol=1e-5, rtol=1e-4)
