"""Black box: over many seeds, the mean update on drawn sequences is that of them all.

The sequences have different numbers of labels, which one of three averages over tokens
does not survive.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.language_model import LanguageModel
from lightning_is.experiments.token_losses import (
    PADDING,
    position_mean,
    sequence_mean,
    token_mean,
)
from lightning_is.experiments.transformer import Transformer
from lightning_is.sampling import AlwaysOpen
from tests.updates import OneStepFromTheSameStart, Repeated

SEEDS, PRESAMPLE, DRAWN, T, V, LR = 200, 16, 4, 8, 7, 0.1
LENGTHS = torch.tensor([1, 2, 3, T]).repeat(PRESAMPLE // 4)


def updates_and_expected(kit, loss):
    """An update for each seed, and that of the whole presample."""
    x, labels = torch.randint(V, (2, PRESAMPLE, T))
    labels[torch.arange(T) >= LENGTHS[:, None]] = PADDING
    net = Transformer(V, T, width=4, depth=1, heads=2)
    nn.init.normal_(net.head.weight, std=2)  # confident here, wrong there
    module = LanguageModel(net, partial(torch.optim.SGD, lr=LR), loss=loss)
    gradients = torch.autograd.grad(loss(module(x), labels), list(net.parameters()))
    expected = -LR * nn.utils.parameters_to_vector(gradients).double()
    sampling = ImportanceSamplingCallback(DRAWN, gate=AlwaysOpen(), report=False)
    recorder = OneStepFromTheSameStart(sampling)
    data = DataLoader(Repeated([x, labels], SEEDS), batch_size=None)
    kit.trainer(sampling, recorder, log_every_n_steps=10**9).fit(module, data)
    return torch.stack(recorder.updates).double(), expected


def standard_errors(updates, expected):
    """Deviation along random directions and along the gradient, in standard errors."""
    directions = torch.randn(31, len(expected), dtype=torch.float64)
    directions = torch.cat([directions, expected[None]])
    seen = updates @ directions.T
    return (seen.mean(0) - directions @ expected) / (seen.std(0) / len(seen) ** 0.5)


@pytest.mark.parametrize("loss", [position_mean, sequence_mean])
def test_means_of_what_is_each_sequences_own_are_estimated_without_bias(kit, loss):
    updates, expected = updates_and_expected(kit, loss)
    assert len(updates) == SEEDS
    assert updates.std(0).max() > 0
    assert standard_errors(updates, expected).abs().max() < 4


def test_the_mean_over_all_labels_takes_steps_that_are_too_short(kit):
    updates, expected = updates_and_expected(kit, token_mean)
    assert standard_errors(updates, expected)[-1].abs() > 8
    along = updates.mean(0) @ expected / expected.square().sum()
    assert 0.5 < along < 0.9
