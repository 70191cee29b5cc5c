"""A mean in which examples count unequally is noticed, whoever computes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_is.scoring import GradientNorm, HeadTap, Step
from lightning_is.scoring.uneven_means import RefuseUnevenMeans

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
    with RefuseUnevenMeans(4), pytest.raises(ValueError, match="weighted by class"):
        loss()


@pytest.mark.parametrize(
    "settings", [{}, {"weight": W, "reduction": "sum"}, {"reduction": "none"}]
)
def test_what_one_example_does_not_cancel_is_let_through(settings):
    expected = functional.cross_entropy(Z, Y, **settings)
    with RefuseUnevenMeans(4):
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


def tokens(*valid, length=4):
    """Labels of sequences of which the first few count."""
    rows = [[1] * n + [-100] * (length - n) for n in valid]
    return torch.tensor(rows)


@pytest.mark.parametrize("labels", [tokens(1, 4), tokens(1, 4).T, tokens(2, 3, 3, 4)])
def test_a_mean_over_unequal_numbers_of_tokens_is_refused(labels):
    logits = torch.zeros(labels.numel(), 3)
    examples = 2 if labels.numel() == 8 else 4
    with RefuseUnevenMeans(examples), pytest.raises(ValueError, match="more labels of"):
        functional.cross_entropy(logits, labels.flatten())


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        (tokens(3, 3), {}),
        (tokens(3, 0), {}),  # one without labels has no gradient, alone or not
        (tokens(1, 4), {"reduction": "sum"}),
        (torch.eye(3)[[0, 1]], {}),  # shares of classes
        (torch.tensor([0, -100, 2, -100]), {}),
    ],
)
def test_equal_numbers_of_tokens_are_let_through(labels, settings):
    labels = labels if labels.is_floating_point() else labels.flatten()
    with RefuseUnevenMeans(2):
        functional.cross_entropy(torch.zeros(len(labels), 3), labels, **settings)
