"""The engine's bookkeeping, seen from outside where that is possible."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is import (
    ImportanceSamplingCallback,
    OversamplingDataModule,
    SampledBatch,
)
from lightning_is.sampling import (
    AlwaysOpen,
    EfficiencyGate,
    ImportancePlan,
    NeverOpen,
    TauGate,
)
from lightning_is.scoring import Loss, UpperBound
from lightning_is.shadow import Shadow


class Each(L.Callback):
    """Calls a function at the end of every step."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.function(trainer, batch)


def telling(gate):
    """Keep what a gate is told, by shadowing its method."""
    told, observe = [], gate.observe
    gate.observe = lambda evidence: (told.append(evidence), observe(evidence))[1]
    return told


def sampled_loader(kit, weight, batches=4):
    x, y = kit.examples(12)
    batch = SampledBatch([x, y], torch.arange(12), weight)
    return DataLoader([batch] * batches, batch_size=None), x, y


def test_a_resumed_open_gate_gets_a_presample_as_its_first_batch(kit):
    sampling = ImportanceSamplingCallback.paper(4, 1.01)
    sampling.load_state_dict(
        sampling.state_dict() | {"gate": {"tau": 9.0, "threshold": 1.01}}
    )
    drawn = []
    trainer = kit.trainer(
        sampling, Each(lambda *_: drawn.append(sampling.is_sampling)), max_steps=2
    )
    data = OversamplingDataModule(kit.loader(batch_size=4), 12)
    trainer.fit(kit.Classifier(kit.mlp()), datamodule=data)
    assert drawn == [True, True]


def test_a_checkpoint_holds_the_evidence_of_its_own_step(kit):
    gate = TauGate(100.0)
    taus = []
    told = telling(gate)

    def look(trainer, batch):
        sampling.state_dict()
        taus.append((len(told), gate.tau))

    sampling = ImportanceSamplingCallback(4, gate=gate)
    kit.trainer(sampling, Each(look), log_every_n_steps=100).fit(
        kit.Classifier(kit.mlp()), kit.loader()
    )
    assert [count for count, _ in taus] == [1, 2, 3, 4]


def test_steps_between_logged_ones_do_not_read_back(kit):
    sampling, asked = ImportanceSamplingCallback(4, gate=AlwaysOpen()), []

    def look(trainer, batch):
        asked.append("is/tau" in trainer.callback_metrics)

    kit.trainer(sampling, Each(look), log_every_n_steps=3).fit(
        kit.Classifier(kit.mlp()), kit.loader()
    )
    assert asked == [False, False, True, True]


def test_no_logging_interval_means_no_logging(kit):
    trainer = kit.trainer(ImportanceSamplingCallback(4), log_every_n_steps=0)
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert "is/tau" not in trainer.callback_metrics


def test_ranks_draw_from_streams_of_their_own(kit):
    class Same(kit.Classifier):
        def train_dataloader(self):
            return kit.loader()  # the same batches on both ranks

    class Compare(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            everyone = [torch.empty_like(batch[0]) for _ in range(2)]
            torch.distributed.all_gather(everyone, batch[0])
            assert not torch.equal(everyone[0], everyone[1])
            last = trainer.callbacks[0]._fit.engine.ledger.last
            assert last is None or last.presample_size == 12

    kit.trainer(
        ImportanceSamplingCallback(4, gate=AlwaysOpen()),
        Compare(),
        strategy="ddp_fork",
        devices=2,
        use_distributed_sampler=False,
    ).fit(Same(kit.mlp()))


@pytest.mark.parametrize("when_closed", ["all", "subset"])
def test_weights_of_an_earlier_draw_count_while_the_gate_is_closed(kit, when_closed):
    weight = torch.linspace(0.2, 2.5, 12)
    data, x, y = sampled_loader(kit, weight, batches=600)
    net = kit.mlp()
    losses = functional.cross_entropy(net(x), y, reduction="none")
    full = -0.1 * torch.autograd.grad((losses * weight).mean(), net[2].bias)[0]
    start = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    bias, moves = net[2].bias.detach().clone(), []

    def back(trainer, batch):
        moves.append(net[2].bias.detach() - bias)
        nn.utils.vector_to_parameters(start.clone(), net.parameters())

    sampling = ImportanceSamplingCallback(4, gate=NeverOpen(), when_closed=when_closed)
    kit.trainer(sampling, Each(back), log_every_n_steps=1000).fit(
        kit.Classifier(net), data
    )
    moves = torch.stack(moves)
    error = moves.std(0) / len(moves) ** 0.5
    assert ((moves.mean(0) - full).abs() <= 4 * error + 1e-6).all()


@pytest.mark.parametrize("gate", [AlwaysOpen(), NeverOpen()], ids=["open", "closed"])
def test_evidence_of_a_weighted_batch_is_that_of_weighted_scores(kit, gate):
    weight = torch.linspace(0.2, 2.5, 12)
    data, x, y = sampled_loader(kit, weight)
    net = kit.mlp()
    with torch.no_grad():
        scores = (net(x).softmax(1) - functional.one_hot(y, 3)).norm(dim=1) * weight
    told = telling(gate)
    trainer = kit.trainer(ImportanceSamplingCallback(4, gate=gate), max_steps=1)
    trainer.fit(kit.Classifier(net), data)
    expected = ImportancePlan().effective_batch(scores, 4).item()
    assert told[0].effective_batch == pytest.approx(expected, rel=1e-4)
    # Of a batch that is not uniform no honest mean is known.
    assert "is/presample_loss" not in trainer.callback_metrics


def test_a_closed_presampling_step_predicts_for_the_whole_presample(kit):
    """From b scores: the draw of b out of B is that of a share b / B of them."""
    net, gate = kit.mlp(), NeverOpen()
    told = telling(gate)
    data = OversamplingDataModule(kit.loader(batch_size=12), 48)
    sampling = ImportanceSamplingCallback(12, gate=gate)
    x, y = next(iter(kit.loader(batch_size=12)))
    with torch.no_grad():
        scores = (net(x).softmax(1) - functional.one_hot(y, 3)).norm(dim=1)
    kit.trainer(sampling, max_steps=1).fit(kit.Classifier(net), datamodule=data)
    expected = ImportancePlan().effective_batch(scores, 3).item()
    assert told[0].effective_batch == pytest.approx(expected, rel=1e-4)
    assert (told[0].presample_size, told[0].batch_size) == (48, 12)


def test_a_random_step_that_keeps_a_tensor_carries_no_state(kit):
    class Noisy(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.kept = x + torch.randn_like(x)
            return super().training_step((self.kept, y), batch_idx)

    module = Noisy(kit.mlp())
    kit.trainer(ImportanceSamplingCallback(4, gate=AlwaysOpen())).fit(
        module, kit.loader()
    )
    assert module.seen == [4] * 4


def test_a_shadow_gives_back_what_was_there():
    class Thing:
        def method(self):
            return "class"

    plain, patched = Thing(), Thing()
    patched.method = lambda: "instance"
    for thing, before in ((plain, "class"), (patched, "instance")):
        shadow = Shadow(thing, "method", lambda: "shadow")
        assert (thing.method(), shadow.original()) == ("shadow", before)
        shadow.undo()
        assert thing.method() == before
    assert "method" not in vars(plain)


def test_a_head_of_another_network_is_refused(kit):
    sampling = ImportanceSamplingCallback(4, head=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must name a part of Classifier"):
        kit.trainer(sampling).fit(kit.Classifier(kit.mlp()), kit.loader())


def test_batches_of_exactly_the_batch_size_leave_nothing_to_draw_from(kit):
    batches = DataLoader(list(kit.loader()), batch_size=None)
    with pytest.raises(ValueError, match="batches of at most 12"):
        kit.trainer(ImportanceSamplingCallback(12)).fit(
            kit.Classifier(kit.mlp()), batches
        )


def test_too_large_a_batch_size_is_refused_before_the_first_step(kit):
    module = kit.Classifier(kit.mlp())
    with pytest.raises(ValueError, match="batches of at most 12"):
        kit.trainer(ImportanceSamplingCallback(12)).fit(module, kit.loader())
    assert module.seen == []


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
def test_a_batch_that_is_none_passes(kit):
    batches = DataLoader([None, *kit.loader()], batch_size=None)
    module = kit.Classifier(kit.mlp())
    kit.trainer(ImportanceSamplingCallback(4, gate=AlwaysOpen())).fit(module, batches)
    assert module.seen == [4] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 2.5}, "at least 1, got 2.5"),
        ({"batch_size": "8"}, "at least 1, got '8'"),
        ({"batch_size": True}, "at least 1, got True"),
    ],
    ids=str,
)
def test_a_batch_size_is_a_whole_number(settings, message):
    from lightning_is.settings import Settings

    check = Settings.__post_init__
    odd = object.__new__(Settings)
    for name, value in settings.items():
        object.__setattr__(odd, name, value)
    with pytest.raises(ValueError, match=message):
        check(odd)


def test_a_gate_whose_case_is_clear_looks_at_every_sixteenth_step(kit):
    """What it is told stands for the steps in between, and forgets as fast."""
    gate = EfficiencyGate("assumed", backward_cost=0.01, smoothing=0.9)  # never opens
    told = telling(gate)
    kit.trainer(
        ImportanceSamplingCallback(4, gate=gate), max_epochs=12, log_every_n_steps=1000
    ).fit(kit.Classifier(kit.mlp(), lr=0.0), kit.loader())
    assert [evidence.steps for evidence in told] == [4, 16, 16]
    expected = 0.0
    for evidence in told:
        kept = 0.9**evidence.steps
        expected = kept * expected + (1 - kept) * evidence.effective_batch
    assert gate.state_dict()["gain_b"] == pytest.approx(expected)


def test_steps_that_nobody_looks_at_are_not_watched(kit):
    """Not even the gradient at the head is kept, which the scores are read off."""
    watched = []

    class Noting(UpperBound):
        def observing(self, tap):
            watched.append(True)
            return super().observing(tap)

    gate = EfficiencyGate("assumed", backward_cost=0.01)
    kit.trainer(
        ImportanceSamplingCallback(4, gate=gate, scorer=Noting()),
        max_epochs=12,
        log_every_n_steps=1000,
    ).fit(kit.Classifier(kit.mlp(), lr=0.0), kit.loader())
    assert 3 <= len(watched) <= 5  # of 48; those around a logged step may be


def test_logged_steps_are_looked_at_whatever_the_gate(kit):
    gate = EfficiencyGate("assumed", backward_cost=0.01, smoothing=0.9)
    told = telling(gate)
    kit.trainer(
        ImportanceSamplingCallback(4, gate=gate), max_epochs=3, log_every_n_steps=3
    ).fit(kit.Classifier(kit.mlp()), kit.loader())
    assert [evidence.steps for evidence in told] == [3, 3, 3, 3]


def test_random_numbers_of_numpy_are_those_of_plain_training(kit):
    class Drawing(kit.Classifier):
        def __init__(self, net):
            super().__init__(net)
            self.noted = []

        def training_step(self, batch, batch_idx):
            self.noted.append(np.random.rand())
            return super().training_step(batch, batch_idx)

    def drawn(*callbacks):
        np.random.seed(3)
        module = Drawing(kit.mlp())
        kit.trainer(*callbacks).fit(module, kit.loader())
        return module.noted

    assert drawn(ImportanceSamplingCallback(4, gate=AlwaysOpen())) == drawn()


@pytest.mark.parametrize(
    ("backward_cost", "steps"), [(100.0, [4, 16, 16]), (2.0, [4] * 12)]
)
def test_an_open_efficiency_gate_looks_often_where_it_is_a_close_call(
    kit, backward_cost, steps
):
    gate = EfficiencyGate("assumed", backward_cost, smoothing=0.999)
    gain = 5.0 if backward_cost > 2 else 2.2  # break-even: (12 + 12) / 12
    gate.load_state_dict({"gain_b": gain, "place": 1.0, "cost": 1.0, "is_settled": 0.0})
    told = telling(gate)
    module = kit.Classifier(kit.mlp(), lr=0.0)
    kit.trainer(
        ImportanceSamplingCallback(4, gate=gate), max_epochs=12, log_every_n_steps=1000
    ).fit(module, kit.loader())
    assert module.seen == [4] * 48
    assert [evidence.steps for evidence in told] == steps


@pytest.mark.parametrize("own", [False, True])
def test_a_resumed_run_looks_at_the_steps_that_the_whole_one_looks_at(
    kit, tmp_path, own
):
    """Every sixteenth step, or every tenth if the losses are the user's own."""

    def losses(module, batch):
        logits = module.net(batch[0])
        return functional.cross_entropy(logits, batch[1], reduction="none")

    def looks(epochs, ckpt=None):
        torch.manual_seed(0)
        gate = EfficiencyGate("assumed", backward_cost=0.01)  # never opens
        told = telling(gate)
        mine = {"scorer": Loss(), "per_sample_loss": losses} if own else {}
        trainer = kit.trainer(
            ImportanceSamplingCallback(4, gate=gate, **mine),
            max_epochs=epochs,
            limit_train_batches=3,
            log_every_n_steps=1000,
        )
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader(), ckpt_path=ckpt)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return [round(3 * evidence.epochs) for evidence in told]

    whole = looks(20)
    looks(5)
    assert looks(20, tmp_path / "last.ckpt") == [step for step in whole if step > 15]
