"""A step whose scores are not finite goes on: uniform, no evidence, counted, said."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.sampling import (
    AlwaysOpen,
    ImportancePlan,
    ImportanceSubset,
    LossPercentile,
    Multinomial,
    NeverOpen,
    RankExponential,
    Shuffled,
    TauGate,
    UnitWeights,
    Warmup,
    Window,
)
from lightning_is.scoring import Loss, UpperBound
from lightning_is.scoring.scorer import Scored

NAN, INF = float("nan"), float("inf")
N, BATCH = 24, 6
SKIP = pytest.mark.filterwarnings("ignore:Scores must be finite, got")


class Numbered(L.LightningModule):
    """Example ``i`` has ``i`` as its first feature; remembers what it trained on."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.head, self.lr = nn.Linear(2, 3), lr
        self.now, self.seen = torch.empty(0), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.now = x[:, 0].long()
        self.seen.append(self.now.tolist())
        return functional.cross_entropy(self.head(x / N), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Flaky:
    """Scores some examples by a number that is no score; their loss is fine."""

    def __init__(self, module, *bad, value=NAN, scorer=None):
        self.module, self.bad, self.value = module, torch.tensor(bad), value
        self.inner = scorer or UpperBound()

    def spoil(self, scores):
        return scores.masked_fill(torch.isin(self.module.now, self.bad), self.value)

    def score(self, step, tap, examples):
        scores, loss = self.inner.score(step, tap, examples)
        return Scored(self.spoil(scores), loss)

    def observing(self, tap):
        inner, spoil = self.inner.observing(tap), self.spoil

        class Watch:
            def __enter__(self):
                read = inner.__enter__()
                return lambda examples: spoil(read(examples))

            def __exit__(self, *problem):
                return inner.__exit__(*problem)

        return Watch()


class Peek(L.Callback):
    """Looks at the weights of every step, and at what the gate is told."""

    def __init__(self, sampling):
        self.sampling, self.weights, self.told = sampling, [], []
        observe = sampling.gate.observe
        sampling.gate.observe = lambda found: self.told.append(found) or observe(found)

    def on_train_batch_end(self, *args):
        self.weights.append(self.sampling._fit.engine._step.weights)


def numbered(n=N, size=BATCH):
    x = torch.stack([torch.arange(n).float(), torch.ones(n)], 1)
    return DataLoader(TensorDataset(x, torch.arange(n) % 3), batch_size=size)


def fit(
    kit, *bad, module=None, data=None, value=NAN, scorer=None, resumed=None, **settings
):
    """Fit with a flaky scorer; ``ours`` are settings of the callback."""
    module = module or Numbered()
    ours = {"gate": AlwaysOpen(), "batch_size": 2} | settings.pop("ours", {})
    flaky = Flaky(module, *bad, value=value, scorer=scorer)
    sampling = ImportanceSamplingCallback(scorer=flaky, **ours)
    peek = Peek(sampling)
    trainer = kit.trainer(sampling, peek, **settings)
    data = numbered() if data is None else data
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
    return trainer, sampling, module, peek


@SKIP
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_the_run_goes_on_and_counts_the_steps(kit, gate, value):
    trainer, sampling, module, _ = fit(
        kit, 3, 13, value=value, ours={"gate": gate()}, max_epochs=3
    )
    assert trainer.global_step == 12
    assert float(trainer.callback_metrics["is/skipped"]) == 6
    assert sampling.state_dict()["skipped"] == 6
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_run_without_such_scores_counts_none(kit):
    trainer, *_ = fit(kit)
    assert float(trainer.callback_metrics["is/skipped"]) == 0


def test_it_is_said_once(kit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(kit, 3, 4, max_epochs=2)
    said = [str(w.message) for w in caught if "must be finite" in str(w.message)]
    assert len(said) == 1
    assert "got 2 that are not" in said[0]
    assert 'bad_scores="raise"' in said[0]


@SKIP
@pytest.mark.parametrize(
    "plan",
    [
        ImportancePlan(),
        ImportancePlan(RankExponential(1000.0)),
        ImportancePlan(RankExponential(1000.0), Multinomial(), UnitWeights()),
    ],
    ids=["default", "by_position", "with_replacement"],
)
def test_a_skipped_step_trains_on_a_uniform_draw(kit, plan):
    """Also by a plan that ranks equal scores by their position."""
    steps = 150
    data = DataLoader(list(numbered(BATCH)) * steps, batch_size=None)
    *_, module, peek = fit(
        kit,
        0,
        module=Numbered(lr=0.0),
        data=data,
        ours={"plan": plan},
        log_every_n_steps=10**9,
    )
    assert all(torch.equal(weights, torch.ones(2)) for weights in peek.weights)
    drawn = torch.tensor(module.seen).flatten().bincount(minlength=BATCH).double()
    expected = 2 * steps / BATCH
    error = (2 * steps / BATCH * (1 - 1 / BATCH)) ** 0.5
    assert ((drawn - expected).abs() < 4 * error).all()


@SKIP
@pytest.mark.parametrize("gate", [AlwaysOpen, lambda: Warmup(100)])
def test_the_gate_is_told_of_the_other_steps_alone(kit, gate):
    """The next evidence stands for a skipped step as well; what it says is its own."""
    told = []
    for bad in ((), (7,)):
        torch.manual_seed(0)
        *_, peek = fit(kit, *bad, module=Numbered(lr=0.0), ours={"gate": gate()})
        told.append(peek.told)
    assert [found.steps for found in told[0]] == [1, 1, 1, 1]
    assert [found.steps for found in told[1]] == [1, 2, 1]  # the second was skipped
    assert [f.tau for f in told[1]] == [told[0][i].tau for i in (0, 2, 3)]


@SKIP
def test_steps_that_are_all_skipped_still_show_how_many(kit):
    trainer, *_ = fit(kit, *range(N))
    assert float(trainer.callback_metrics["is/skipped"]) == 4
    assert "is/tau" not in trainer.callback_metrics


@SKIP
def test_steps_between_two_looks_are_counted_too(kit):
    """The gate asks for none of them, and no logger does."""
    _, sampling, *_ = fit(kit, 3, 13, max_epochs=2, log_every_n_steps=10**9)
    assert sampling.state_dict()["skipped"] == 4


@SKIP
def test_the_count_survives_a_checkpoint(kit, tmp_path):
    trainer, *_ = fit(kit, 3, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    again, *_ = fit(kit, 3, max_epochs=3, resumed=tmp_path / "two.ckpt")
    assert float(again.callback_metrics["is/skipped"]) == 3


def test_a_checkpoint_of_before_there_was_a_count_loads(kit):
    _, sampling, *_ = fit(kit)
    state = sampling.state_dict()
    del state["skipped"]
    again = ImportanceSamplingCallback(2, gate=AlwaysOpen())
    again.load_state_dict(state)
    assert again.state_dict()["skipped"] == 0


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_whoever_prefers_it_is_stopped(kit, gate):
    with pytest.raises(ValueError, match=r"got 1 of 6 that .* \{1: nan\}"):
        fit(kit, 7, ours={"gate": gate(), "bad_scores": "raise"})


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
@pytest.mark.parametrize("bad", [(7,), (0, 7)])
def test_negative_scores_are_a_wrong_scorer_and_stop_the_run(kit, gate, bad):
    with pytest.raises(ValueError, match=r"at least 0, got .*: -1.* another scorer"):
        fit(kit, *bad, value=-1.0, ours={"gate": gate()})


def test_nothing_waits_for_the_device(kit):
    """Tensors without data would tell whoever looked."""
    _, sampling, *_ = fit(kit, max_epochs=1)
    scores = torch.ones(BATCH, device="meta")
    module = Numbered()
    trainer = kit.trainer(sampling, max_epochs=1)

    class Look(L.Callback):
        def on_train_batch_end(self, *args):
            engine = sampling._fit.engine
            counts = engine._drawer._expected_counts(scores, 2)
            assert (counts.device.type, counts.shape) == ("meta", (BATCH,))
            step = engine._step
            kept, step.drawn_from = step.drawn_from, scores
            shapes = {
                tuple(engine.ledger.look(step, due=due).shape) for due in (True, False)
            }
            step.drawn_from = kept
            assert shapes == {(7,)}
            self.looked = True

    look = Look()
    trainer.callbacks.append(look)
    sampling._fit._settings.scorer.module = module
    trainer.fit(module, numbered())
    assert look.looked


# What a source remembers, and what else uses scores.


@SKIP
@pytest.mark.parametrize("size", [None, 2])
def test_a_source_remembers_only_scores(kit, size):
    """Those at fault stay unknown; all others are known."""
    source = PassSource(ImportanceSubset(keep=1.0))
    gate = {} if size is None else {"gate": AlwaysOpen()}
    ours = {"source": source, "batch_size": size, "gate": None} | gate
    _, sampling, *_ = fit(kit, 3, 13, ours=ours, max_epochs=3, log_every_n_steps=10**9)
    sampling.state_dict()
    unknown = ~torch.isfinite(source.scores)
    assert unknown.nonzero()[:, 0].tolist() == [3, 13]
    assert sampling.state_dict()["skipped"] == 6


def test_a_source_stops_the_run_if_asked_to(kit):
    ours = {"source": PassSource(Shuffled()), "batch_size": None, "gate": None}
    with pytest.raises(ValueError, match="Scores must be finite"):
        fit(kit, 3, ours=ours | {"bad_scores": "raise"}, log_every_n_steps=10**9)


@SKIP
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_scores_computed_afresh_are_held_to_the_same(kit, policy):
    source = PassSource(Shuffled(), rescore_every=1, warm_passes=0)
    ours = {"source": source, "batch_size": None, "gate": None, "bad_scores": policy}
    if policy == "raise":
        with pytest.raises(ValueError, match=f"got 1 of {N} that are not"):
            fit(kit, 3, value=INF, ours=ours)
        return
    fit(kit, 3, value=INF, ours=ours, max_epochs=2)
    assert (~torch.isfinite(source.scores)).nonzero()[:, 0].tolist() == [3]


@SKIP
def test_who_accepts_one_by_one_trains_on_the_ordinary_batch(kit):
    acceptance = LossPercentile()
    ours = {"acceptance": acceptance, "gate": Window(warmup=0.0)}

    takes_in = []  # whether steps take in the statistics of their batches

    class Normed(Numbered):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def training_step(self, batch, batch_idx):
            x, y = batch
            self.now = x[:, 0].long()
            self.seen.append(self.now.tolist())
            if torch.is_grad_enabled():
                takes_in.append(self.norm.training and self.norm.track_running_stats)
            return functional.cross_entropy(self.norm(self.head(x / N)), y)

    module = Normed()
    scorer = Flaky(module, 3, scorer=Loss())
    scorer.observing = Loss().observing  # what the step itself leaves behind is fine
    sampling = ImportanceSamplingCallback(scorer=scorer, **ours)
    trainer = kit.trainer(sampling, max_epochs=8)
    trainer.fit(module, numbered())
    skipped = float(trainer.callback_metrics["is/skipped"])
    assert skipped >= 4
    assert {len(ids) for ids in module.seen} == {BATCH}
    # Those steps alone train on a whole batch as loaded, example 3 in it.
    assert sum(3 in ids for ids in module.seen) >= skipped
    assert torch.isfinite(acceptance.state_dict()["losses"]).all()
    assert len(takes_in) >= trainer.global_step
    assert not any(takes_in)  # the pass that scored did
    assert all(p.isfinite().all() for p in module.parameters())


@SKIP
def test_a_check_of_cheap_scores_is_left_out(kit, monkeypatch):
    monkeypatch.setattr("lightning_is.fidelity._EVERY", 1)
    ours = {"score_precision": "bf16"}
    _, sampling, *_ = fit(kit, 3, 13, ours=ours, max_epochs=1)
    assert len(sampling.state_dict()["checks"]["cheap"]["checks"]) == 2


@SKIP
def test_batches_that_share_a_presample_are_all_drawn_uniformly(kit):
    data = OversamplingDataModule(numbered(size=2), BATCH, score_every=3)
    trainer, _, _, peek = fit(kit, *range(N), data=data, max_epochs=1)
    assert trainer.global_step == 12
    assert all(torch.equal(weights, torch.ones(2)) for weights in peek.weights)
    assert float(trainer.callback_metrics["is/skipped"]) == 4


@SKIP
def test_scores_that_overflow_in_half_precision_end_no_run(kit):
    """The loss in full precision is finite: only the cheap scores are not."""

    class Wide(kit.Classifier):
        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])
            return functional.cross_entropy(z / 1e6, batch[1])

    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    module = Wide(net)
    data = [[x.clone(), y] for x, y in kit.loader()]
    data[2][0][:] = 1e6
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen(), score_precision="fp16")
    trainer = kit.trainer(sampling)
    trainer.fit(module, DataLoader(data, batch_size=None))
    assert float(trainer.callback_metrics["is/skipped"]) == 1
    assert all(p.isfinite().all() for p in module.parameters())


@SKIP
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_first_batch_may_hold_such_examples(kit, reduction):
    """What is learned of the step there is learned from the others."""

    class Careful(Numbered):
        def training_step(self, batch, batch_idx):
            z = self.head(batch[0] / N)
            self.now = batch[0][:, 0].long()
            losses = functional.cross_entropy(z, batch[1], reduction="none")
            bad = (self.now == 1) & (not self.training)
            losses = losses * torch.where(bad, NAN, 1.0)
            return losses.sum() if reduction == "sum" else losses.mean()

    module = Careful()
    found = []

    class Look(L.Callback):
        def on_train_batch_end(self, *args):
            found.append(sampling._fit.engine._drawer.scoring.sums.trained)

    sampling = ImportanceSamplingCallback(2, gate=AlwaysOpen())
    trainer = kit.trainer(sampling, Look())
    trainer.fit(module, numbered(size=12))
    assert found == [reduction == "sum"] * 2
    assert float(trainer.callback_metrics["is/skipped"]) == 1


@SKIP
def test_a_first_batch_of_nan_hides_no_layout_and_no_state(kit):
    """Both are told by comparing numbers, of which some are none."""

    class TwoViews(Numbered):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.kept = x  # merely kept
            z = self.head(torch.cat([x, x + 1]) / N)
            return functional.cross_entropy(z, y.repeat(2))

    data = [[x.clone(), y] for x, y in numbered()]
    data[0][0][1] = NAN
    sampling, layouts = ImportanceSamplingCallback(2, gate=AlwaysOpen()), []

    class Look(L.Callback):
        def on_train_batch_end(self, *args):
            layouts.append(sampling._fit.engine._tap.stacked)

    trainer = kit.trainer(sampling, Look(), max_steps=1)
    trainer.fit(TwoViews(), DataLoader(data, batch_size=None))
    assert layouts == [True]
    assert float(trainer.callback_metrics["is/skipped"]) == 1


# Two processes.


class Agreeing(L.Callback):
    """Both ranks have one gate, one count and one network, though one has all NaN."""

    def __init__(self, sampling):
        self.sampling, self.told = sampling, Peek(sampling).told

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.same(float(self.sampling.gate.is_open), self.sampling.gate.tau)

    def on_train_end(self, trainer, pl_module):
        assert len(self.told) == 4  # of the other step of each epoch
        state = self.sampling.state_dict()
        self.same(state["skipped"], *state["gate"].values())
        self.same(*nn.utils.parameters_to_vector(pl_module.parameters()).tolist())
        assert state["skipped"] == 4  # one step of each of four epochs
        assert self.sampling.gate.tau > 0

    @staticmethod
    def same(*values):
        mine = torch.tensor(values, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(found, mine)
        assert torch.equal(*found)


@SKIP
def test_ranks_skip_together(kit):
    """Example 3 is one rank's alone; its steps are no evidence to either."""
    module = Numbered()
    sampling = ImportanceSamplingCallback(
        2, gate=TauGate(1.0, smoothing=0.5), scorer=Flaky(module, 3)
    )
    trainer = kit.trainer(
        sampling, Agreeing(sampling), strategy="ddp_fork", devices=2, max_epochs=4
    )
    trainer.fit(module, numbered())
