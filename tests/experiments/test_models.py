"""Every network trains all of its weights, in either memory format."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_is.experiments.models import MLP, SmallCNN
from lightning_is.experiments.norms import normalisation
from lightning_is.experiments.wide_resnet import WideResNet

SMALL_WRN = partial(WideResNet, depth=10, width=1)
NETWORKS = [  # a new network joins here
    pytest.param(lambda: MLP(features=64, classes=10), (1, 8, 8), id="mlp"),
    pytest.param(lambda: SmallCNN(channels=1, classes=10), (1, 8, 8), id="cnn-8"),
    pytest.param(lambda: SmallCNN(channels=3, classes=10), (3, 32, 32), id="cnn-32"),
    pytest.param(
        lambda: SmallCNN(channels=1, classes=10, norm="batch"), (1, 8, 8), id="cnn-bn"
    ),
    pytest.param(lambda: SMALL_WRN(norm="batch"), (3, 16, 16), id="wrn-batch"),
    pytest.param(lambda: SMALL_WRN(norm="group"), (3, 16, 16), id="wrn-group"),
    pytest.param(
        lambda: SMALL_WRN(norm="layer", dropout=0.1), (3, 16, 16), id="wrn-ln"
    ),
]


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_the_loss_reaches_every_weight(make, shape):
    net = make()
    nn.functional.cross_entropy(net(torch.randn(4, *shape)), torch.arange(4)).backward()
    still = [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(("make", "shape"), NETWORKS[1:])
def test_channels_last_holds_up_to_the_pooling_and_changes_no_result(make, shape):
    net, x = make().eval(), torch.randn(4, *shape)
    expected = net(x)
    strides = []

    def note(module, inputs, output):
        strides.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    net.to(memory_format=torch.channels_last)
    result = net(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert all(strides)
    assert len(strides) >= 3


def test_wrn_28_2_has_the_published_size():
    # Oliver et al. (2018), "Realistic Evaluation": about 1.5 million parameters.
    assert sum(p.numel() for p in WideResNet().parameters()) == 1_467_610


SMALL_CNN = partial(SmallCNN, channels=3, classes=10)


@pytest.mark.parametrize(
    ("make", "norm", "alone"),
    [
        (SMALL_WRN, "batch", False),
        (SMALL_WRN, "group", True),
        (SMALL_WRN, "layer", True),
        (SMALL_CNN, "batch", False),
        (SMALL_CNN, "group", True),
        (SMALL_CNN, "layer", True),
        (SMALL_CNN, None, True),
    ],
)
def test_only_batch_norm_couples_the_examples_of_a_batch(make, norm, alone):
    net, x = make(norm=norm).train(), torch.randn(4, 3, 8, 8)
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5) is alone


def test_dropout_acts_in_training_only():
    net, x = SMALL_WRN(norm="group", dropout=0.5), torch.randn(2, 3, 8, 8)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("depth", [4, 27])
def test_a_depth_that_fills_no_groups_is_refused(depth):
    with pytest.raises(ValueError, match=f"6 n \\+ 4 .* got {depth}"):
        WideResNet(depth=depth)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="batch, group, layer, got 'instance'"):
        normalisation("instance", 16)


def test_channels_that_fall_into_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"8 equal groups, got 4. .* norm=layer"):
        SMALL_CNN(width=4, norm="group")


def test_each_convolution_of_the_cnn_is_normalised():
    norms = [
        m for m in SMALL_CNN(norm="batch").modules() if isinstance(m, nn.BatchNorm2d)
    ]
    assert [norm.num_features for norm in norms] == [16, 32, 64]
