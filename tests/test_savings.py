"""Scores had more cheaply stay unbiased, are checked, and are left if they lose."""

import logging
import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, fidelity
from lightning_is import precision as precision_module
from lightning_is.fidelity import Checks, Fidelity, inflation, rank_correlation
from lightning_is.monitor import Stopwatch
from lightning_is.precision import Precision, can_try
from lightning_is.sampling import AlwaysOpen, ImportancePlan, Mixed
from lightning_is.scoring import Scored, UpperBound
from lightning_is.scoring_pass import ScoringPass

N, BATCH = 12, 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lognormal(count, seed=0):
    return torch.randn(count, generator=seeded(seed)).exp()


@pytest.mark.parametrize("batch_size", [8, 24])
def test_inflation_is_the_ratio_of_the_noises_that_draws_have(batch_size):
    """By brute force: the gradients are random directions of the full norms."""
    full, cheap = lognormal(48), lognormal(48, seed=1)
    plan = ImportancePlan(Mixed(share=0.2))
    gradients = functional.normalize(torch.randn(48, 200, generator=seeded(2)), dim=1)
    gradients = gradients * full[:, None]

    def noise(scores):
        generator = seeded(3)
        counts = plan.expected_counts(scores, batch_size)
        drawn = [
            plan.pick(counts, batch_size, generator=generator) for _ in range(2000)
        ]
        means = [(d.weights[:, None] * gradients[d.indices]).mean(0) for d in drawn]
        # Around what is expected of any presample, as presamples themselves vary.
        second = full.square().mean() / 48
        return torch.stack(means).var(0).sum() + second

    expected = noise(cheap) / noise(full)
    found = inflation(cheap, full, plan, batch_size)
    assert found.item() == pytest.approx(expected.item(), rel=0.1)


def test_ranks_are_compared_and_constants_agree_with_all():
    scores = lognormal(20)
    assert rank_correlation(scores, scores**3).item() == pytest.approx(1)
    assert rank_correlation(scores, -scores).item() == pytest.approx(-1)
    assert rank_correlation(scores, torch.ones(20)).item() == 1


@pytest.mark.parametrize(
    ("inflated", "saving", "is_worth"),
    [(1.0, 1.0, True), (1.1, 1.2, True), (1.3, 1.2, False), (1.05, 0.9, False)],
)
def test_what_loses_more_than_it_saves_is_left_aloud(inflated, saving, is_worth):
    checks = Fidelity("`proxy`")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(4):
            checks.judge(0.7, inflated, saving)
        assert checks.is_worth  # too early to say
        checks.judge(0.7, inflated, saving)
    assert checks.is_worth == is_worth
    assert len(seen) == (not is_worth)
    if seen:
        assert "Scores by `proxy` are left for full ones" in str(seen[0].message)
    assert checks.metrics()["is/score_correlation"] == 0.7
    assert checks.metrics()["is/noise_inflation"] == inflated


def test_the_odd_bad_check_settles_nothing():
    checks = Fidelity("`proxy`")
    for number in range(30):
        checks.judge(0.9, 5.0 if number % 3 == 0 else 1.0, 1.2)
    assert checks.is_worth


def test_what_was_found_is_not_forgotten_by_a_checkpoint():
    def callback(**settings):
        return ImportanceSamplingCallback(2, **settings)

    was = callback(scale_factor=0.5)
    cheap = was._state.checks.cheap
    for _ in range(3):
        cheap.is_due()
    for _ in range(4):
        cheap.judge(0.7, 3.0, 1.2)
    with pytest.warns(UserWarning, match="Scores by `scale_factor` are left"):
        cheap.judge(0.7, 3.0, 1.2)
    state = was.state_dict()
    again, other = callback(scale_factor=0.25), callback(score_precision="bf16")
    for resumed in (again, other):
        resumed.load_state_dict(state)
    assert again._state.checks.state_dict() == was._state.checks.state_dict()
    assert not again._state.checks.cheap.is_worth
    assert other._state.checks.cheap.is_worth  # another saving, another matter
    assert other._state.checks.cheap.metrics() == {}


NOTES: dict[int, list] = {}  # beside the module, which scoring leaves as it was


class Classifier(L.LightningModule):
    """Notes in which type, mode and size its network ran."""

    def __init__(self, width=8, classes=3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(N, width), nn.Tanh(), nn.Linear(width, classes)
        )
        NOTES[id(self)] = []

    @property
    def seen(self):
        return NOTES[id(self)]

    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self.net(x)
        self.seen.append((z.dtype, len(x), torch.is_grad_enabled()))
        loss = functional.cross_entropy(z.float(), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader():
    data = TensorDataset(torch.eye(N), torch.arange(N) % 3)
    return DataLoader(data, batch_size=N)


def opened(**settings):
    return ImportanceSamplingCallback(BATCH, gate=AlwaysOpen(), **settings)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_scores_of_less_precision_and_steps_of_full(kit, precision, dtype):
    module = Classifier()
    kit.trainer(opened(score_precision=precision), max_steps=3).fit(module, loader())
    scoring = {d for d, size, _ in module.seen[-4:] if size == N}
    training = {d for d, size, _ in module.seen[-4:] if size == BATCH}
    assert scoring == {dtype}
    assert training == {torch.float32}


def test_the_precision_of_scores_is_not_that_of_the_trainer(kit):
    module = Classifier()
    trainer = kit.trainer(
        opened(score_precision="fp16"), max_steps=2, precision="bf16-mixed"
    )
    trainer.fit(module, loader())
    assert {d for d, size, _ in module.seen[-2:] if size == N} == {torch.float16}


def test_a_proxy_scores_and_is_left_as_it_was(kit):
    module, proxy = Classifier(), Classifier(width=2)
    before = [p.clone() for p in proxy.parameters()]
    sampling = opened(proxy=proxy)
    kit.trainer(sampling, max_steps=5, max_epochs=-1).fit(module, loader())
    trained = [size for _, size, grad in module.seen if grad and size == BATCH]
    assert len(trained) >= 5
    assert [size for _, size, _ in proxy.seen[-5:]] == [N] * 5
    assert all(map(torch.equal, before, proxy.parameters()))
    assert not any(part._forward_hooks for part in proxy.modules())
    assert proxy._trainer is None


def test_draws_follow_the_proxy(kit):
    """One that is certain of all but one example never fails to have that drawn."""
    proxy = Classifier()
    proxy.net = nn.Sequential(nn.Flatten(), nn.Linear(N, 3))
    table = 30.0 * functional.one_hot(torch.arange(N) % 3, 3).float()
    table[5] = 0.0
    proxy.net[1].weight.data, proxy.net[1].bias.data = table.T.contiguous(), table[5]
    drawn = []

    class Noting(Classifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            drawn.append(5 in batch[0].argmax(1))

    module = Noting()
    kit.trainer(opened(proxy=proxy), max_steps=30, max_epochs=-1).fit(module, loader())
    assert drawn == [True] * 30


def test_a_bad_proxy_is_left_for_full_scores(kit, monkeypatch):
    monkeypatch.setattr(fidelity, "_EVERY", 1)
    torch.manual_seed(0)
    proxy, module = Classifier(width=64), Classifier()
    proxy.net[3].weight.data[:, :] *= 30.0  # as sure of itself as it is wrong
    sampling = opened(proxy=proxy, plan=ImportancePlan(Mixed(share=0.01)))
    trainer = kit.trainer(sampling, max_steps=60, max_epochs=-1)
    with pytest.warns(UserWarning, match="Scores by `proxy` are left for full ones"):
        trainer.fit(module, loader())
    calls = len(proxy.seen)
    assert calls < 60
    assert "is/noise_inflation" in trainer.callback_metrics
    assert "is/score_correlation" in trainer.callback_metrics


def test_checks_are_rare(kit):
    module = Classifier()
    sampling = opened(score_precision="bf16")
    kit.trainer(sampling, max_steps=205, max_epochs=-1).fit(module, loader())
    full = [d for d, size, _ in module.seen[-408:] if size == N]
    assert full.count(torch.float32) == 2


@pytest.mark.parametrize("missing", [2, 7])
def test_ranks_come_to_checks_together_whoever_has_nothing_to_compare(
    kit, monkeypatch, missing
):
    """Where one rank scores none of a batch, it still counts, and joins the others."""
    monkeypatch.setattr(fidelity, "_EVERY", 3)
    met, count = [], ScoringPass._shared

    def shared(self, packed):
        met.append((module.trainer.fit_loop.batch_idx, float(packed[0])))
        return count(self, packed)

    monkeypatch.setattr(ScoringPass, "_shared", shared)
    rows = [list(range(N))] * 10
    rows[missing] = list(range(BATCH))  # too few to draw from
    data = DataLoader(loader().dataset, batch_sampler=rows)
    module = Classifier()
    kit.trainer(opened(score_precision="bf16"), max_epochs=1).fit(module, data)
    assert [place + 1 for place, _ in met] == [2, 5, 8]
    assert [usable for _, usable in met] == [missing != place for place in (2, 5, 8)]


def test_a_check_leaves_no_trace(kit, monkeypatch):
    def trained(every):
        monkeypatch.setattr(fidelity, "_EVERY", every)
        torch.manual_seed(0)
        module = Classifier()
        module.net.insert(1, nn.BatchNorm1d(N))
        kit.trainer(opened(score_precision="bf16"), max_steps=4).fit(module, loader())
        return module.state_dict()

    often, never = trained(1), trained(10**9)
    assert all(torch.equal(often[name], never[name]) for name in often)


class Random:
    """A scorer that knows nothing."""

    def __init__(self):
        self.generator = seeded(0)

    def score(self, step, tap, examples):
        scores = torch.rand(examples, generator=self.generator) ** 4
        with torch.no_grad():
            return Scored(scores, step().mean())

    def observing(self, tap):
        return UpperBound().observing(tap)


def test_the_gradient_is_unbiased_whatever_scores(kit):
    counted = []

    class LookUp(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(N, 3, bias=False)

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self.head(batch[0]), batch[1])

        def on_before_optimizer_step(self, optimizer):
            z = self.head.weight.T.detach()
            labels = functional.one_hot(torch.arange(N) % 3, 3)
            slopes = (z.softmax(1) - labels).norm(dim=1)
            counted.append(self.head.weight.grad.norm(dim=0) / slopes)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    sampling = opened(scorer=Random(), plan=ImportancePlan(Mixed(share=0.2)))
    quiet = {"log_every_n_steps": 10**9, "max_epochs": -1}
    kit.trainer(sampling, max_steps=1500, **quiet).fit(LookUp(), loader())
    rows = torch.stack(counted).double()
    z = (rows.mean(0) - 1 / N) / (rows.std(0) / len(rows) ** 0.5)
    assert z.abs().max() < 4
    assert z.square().mean() < 2.5


def test_an_unknown_precision_is_refused():
    from lightning_is.settings import Settings

    check = Settings.__post_init__
    odd = object.__new__(Settings)
    known = ImportanceSamplingCallback(4)._fit._settings
    for name, value in {**vars(known), "score_precision": "int8"}.items():
        object.__setattr__(odd, name, value)
    with pytest.raises(ValueError, match='`score_precision` must be "auto", "bf16"'):
        check(odd)


def test_what_is_logged_judges_the_proxy_by_the_module(kit, monkeypatch):
    monkeypatch.setattr(fidelity, "_EVERY", 1)
    proxy, module = Classifier(width=64), Classifier()
    proxy.net[3].weight.data *= 10.0

    def scores(network):
        with torch.no_grad():
            shares = network.net(torch.eye(N)).softmax(1)
        return (shares - functional.one_hot(torch.arange(N) % 3, 3)).norm(dim=1)

    plan = ImportancePlan()
    expected = inflation(scores(proxy), scores(module), plan, BATCH)
    other = inflation(scores(module), scores(proxy), plan, BATCH)
    trainer = kit.trainer(opened(proxy=proxy), max_steps=1)
    trainer.fit(module, loader())
    found = trainer.callback_metrics["is/noise_inflation"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(other.item(), rel=1e-2)


# Precision that is found out.

NARROW = torch.bfloat16


class Clock(Stopwatch):
    """Goes on by what each way of scoring takes, after the first runs of each."""

    def __init__(self, full, narrow, scores=(1.0, 2.0)):
        super().__init__(torch.device("cpu"))
        self.costs, self.now, self.kinds = {None: full, NARROW: narrow}, 0.0, []
        self.scores = torch.tensor(scores)

    def score(self, kind):
        self.kinds.append(kind)
        self.now += self.costs[kind] if len(self.kinds) > 2 else 100.0
        return Scored(torch.ones(2) if kind is None else self.scores, torch.tensor(1.0))

    def mark(self):
        return self.now

    def seconds(self, start, end):
        return end - start


@pytest.mark.parametrize(
    ("narrow", "dtype"), [(0.5, NARROW), (0.97, None), (1.0, None), (4.0, None)]
)
def test_bfloat16_is_taken_where_it_is_faster(narrow, dtype):
    clock, precision = Clock(1.0, narrow), Precision("auto")
    assert (precision.is_settled, precision.dtype) == (False, None)
    precision.settle(clock.score, clock)
    assert (precision.is_settled, precision.dtype) == (True, dtype)
    # First runs warm up; then in turn, so that what changes meanwhile hits both.
    assert clock.kinds == [None, NARROW] * 4


def test_bfloat16_is_not_taken_where_its_scores_are_not_finite():
    clock, precision = Clock(1.0, 0.1, scores=(1.0, float("inf"))), Precision("auto")
    precision.settle(clock.score, clock)
    assert (precision.is_settled, precision.dtype) == (True, None)


@pytest.mark.parametrize("problem", [RuntimeError, TypeError, ValueError])
def test_what_bfloat16_cannot_do_is_said_and_done_in_full(monkeypatch, problem):
    said, clock = [], Clock(1.0, 0.1)
    monkeypatch.setattr("lightning_is.precision.rank_zero_info", said.append)

    def score(kind):
        if kind is not None:
            raise problem("no such operation\nat all")
        return clock.score(kind)

    precision = Precision("auto")
    precision.settle(score, clock)
    assert (precision.is_settled, precision.dtype) == (True, None)
    assert said == ["Scores are computed in full, not in bfloat16: no such operation"]


def test_a_step_that_fails_in_full_fails():
    def score(kind):
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        Precision("auto").settle(score, Clock(1.0, 0.1))


def test_a_step_without_a_loss_settles_nothing():
    precision = Precision("auto")
    precision.settle(lambda kind: None, Clock(1.0, 0.1))
    assert not precision.is_settled


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_precision_is_found_out_where_it_can_be(kit, monkeypatch):
    module = Classifier()
    assert can_try(kit.trainer(), module)
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        assert not can_try(kit.trainer(precision=precision), module)
    compiled = Classifier()
    compiled.net.compile()
    assert not can_try(kit.trainer(), compiled)
    with monkeypatch.context() as patched:
        patched.setattr(precision_module, "shards", lambda _: True)
        assert not can_try(kit.trainer(), module)
    with monkeypatch.context() as patched:
        trainer = kit.trainer()
        patched.setattr(trainer.strategy, "_root_device", torch.device("mps"))
        assert not can_try(trainer, module)
    monkeypatch.setattr(L.Trainer, "world_size", property(lambda _: 2))
    assert not can_try(kit.trainer(), module)


def test_where_it_cannot_it_is_left_to_the_trainer(kit):
    sampling, module = opened(score_precision="auto"), Classifier()
    settings = {"precision": "bf16-mixed", "max_epochs": -1, "max_steps": 2}
    kit.trainer(sampling, **settings).fit(module, loader())
    precision = sampling._state.checks.precision
    assert (precision.is_settled, precision.dtype) == (True, None)
    assert {kind for kind, size, _ in module.seen if size == N} == {NARROW}  # autocast


def found(monkeypatch, seconds):
    """Try as ever, but with this outcome."""
    tries = precision_module._seconds

    def timed(score, watch):
        tries(score, watch)
        return seconds

    monkeypatch.setattr(precision_module, "_seconds", timed)


@pytest.mark.parametrize(
    ("seconds", "like"), [([1.0, 0.5], "bf16"), ([1.0, 2.0], None)]
)
def test_what_was_found_out_trains_as_if_asked_for(kit, monkeypatch, seconds, like):
    """To the last bit, the tries being without a trace."""
    found(monkeypatch, seconds)

    def trained(score_precision):
        torch.manual_seed(0)
        module = Classifier()
        module.net.insert(1, nn.BatchNorm1d(N))
        sampling = opened(score_precision=score_precision)
        kit.trainer(sampling, max_steps=4, max_epochs=-1).fit(module, loader())
        return module

    one, other = trained("auto"), trained(like)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    scored = [kind for kind, size, _ in one.seen if size == N]
    assert scored.count(NARROW) == 4 + (4 if like else 0)


def test_a_report_and_its_fit_find_out_once(kit, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")  # or there is no report
    tries = []
    monkeypatch.setattr(
        precision_module, "_seconds", lambda *_: tries.append(0) or [1.0, 0.5]
    )
    sampling = opened(score_precision="auto")
    kit.trainer(sampling, max_steps=3, max_epochs=-1).fit(Classifier(), loader())
    assert sampling.diagnosis is not None
    assert len(tries) == 1


def test_a_resumed_run_goes_on_with_what_was_found(kit, monkeypatch):
    found(monkeypatch, [1.0, 0.5])
    was = opened(score_precision="auto")
    settings = {"max_steps": 2, "max_epochs": -1}
    kit.trainer(was, **settings).fit(Classifier(), loader())
    again, asked = opened(score_precision="auto"), opened(score_precision="fp16")
    for resumed in (again, asked):
        resumed.load_state_dict(was.state_dict())
    precision = again._state.checks.precision
    assert (precision.is_settled, precision.dtype) == (True, NARROW)
    assert asked._state.checks.precision.dtype is torch.float16
    module = Classifier()
    kit.trainer(again, **settings).fit(module, loader())
    assert [kind for kind, size, _ in module.seen if size == N].count(NARROW) == 2


def test_what_was_found_to_save_and_does_not_is_left():
    cheap = Checks(["`score_precision`"], Precision("auto")).cheap
    for _ in range(4):
        cheap.judge(1.0, 1.0, 0.9)
    with pytest.warns(UserWarning, match="save a factor of 0.90"):
        cheap.judge(1.0, 1.0, 0.9)
    assert not cheap.is_worth
