"""Frozen batch normalisation goes by what it was given, and nothing changes that."""

import pytest
import torch
from torch import nn

from lightning_is.experiments.frozen_norm import FrozenBatchNorm, freeze_statistics


def used(norm, x):
    """A layer as training leaves it."""
    for _ in range(3):
        norm(x + torch.rand(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2)))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


CASES = [
    pytest.param(nn.BatchNorm1d(3), (5, 3), id="1d"),
    pytest.param(nn.BatchNorm2d(3, eps=0.1), (5, 3, 2, 2), id="2d"),
    pytest.param(nn.BatchNorm3d(3), (5, 3, 2, 2, 2), id="3d"),
]


@pytest.mark.parametrize(("norm", "shape"), CASES)
def test_it_computes_in_training_what_the_layer_computes_in_evaluation(norm, shape):
    x = torch.randn(shape)
    used(norm, x)
    frozen = FrozenBatchNorm(norm).train()
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert torch.equal(frozen(x)[:2], frozen(x[:2]))  # each by itself


def test_scale_and_shift_train_and_the_statistics_do_not():
    x = torch.randn(6, 3)
    frozen = FrozenBatchNorm(used(nn.BatchNorm1d(3), x)).train()
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    frozen(x).square().sum().backward()
    assert [name for name, _ in frozen.named_parameters()] == ["weight", "bias"]
    assert all(p.grad.abs().min() > 0 for p in frozen.parameters())
    assert len(before) == 3
    assert all(torch.equal(b, before[name]) for name, b in frozen.named_buffers())


def test_every_layer_inside_is_replaced_under_the_same_names():
    net = nn.Sequential(
        nn.Linear(2, 3),
        nn.BatchNorm1d(3),
        nn.ModuleDict({"inner": nn.Sequential(nn.BatchNorm1d(3, affine=False))}),
    )
    before = {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    freeze_statistics(net)
    after = {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    assert after == before
    kinds = [type(part) for part in net.modules()]
    assert kinds.count(FrozenBatchNorm) == 2
    assert nn.BatchNorm1d not in kinds


def test_a_conversion_to_synchronised_layers_passes_it_by():
    net = nn.Sequential(nn.BatchNorm1d(3))
    freeze_statistics(net)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[0], FrozenBatchNorm)


def test_a_layer_without_statistics_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"with running statistics.*track_running"):
        freeze_statistics(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
