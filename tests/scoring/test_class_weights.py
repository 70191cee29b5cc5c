"""A mean weighted by class is noticed, whoever computes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_is.scoring import GradientNorm, HeadTap, Step
from lightning_is.scoring.class_weights import RefuseClassWeights

Z, Y, W = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 5.0, 20.0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda: functional.cross_entropy(Z, Y, W),
        lambda: functional.cross_entropy(Z, Y, weight=W, reduction="mean"),
        lambda: functional.nll_loss(Z, Y, W),
        lambda: nn.CrossEntropyLoss(weight=W)(Z, Y),
    ],
)
def test_a_weighted_mean_is_refused(loss):
    with RefuseClassWeights(), pytest.raises(ValueError, match="weighted by class"):
        loss()


@pytest.mark.parametrize(
    "settings", [{}, {"weight": W, "reduction": "sum"}, {"reduction": "none"}]
)
def test_what_one_example_does_not_cancel_is_let_through(settings):
    expected = functional.cross_entropy(Z, Y, **settings)
    with RefuseClassWeights():
        assert torch.equal(functional.cross_entropy(Z, Y, **settings), expected)


def test_the_gradient_norm_refuses_it():
    head = nn.Linear(3, 3)
    step = Step(
        lambda rows: functional.cross_entropy(head(rows), Y[: len(rows)], W),
        Z + 1,
        head,
        lambda rows, places: rows[places],
    )
    with pytest.raises(ValueError, match="per_sample_loss="):
        GradientNorm().score(step, HeadTap([head]), 4)
