"""In every precision: the same scores and gradients, to its rounding; no overflow."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is import ImportanceSamplingCallback, SampledBatch
from lightning_is.sampling import (
    AlwaysOpen,
    ImportancePlan,
    Mixed,
    NeverOpen,
)
from lightning_is.scoring import GradientNorm, HeadTap, Loss, example_norms

# The Trainer's own name, what logits come in, and how well it rounds.
PRECISIONS = {
    "32-true": (torch.float32, 1e-5),
    "bf16-mixed": (torch.bfloat16, 3e-2),
    "bf16-true": (torch.bfloat16, 3e-2),
    "16-mixed": (torch.float16, 4e-3),
    "16-true": (torch.float16, 4e-3),
}
BATCH = 4


def precisely(precision, scale=2.0**10):
    """Arguments of a Trainer; on the CPU it makes no scaler by itself."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}


def scale_of(trainer):
    return trainer.precision_plugin.scaler.get_scale()


def opened(**settings):
    return ImportanceSamplingCallback(BATCH, gate=AlwaysOpen(), **settings)


class Each(L.Callback):
    """Calls a function at the end of every batch."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.function(trainer, batch)


def noting(kit):
    """A module, and what it notes: type of the logits and size of every batch."""
    notes = []  # beside the module, which scoring leaves as it was

    class Noting(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            z = self.net(x)
            notes.append((z.dtype, len(x)))
            return functional.cross_entropy(z, y)

    return Noting(kit.mlp()), notes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_computed_in_the_precision_of_the_step(kit, precision):
    module, notes = noting(kit)
    trainer = kit.trainer(opened(), max_steps=2, **precisely(precision))
    trainer.fit(module, kit.loader())
    dtype = PRECISIONS[precision][0]
    assert notes[-4:] == [(dtype, 12), (dtype, BATCH)] * 2


def test_scores_may_be_computed_in_less_than_a_scaled_step(kit):
    module, notes = noting(kit)
    sampling = opened(score_precision="bf16")
    trainer = kit.trainer(sampling, max_steps=2, **precisely("16-mixed"))
    trainer.fit(module, kit.loader())
    assert notes[-2:] == [(torch.bfloat16, 12), (torch.float16, BATCH)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_step_is_the_weighted_mean_of_the_drawn_examples(kit, precision):
    """One step of gradient descent, against the same in float64 by hand."""
    net, (dtype, tolerance) = kit.mlp(), PRECISIONS[precision]
    module, found, sampling = kit.Classifier(copy.deepcopy(net)), [], opened()

    def look(trainer, batch):
        found.append((batch, sampling._fit.engine._step.weights))

    trainer = kit.trainer(sampling, Each(look), max_steps=1, **precisely(precision))
    trainer.fit(module, kit.loader())
    (((x, y), weights),) = found
    assert weights.dtype == torch.float32
    losses = functional.cross_entropy(net.double()(x.double()), y, reduction="none")
    (weights * losses).mean().backward()
    slope = torch.cat([p.grad.flatten() for p in net.parameters()])
    pairs = zip(parameters(net), parameters(module.net), strict=True)
    moved = torch.cat([(a - b.double()).flatten() / 0.1 for a, b in pairs])
    if dtype is torch.bfloat16 and precision.endswith("true"):
        tolerance = 0.2  # parameters themselves are rounded, to three digits
    if precision == "16-true":
        tolerance = 0.05
    error = (moved - slope).norm() / slope.norm()
    assert error < tolerance


def parameters(net):
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("gate", [AlwaysOpen(), NeverOpen()], ids=["open", "closed"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_gradient_norms_in_float32(kit, precision, gate):
    """Also off the backward pass of a step whose loss is scaled."""
    net, found = kit.mlp(), []
    module = kit.Classifier(copy.deepcopy(net), lr=0.0)
    sampling = ImportanceSamplingCallback(BATCH, gate=gate)

    def look(trainer, batch):
        found.append(sampling._fit.engine._step.scores)

    settings = {"max_steps": 2, **precisely(precision)}
    kit.trainer(sampling, Each(look), **settings).fit(module, kit.loader())
    x, y = kit.examples()
    slopes = net(x).softmax(1) - functional.one_hot(y, 3)
    for scores, rows in zip(found, slopes.norm(dim=1).split(12), strict=False):
        assert scores.dtype == torch.float32
        loose = 5 * PRECISIONS[precision][1]
        torch.testing.assert_close(scores, rows.detach(), rtol=loose, atol=loose)


@pytest.mark.parametrize("scorer", [Loss(), GradientNorm()], ids=["loss", "norm"])
@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_the_other_scorers_score_in_every_precision(kit, precision, scorer):
    found = {}
    for name in ("32-true", precision):
        torch.manual_seed(0)
        sampling = opened(scorer=scorer)

        def look(trainer, batch, name=name, sampling=sampling):
            found[name] = sampling._fit.engine._step.scores

        trainer = kit.trainer(sampling, Each(look), max_steps=1, **precisely(name))
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    scores = found[precision]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, found["32-true"], rtol=0.1, atol=0.05)


def test_norms_whose_squares_exceed_float16_are_exact():
    rows = torch.full((2, 4096), 300.0, dtype=torch.float16)
    expected = torch.full((2,), 300.0 * 64)
    assert torch.equal(example_norms([rows], 2), expected)


class Even:
    """Weights that are all the same."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, draw, candidates):
        return torch.full((len(draw.indices),), self.weight)


def faint(kit, weight):
    """A module whose loss is as small as the weights are large."""

    class Faint(kit.Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.net(x).float(), y) / weight

    torch.manual_seed(0)
    return Faint(kit.mlp())


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-mixed"])
def test_weights_beyond_float16_are_applied_exactly(kit, precision):
    """They meet gradients as small: 1 / (B g) is largest where g is smallest."""
    moved, scales = [], []
    for weight in (1.0, 1e5):
        module = faint(kit, weight)
        start = torch.nn.utils.parameters_to_vector(parameters(module))
        plan = ImportancePlan(Mixed(share=1.0), weights=Even(weight))
        settings = {"max_steps": 3, **precisely(precision)}
        trainer = kit.trainer(opened(plan=plan), **settings)
        trainer.fit(module, kit.loader())
        end = torch.nn.utils.parameters_to_vector(parameters(module))
        moved.append(end.float() - start)
        if precision == "16-mixed":
            scales.append(scale_of(trainer))
    assert moved[0].norm() > 0.1
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()
    assert set(scales) <= {2.0**10}  # no step was skipped


def test_a_gradient_of_zero_stays_zero_under_any_weight():
    head, z = torch.nn.Identity(), torch.zeros(2, 3, dtype=torch.float16)
    tap = HeadTap([head])
    tap.attach()
    z.requires_grad_()
    with tap.weighting(torch.tensor([1e30, 2.0])):
        out = head(z)
    out.backward(torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float16))
    assert z.grad.tolist() == [[0.0] * 3, [2.0] * 3]


def test_a_product_that_overflows_is_skipped_by_the_scaler_which_backs_off(kit):
    module, scales = kit.Classifier(kit.mlp(), lr=1e-4), []
    start = torch.nn.utils.parameters_to_vector(parameters(module))
    plan = ImportancePlan(Mixed(share=1.0), weights=Even(200.0))
    look = Each(lambda trainer, batch: scales.append(scale_of(trainer)))
    settings = {"max_steps": 12, "max_epochs": -1, **precisely("16-mixed", 2.0**14)}
    kit.trainer(opened(plan=plan), look, **settings).fit(module, kit.loader())
    end = torch.nn.utils.parameters_to_vector(parameters(module))
    assert scales[0] == 2.0**13
    assert scales[-1] == scales[-2] >= 2.0**4
    assert end.isfinite().all()
    assert not torch.equal(start, end)


def test_weights_that_the_trainer_made_float16_are_refused(kit):
    x, y = kit.examples(12)
    batch = SampledBatch([x, y], torch.arange(12), torch.full((12,), 1e5))
    data = DataLoader([batch], batch_size=None)
    trainer = kit.trainer(opened(), precision="16-true")
    with pytest.raises(ValueError, match="must have the range of float32, got float16"):
        trainer.fit(kit.Classifier(kit.mlp()), data)
