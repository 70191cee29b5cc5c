"""Two stages: old scores choose what to load, fresh ones what to train on of it."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    EfficiencyGate,
    ImportancePlan,
    ImportanceSubset,
    Mixed,
)
from lightning_is.sampling.passes import Pass

N, BATCH, CLASSES, COPIES = 24, 6, 3, 4


class LookUp(L.LightningModule):
    """Example ``i`` looks its logits up; its gradient tells how much it counted."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(N, CLASSES, bias=False)
        self.head.weight.data = 2 * torch.randn(CLASSES, N, generator=seeded(1))
        self.sizes, self.counted = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.sizes.append(len(x))
        return functional.cross_entropy(self.head(x), y)

    def on_before_optimizer_step(self, optimizer):
        z = self.head.weight.T.detach()
        slopes = z.softmax(1) - functional.one_hot(labels(), CLASSES)
        self.counted.append(self.head.weight.grad.norm(dim=0) / slopes.norm(dim=1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def labels():
    return torch.arange(N) % CLASSES


def numbered(copies=1):
    """Every example once, and the first few of them ``copies`` times."""
    rows = torch.cat([torch.arange(N), torch.arange(COPIES).repeat(copies - 1)])
    data = TensorDataset(torch.eye(N)[rows], labels()[rows])
    return DataLoader(data, batch_size=BATCH, shuffle=True)


class Stale:
    """A scheme that is given scores of another time: those of other examples."""

    def __init__(self, scheme, unseen):
        self.scheme, self.unseen = scheme, unseen

    def __call__(self, scores, progress, generator) -> Pass:
        old = torch.rand(len(scores), generator=seeded(5)) ** 4
        old[: self.unseen] = torch.inf
        return self.scheme(old, progress, generator)


def callback(scheme, **settings):
    return ImportanceSamplingCallback(
        source=PassSource(scheme, warm_passes=0),
        plan=ImportancePlan(Mixed(share=0.3)),
        **settings,
    )


@pytest.mark.parametrize(
    ("keep", "unseen", "copies"), [(0.3, 0, 1), (0.7, 7, 1), (0.5, 3, 3)]
)
def test_the_product_of_the_weights_is_unbiased(kit, keep, unseen, copies):
    """Whatever the first stage believes, and for examples that are there twice."""
    scheme = Stale(ImportanceSubset(keep), unseen)
    module = LookUp()
    sampling = callback(scheme, batch_size=3, gate=AlwaysOpen())
    quiet = {"log_every_n_steps": 10**9}
    trainer = kit.trainer(sampling, max_steps=1500, max_epochs=-1, **quiet)
    trainer.fit(module, numbered(copies))
    assert set(module.sizes[-100:]) == {3}
    counted = torch.stack(module.counted).double()
    blocks = counted.reshape(30, 50, N).mean(1)
    expected = torch.ones(N).double()
    expected[:COPIES] = copies
    expected /= expected.sum()
    z = (blocks.mean(0) - expected) / (blocks.std(0) / 30**0.5)
    assert z.abs().max() < 4.5
    assert z.square().mean() < 2.0  # 1 on average, if it is unbiased


def test_a_wrong_weight_would_be_seen(kit):
    def biased(scores, progress, generator):
        drawn = Stale(ImportanceSubset(0.3), 0)(scores, progress, generator)
        return Pass(drawn.indices, torch.ones(len(drawn.indices)))

    module = LookUp()
    sampling = callback(biased, batch_size=3, gate=AlwaysOpen())
    quiet = {"log_every_n_steps": 10**9}
    kit.trainer(sampling, max_steps=750, max_epochs=-1, **quiet).fit(module, numbered())
    blocks = torch.stack(module.counted).double().reshape(15, 50, N).mean(1)
    z = (blocks.mean(0) - 1 / N) / (blocks.std(0) / 15**0.5).clamp(min=1e-9)
    assert z.abs().max() > 10


def test_the_data_module_brings_the_first_stage(kit):
    module, data = LookUp(), OversamplingDataModule(numbered(), keep=0.5)
    sampling = ImportanceSamplingCallback(gate=AdaptiveSize(costs="assumed"))
    trainer = kit.trainer(sampling, max_epochs=6)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 6 * N // BATCH  # epochs are as long as before
    assert data.source.pass_size == N // 2
    assert torch.isfinite(data.source.scores).sum() > N // 2
    assert "source" in sampling.state_dict()
    assert not data.is_served


def test_the_data_module_and_the_callback_choose_alike(kit):
    def trained(sampling, data):
        module = LookUp()
        kit.trainer(sampling, max_epochs=5).fit(module, data)
        return torch.stack(module.counted)

    gate = {"batch_size": 3, "gate": EfficiencyGate("assumed")}
    ours = ImportanceSamplingCallback(**gate)
    theirs = ImportanceSamplingCallback(
        source=PassSource(ImportanceSubset(keep=0.5)), **gate
    )
    data = OversamplingDataModule(numbered(), keep=0.5)
    assert torch.equal(trained(ours, data), trained(theirs, numbered()))


def test_a_fit_goes_on_from_the_checkpoint_of_the_data_modules_source(kit, tmp_path):
    def run(epochs, ckpt=None):
        module, data = LookUp(), OversamplingDataModule(numbered(), keep=0.5)
        sampling = ImportanceSamplingCallback(3, gate=AlwaysOpen())
        trainer = kit.trainer(sampling, max_epochs=epochs)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return torch.stack(module.counted)

    whole = run(8)
    run(3)
    resumed = run(8, tmp_path / "last.ckpt")
    assert torch.equal(whole[-len(resumed) :], resumed)
    assert len(resumed) == 5 * N // BATCH


def test_another_fit_without_that_data_module_has_no_source(kit):
    sampling = ImportanceSamplingCallback(3)
    trainer = kit.trainer(sampling)
    trainer.fit(LookUp(), datamodule=OversamplingDataModule(numbered(), keep=0.5))
    assert "source" in sampling.state_dict()
    kit.trainer(sampling).fit(LookUp(), numbered())
    assert "source" not in sampling.state_dict()


def test_keeping_without_a_callback_is_refused(kit):
    data = OversamplingDataModule(numbered(), keep=0.5)
    with pytest.raises(RuntimeError, match=r"got a Trainer without one\. Add Trainer"):
        kit.trainer().fit(LookUp(), datamodule=data)


def test_two_sources_are_refused(kit):
    sampling = ImportanceSamplingCallback(
        3, source=PassSource(ImportanceSubset(keep=0.5))
    )
    data = OversamplingDataModule(numbered(), keep=0.5)
    with pytest.raises(ValueError, match="One source chooses what to load"):
        kit.trainer(sampling).fit(LookUp(), datamodule=data)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "got presample_size=None and keep=None"),
        ({"presample_size": 12, "keep": 0.5}, "got presample_size=12 and keep=0.5"),
        ({"keep": 0.0}, r"`keep` must be in \(0, 1\]"),
        ({"keep": 1.5}, r"`keep` must be in \(0, 1\]"),
    ],
)
def test_a_data_module_is_told_one_thing_to_do(sizes, message):
    with pytest.raises(ValueError, match=message):
        OversamplingDataModule(numbered(), **sizes)
