"""Black box: over many seeds, the mean update is the full presample's update."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is import ImportanceSamplingCallback, SampledBatch
from lightning_is.sampling import AlwaysOpen, ImportancePlan, UnitWeights
from tests.updates import OneStepFromTheSameStart, Repeated

SEEDS, PRESAMPLE, BATCH, LR = 2000, 24, 6, 0.1


def updates_over_seeds(kit, net, batch, sampling, seeds=SEEDS):
    module = kit.Classifier(net, lr=LR)
    recorder = OneStepFromTheSameStart(sampling)
    data = DataLoader(Repeated(batch, seeds), batch_size=None)
    kit.trainer(sampling, recorder, log_every_n_steps=10**9).fit(module, data)
    assert set(module.seen) == {BATCH}
    return torch.stack(recorder.updates).double()


def full_update(net, x, y, weights=None):
    losses = functional.cross_entropy(net(x), y, reduction="none")
    loss = (losses if weights is None else losses * weights).mean()
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return -LR * nn.utils.parameters_to_vector(gradients).double()


def standard_errors(updates, expected):
    """Deviation along random directions and along the gradient, in standard errors."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(
        31, len(expected), generator=generator, dtype=torch.float64
    )
    directions = torch.cat([directions, expected[None]])
    seen = updates @ directions.T
    return (seen.mean(0) - directions @ expected) / (seen.std(0) / len(seen) ** 0.5)


def relative_excess(updates, expected):
    """Squared error of the mean over its expectation if unbiased; 1 on average."""
    variance = updates.var(0).sum() / len(updates)
    return ((updates.mean(0) - expected).square().sum() / variance).item()


def paper(**settings):
    sampling = ImportanceSamplingCallback.paper(BATCH, **settings)
    sampling.gate = AlwaysOpen()
    return sampling


def trim(**settings):
    return ImportanceSamplingCallback(BATCH, gate=AlwaysOpen(), **settings)


NETS = [pytest.param("mlp", (6,), id="mlp"), pytest.param("cnn", (1, 6, 6), id="cnn")]


@pytest.mark.parametrize("preset", [paper, trim])
@pytest.mark.parametrize(("net", "shape"), NETS)
def test_the_mean_update_over_seeds_is_the_full_presamples(kit, preset, net, shape):
    x, y = kit.examples(PRESAMPLE, shape)
    network = getattr(kit, net)()
    expected = full_update(network, x, y)

    updates = updates_over_seeds(kit, network, [x, y], preset())

    assert standard_errors(updates, expected).abs().max() < 4
    assert relative_excess(updates, expected) < 1.5


def test_the_check_above_sees_a_biased_plan(kit):
    x, y = kit.examples(PRESAMPLE)
    network = kit.mlp()
    expected = full_update(network, x, y)
    plan = ImportancePlan(weights=UnitWeights())

    updates = updates_over_seeds(kit, network, [x, y], trim(plan=plan), seeds=500)

    assert standard_errors(updates, expected).abs().max() > 8
    assert relative_excess(updates, expected) > 10


def test_systematic_trim_is_less_noisy_than_the_papers_draw(kit):
    x, y = kit.examples(PRESAMPLE)
    network = kit.mlp()
    noise = [
        updates_over_seeds(kit, network, [x, y], preset(), seeds=300).var(0).sum()
        for preset in (trim, paper)
    ]
    assert noise[0] < 0.8 * noise[1]


def test_weights_of_an_earlier_draw_multiply(kit):
    """Two stages: the mean update is that of the weighted presample, duplicates too."""
    x, y = kit.examples(PRESAMPLE)
    index = torch.arange(PRESAMPLE)
    index[5] = index[4]  # drawn twice
    x, y = x[index], y[index]
    weight = torch.linspace(0.2, 2.5, PRESAMPLE)
    network = kit.mlp()
    expected = full_update(network, x, y, weight)
    batch = SampledBatch([x, y], index, weight)

    updates = updates_over_seeds(kit, network, batch, trim())

    assert standard_errors(updates, expected).abs().max() < 4
    assert relative_excess(updates, expected) < 1.5
