"""Several batches from one scored presample: none twice, and none biased."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import (
    ImportanceSamplingCallback,
    OversamplingDataModule,
    fidelity,
    ledger,
    scoring_pass,
)
from lightning_is.fidelity import inflation
from lightning_is.sampling import (
    AlwaysOpen,
    ConstantTime,
    EfficiencyGate,
    ImportancePlan,
    Mixed,
    NeverOpen,
    Selection,
    systematic,
)
from lightning_is.sampling.moments import evidence, moments

N, SMALL, LARGE, CLASSES = 24, 3, 12, 3


class LookUp(L.LightningModule):
    """Example ``i`` looks its logits up; its gradient tells how much it counted."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(N, CLASSES, bias=False)
        self.head.weight.data = 2 * torch.randn(CLASSES, N, generator=seeded(1))
        self.ids, self.counted = [], []

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.head(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        z = self.head.weight.T.detach()
        slopes = z.softmax(1) - functional.one_hot(torch.arange(N) % CLASSES, CLASSES)
        self.counted.append(self.head.weight.grad.norm(dim=0) / slopes.norm(dim=1))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ids.append(batch[0].argmax(1).tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def data(every, **settings):
    rows = TensorDataset(torch.eye(N), torch.arange(N) % CLASSES)
    loader = DataLoader(rows, batch_size=SMALL, shuffle=True, **settings)
    return OversamplingDataModule(loader, LARGE, score_every=every)


def fit(kit, every, gate=None, fetching=None, selection=systematic, **settings):
    module = LookUp()
    sampling = ImportanceSamplingCallback(
        SMALL,
        gate=gate or AlwaysOpen(),
        plan=ImportancePlan(Mixed(share=0.3), selection),
        when_closed="subset",
    )
    settings = {"max_epochs": -1, "log_every_n_steps": 10**9} | settings
    trainer = kit.trainer(sampling, **settings)
    trainer.fit(module, datamodule=data(every, **(fetching or {})))
    return module, trainer


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [2, 4])
def test_batches_of_one_presample_share_no_example(kit, every, workers):
    fetching = {"num_workers": workers}
    module, trainer = fit(kit, every, max_epochs=5, fetching=fetching)
    assert trainer.global_step == 5 * N // SMALL
    assert {len(ids) for ids in module.ids} == {SMALL}
    # The first presample comes once the gate is known to be open.
    late = module.ids[2 * N // SMALL :]
    for begin in range(0, len(late), every):
        drawn = [i for ids in late[begin : begin + every] for i in ids]
        assert len(set(drawn)) == every * SMALL


class InOrder(Selection):
    """Draws systematically, and lists what it drew by its chance of that."""

    def expected_counts(self, probs, batch_size):
        return systematic.expected_counts(probs, batch_size)

    def pick(self, counts, batch_size, *, generator=None):
        drawn = systematic.pick(counts, batch_size, generator=generator)
        return drawn[counts[drawn].argsort()]

    def noise(self, scores, counts):
        return systematic.noise(scores, counts)


@pytest.mark.parametrize("selection", [systematic, InOrder()])
@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_every_one_of_them_is_unbiased(kit, gate, selection):
    module, _ = fit(kit, 3, gate=gate(), selection=selection, max_steps=900)
    counted = torch.stack(module.counted).double()
    steps = torch.arange(900)
    for place in range(3):
        # Of an epoch's 8 steps, each third one scores; the first epoch begins without.
        rows = counted[(steps >= 8) & (steps % 8 % 3 == place)]
        z = (rows.mean(0) - 1 / N) / (rows.std(0) / len(rows) ** 0.5)
        assert z.abs().max() < 4.5
        assert z.square().mean() < 2.5


def test_the_step_scores_only_now_and_then(kit):
    runs = []

    class Counting(LookUp):
        def training_step(self, batch, batch_idx):
            runs.append((len(batch[0]), torch.is_grad_enabled()))
            return super().training_step(batch, batch_idx)

    module = Counting()
    whole = {"score_chunk_size": LARGE}
    sampling = ImportanceSamplingCallback(SMALL, gate=AlwaysOpen(), **whole)
    kit.trainer(sampling, max_epochs=4).fit(module, datamodule=data(4))
    last = runs[-2 * 5 :]  # of eight steps: two scoring passes
    assert last.count((LARGE, False)) == 2
    assert last.count((SMALL, True)) == 8


def test_what_is_left_at_the_end_of_an_epoch_is_dropped(kit):
    module, trainer = fit(kit, 4, max_epochs=6, limit_train_batches=6)
    assert trainer.global_step == 36
    assert {len(ids) for ids in module.ids} == {SMALL}


def test_the_gate_counts_scoring_by_the_step(kit):
    seen = []

    gate = EfficiencyGate("assumed")
    observe = gate.observe
    gate.observe = lambda evidence: (seen.append(evidence), observe(evidence))[1]
    fit(kit, 4, gate=gate, max_epochs=8)
    assert {evidence.presample_size for evidence in seen} == {LARGE // 4}


def test_the_gain_of_one_batch_of_several_is_that_of_its_noise():
    """By brute force: random directions, drawn together and shared out."""
    norms = torch.randn(30, generator=seeded(0)).exp()
    gradients = functional.normalize(torch.randn(30, 300, generator=seeded(1)), dim=1)
    gradients = gradients * norms[:, None]
    plan, size, parts = ImportancePlan(Mixed(share=0.2)), 5, 3
    counts = plan.expected_counts(norms, size * parts)
    generator = seeded(2)
    means = []
    for _ in range(4000):
        drawn = plan.pick(counts, size * parts, generator=generator)
        some = torch.randperm(size * parts, generator=generator)[:size]
        rows = gradients[drawn.indices[some]] * drawn.weights[some, None]
        means.append(rows.mean(0))
    second = norms.square().mean()
    noise = torch.stack(means).var(0).sum() + second / 30
    packed = moments(norms, [(size, counts)], systematic).tolist()
    found = evidence(packed, 30, size).effective_batch
    assert found == pytest.approx((second / size / noise).item(), rel=0.1)


@pytest.mark.parametrize("every", [1, 4])
def test_batches_are_taken_for_several_where_they_share_a_presample(
    every, kit, monkeypatch
):
    seen = []

    def spy(*given, several):
        seen.append(several)
        return moments(*given, several=several)

    monkeypatch.setattr(ledger, "moments", spy)
    fit(kit, every, gate=EfficiencyGate("assumed"), max_epochs=8)
    assert set(seen) == {every > 1}


@pytest.mark.parametrize(
    ("every", "message"),
    [(0, "got score_every=0"), (5, "got score_every=5 for batches of 3 from 12")],
)
def test_more_batches_than_a_presample_has_are_refused(every, message):
    with pytest.raises(ValueError, match=message):
        data(every).train_dataloader()


def test_single_examples_are_refused():
    loader = DataLoader(TensorDataset(torch.eye(N)), batch_size=1)
    with pytest.raises(ValueError, match="needs batches of at least 2"):
        OversamplingDataModule(loader, LARGE, score_every=2).train_dataloader()


def test_keeping_a_share_and_scoring_now_and_then_do_not_go_together():
    loader = DataLoader(TensorDataset(torch.eye(N)), batch_size=SMALL)
    with pytest.raises(ValueError, match="`score_every` is of presamples"):
        OversamplingDataModule(loader, keep=0.5, score_every=2)


def test_a_gate_that_balances_each_step_is_refused(kit):
    with pytest.raises(ValueError, match="ConstantTime balances each step by itself"):
        fit(kit, 2, gate=ConstantTime(), max_epochs=1)


def test_scores_too_old_to_serve_are_given_up_aloud(kit, monkeypatch):
    """At such a learning rate nothing is known of the next step but the last one."""
    monkeypatch.setattr(fidelity, "_EVERY", 1)
    # Scoring is taken to cost nothing, so that nothing is saved.
    monkeypatch.setattr(scoring_pass.Stopwatch, "seconds", lambda *_: 0.0)

    class Restless(LookUp):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            self.head.weight.data = 4 * torch.randn_like(self.head.weight)

    module, quiet = Restless(), {"log_every_n_steps": 1}
    sampling = ImportanceSamplingCallback(SMALL, gate=AlwaysOpen())
    trainer = kit.trainer(sampling, max_epochs=12, **quiet)
    given = data(4, num_workers=1)
    with pytest.warns(UserWarning, match="Scores by `score_every` are left for full"):
        trainer.fit(module, datamodule=given)
    assert trainer.train_dataloader.batch_sampler.score_every == 1
    assert {len(ids) for ids in module.ids} == {SMALL}
    assert trainer.callback_metrics["is/noise_inflation"] > 1.1


def test_scores_that_stay_are_never_given_up(kit, monkeypatch):
    monkeypatch.setattr(fidelity, "_EVERY", 1)
    monkeypatch.setattr(scoring_pass.Stopwatch, "seconds", lambda *_: 1.0)
    _, trainer = fit(kit, 4, max_epochs=12, log_every_n_steps=1)
    assert trainer.train_dataloader.batch_sampler.score_every == 4
    assert 1 < trainer.callback_metrics["is/noise_inflation"] < 1.75  # what is saved
    assert trainer.callback_metrics["is/score_correlation"] == pytest.approx(1)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_sharing_a_draw_is_part_of_what_is_lost(parts):
    """By brute force: one batch of those drawn together against one drawn alone."""
    norms = torch.randn(30, generator=seeded(0)).exp()
    gradients = functional.normalize(torch.randn(30, 300, generator=seeded(1)), dim=1)
    gradients = gradients * norms[:, None]
    plan, size = ImportancePlan(Mixed(share=0.2)), 5

    def noise(together):
        counts = plan.expected_counts(norms, size * together)
        generator, means = seeded(2), []
        for _ in range(3000):
            drawn = plan.pick(counts, size * together, generator=generator)
            some = torch.randperm(size * together, generator=generator)[:size]
            rows = gradients[drawn.indices[some]] * drawn.weights[some, None]
            means.append(rows.mean(0))
        return torch.stack(means).var(0).sum() + norms.square().mean() / 30

    found = inflation(norms, norms, plan, size, parts)
    assert found.item() == pytest.approx((noise(parts) / noise(1)).item(), rel=0.1)


@pytest.mark.parametrize("skips", [False, True])
def test_no_batch_of_one_is_ever_trained_on(kit, skips):
    """Though the gate has closed since it was loaded, or the step returns no loss."""

    class Skipping(LookUp):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if skips and len(batch[0]) == LARGE else loss

    class Flipping(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if not skips and trainer.global_step % 5 == 0:
                sampling.gate = NeverOpen() if sampling.gate.is_open else AlwaysOpen()
                sampling._fit.engine._gate = sampling.gate

    sampling = ImportanceSamplingCallback(SMALL, gate=AlwaysOpen())
    module = Skipping()
    trainer = kit.trainer(sampling, Flipping(), max_epochs=8)
    trainer.fit(module, datamodule=data(4, num_workers=1))
    assert {len(ids) for ids in module.ids} == {SMALL}


def test_what_is_saved_counts_the_steps_that_must_be_made_anyway(kit, monkeypatch):
    """Scoring takes a second: a quarter of it for each of four, and the step stays."""
    judged = []
    monkeypatch.setattr(fidelity, "_EVERY", 1)
    monkeypatch.setattr(scoring_pass.Stopwatch, "seconds", lambda *_: 1.0)
    monkeypatch.setattr(
        scoring_pass.Fidelity, "judge", lambda self, *found: judged.append(found)
    )
    fit(kit, 4, max_epochs=4)
    step = 3 * SMALL / LARGE  # forth and back, of those drawn
    assert judged
    assert {round(saving, 6) for *_, saving in judged} == {(1 + step) / (0.25 + step)}
