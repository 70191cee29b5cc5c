"""Parts that do not go together are refused; those that do keep the size of a step."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.sampling import (
    AlwaysOpen,
    ConstantTime,
    ConstantVariance,
    Gate,
    ImportancePlan,
    LossPercentile,
    NeverOpen,
    Pass,
    Proportional,
    Shuffled,
    Sizes,
    Window,
)
from lightning_is.scoring import GradientNorm, Loss


def source():
    return PassSource(Shuffled())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"gate": AlwaysOpen()},
            "got a AlwaysOpen, which does not, and no `batch_size`",
        ),
        ({"when_closed": "subset"}, "got none. Pass it"),
        ({"source": source(), "gate": NeverOpen()}, "A gate says when to draw"),
        ({"source": source(), "scorer": GradientNorm()}, "leave another score"),
        (
            {"acceptance": LossPercentile(), "source": source()},
            "a `source` as well",
        ),
        ({"acceptance": LossPercentile(), "batch_size": 4}, "got batch_size=4"),
        (
            {"acceptance": LossPercentile(), "index_fn": lambda batch, indices: batch},
            "an `index_fn`",
        ),
        (
            {"acceptance": LossPercentile(), "plan": ImportancePlan()},
            "A `plan` is one of draws",
        ),
        (
            {"source": source(), "plan": ImportancePlan()},
            "A `plan` is one of draws",
        ),
        ({"batch_size": 4, "scale_factor": 0.0}, r"must be in \(0, 1\], got 0.0"),
        (
            {"batch_size": 4, "scale_factor": 0.5, "index_fn": lambda b, i: b},
            "looks for images in the batch by itself",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        ImportanceSamplingCallback(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"source": source()},
        {"source": source(), "batch_size": 4, "gate": AlwaysOpen()},
        {"acceptance": LossPercentile(), "scorer": Loss(), "gate": AlwaysOpen()},
        {"gate": ConstantVariance()},
    ],
)
def test_parts_that_go_together_are_not(parts):
    assert ImportanceSamplingCallback(**parts).state_dict()["version"] == 3


def test_an_acceptance_selects_after_the_first_epoch_unless_told_otherwise():
    sampling = ImportanceSamplingCallback(acceptance=LossPercentile())
    assert isinstance(sampling.gate, Window)


def test_a_gate_that_chooses_from_batches_refuses_presamples(kit):
    sampling = ImportanceSamplingCallback(gate=ConstantVariance())
    data = OversamplingDataModule(kit.loader(), 24)
    with pytest.raises(ValueError, match="ConstantVariance chooses a part"):
        kit.trainer(sampling).fit(kit.Classifier(kit.mlp()), datamodule=data)


class Eight(Gate):
    """Always open, and trains on eight."""

    is_open = True

    def observe(self, evidence):
        pass

    def sizes(self, presample_size, batch_size):
        return Sizes(presample_size, min(8, batch_size))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_gate_that_chooses_sizes_keeps_the_size_of_the_step(kit, reduce):
    """Also of a summed loss, which has fewer terms when fewer are trained on."""

    class Summed(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.seen.append(len(x))
            return functional.cross_entropy(self.net(x), y, reduction=reduce)

        def on_before_optimizer_step(self, optimizer):
            gradients = [p.grad for p in self.parameters()]
            found.append(nn.utils.parameters_to_vector(gradients).clone())

    found: list[torch.Tensor] = []
    x, y = kit.examples(32)
    module = Summed(kit.mlp(), lr=0.0)
    loss = functional.cross_entropy(module.net(x), y, reduction=reduce)
    parts = torch.autograd.grad(loss, list(module.net.parameters()))
    # The ordinary step is one on 16 of the 32.
    full = nn.utils.parameters_to_vector(parts) / (2 if reduce == "sum" else 1)
    sampling = ImportanceSamplingCallback(16, gate=Eight(), when_closed="subset")
    data = DataLoader(TensorDataset(x, y), batch_size=16)
    trainer = kit.trainer(sampling, max_epochs=400)
    trainer.fit(module, datamodule=OversamplingDataModule(data, 32))
    moves = torch.stack(found[2:]).double()
    assert set(module.seen[2:]) == {8}
    error = moves.std(0) / len(moves) ** 0.5
    assert ((moves.mean(0) - full).abs() <= 5 * error + 1e-6).all()


def test_presamples_have_the_size_that_the_gate_asks_for(kit):
    """Each that arrives while it is open, a step late; else batches of the loader's."""
    gate = ConstantTime(threshold=1.5, smoothing=0.5, menu=16)
    arrived: list[int] = []
    asked: list[int] = []
    told: list[int] = []

    class Watching(OversamplingDataModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            told.append(gate.sizes(32, 16).presample)
            size = told[-1 if len(arrived) % 6 == 0 else -2]  # at once in a new epoch
            arrived.append(len(batch[0]))
            asked.append(size if gate.is_open else 16)
            return batch

    sampling = ImportanceSamplingCallback(16, gate=gate, when_closed="subset")
    module, (x, _) = kit.Classifier(kit.mlp(), lr=0.01), kit.examples(96)
    nn.init.normal_(module.net[2].weight, std=40.0)
    y = module.net(x).argmax(1)
    y[::8] = (y[::8] + 1) % 3  # these few alone are wrong: very uneven scores
    rows = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    trainer = kit.trainer(sampling, max_epochs=4)
    trainer.fit(module, datamodule=Watching(rows, 32))
    assert arrived == asked
    assert arrived[0] == 16
    assert 16 < max(arrived) < 32
    assert len(set(arrived)) > 2


class Weighted:
    """A pass over everything, in which examples count as a table says."""

    def __init__(self, table):
        self.table = table

    def __call__(self, scores, progress, generator):
        indices = torch.randperm(len(scores), generator=generator)
        return Pass(indices, self.table[indices])


def test_what_a_source_weights_higher_is_drawn_more_often(kit):
    """Scores count times the weight, or weights would only add to the variance."""

    class Noting(kit.Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

        def on_train_batch_start(self, batch, batch_idx):
            drawn.append(batch[2])

    drawn: list[torch.Tensor] = []
    weights = torch.linspace(0.2, 1.8, 12)
    kinds = torch.arange(12).repeat(10)  # alike, and so are their scores
    x, y = torch.ones(120, 6), torch.zeros(120, dtype=torch.int64)
    sampling = ImportanceSamplingCallback(
        40,
        source=PassSource(Weighted(weights[kinds]), warm_passes=0),
        plan=ImportancePlan(Proportional()),
        gate=AlwaysOpen(),
    )
    data = DataLoader(TensorDataset(x, y, kinds), batch_size=120)
    kit.trainer(sampling, max_epochs=30).fit(Noting(kit.mlp(), lr=0.0), data)
    counts = torch.bincount(torch.cat(drawn), minlength=12)
    shares = weights / weights.sum()
    error = (shares * (1 - shares) / 1200).sqrt()
    assert counts.sum() == 1200
    assert ((counts / 1200 - shares).abs() < 4 * error).all()
