"""Averages over tokens are those of a loop, and padding is in none of them."""

import pytest
import torch

from lightning_is.experiments.token_losses import (
    PADDING,
    per_sequence,
    position_mean,
    sequence_mean,
    token_losses,
    token_mean,
)

LENGTHS, T, V = [6, 1, 3, 4], 6, 5
MEANS = [position_mean, sequence_mean, token_mean]


@pytest.fixture
def labels():
    found = torch.randint(V, (len(LENGTHS), T))
    for row, length in zip(found, LENGTHS, strict=True):
        row[length:] = PADDING
    return found


@pytest.fixture
def logits():
    return torch.randn(len(LENGTHS), T, V, requires_grad=True)


def sums(logits, labels):
    """The summed loss of each sequence, token by token."""
    return [
        sum(-logits[i, t].log_softmax(0)[labels[i, t]] for t in range(length))
        for i, length in enumerate(LENGTHS)
    ]


def test_each_average_is_that_of_a_loop(logits, labels):
    found = sums(logits, labels)
    pairs = list(zip(found, LENGTHS, strict=True))
    expected = [
        sum(found) / len(found) / T,
        sum(s / n for s, n in pairs) / len(found),
        sum(found) / sum(LENGTHS),
    ]
    for mean, value in zip(MEANS, expected, strict=True):
        torch.testing.assert_close(mean(logits, labels), value)


def test_the_mean_of_a_sequence_is_over_its_labels(logits, labels):
    found = per_sequence(token_losses(logits, labels), labels)
    pairs = zip(sums(logits, labels), LENGTHS, strict=True)
    torch.testing.assert_close(found, torch.stack([s / n for s, n in pairs]))


def test_a_sequence_without_labels_counts_nothing():
    labels = torch.full((2, T), PADDING)
    labels[0, 0] = 1
    logits = torch.zeros(2, T, V)
    expected = torch.tensor([V, 1.0]).log()
    losses = per_sequence(token_losses(logits, labels), labels)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("mean", MEANS)
def test_padding_has_neither_loss_nor_gradient(mean, logits, labels):
    loss = mean(logits, labels)
    [gradient] = torch.autograd.grad(loss, logits)
    padded = labels == PADDING
    assert gradient[padded].abs().max() == 0
    assert (gradient[~padded].abs().amax(1) > 0).all()
    other = torch.where(padded[..., None], 100 * torch.randn(logits.shape), logits)
    torch.testing.assert_close(mean(other, labels), loss)


def test_without_padding_all_averages_are_one(logits):
    labels = torch.randint(V, (len(LENGTHS), T))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    for mean in MEANS:
        torch.testing.assert_close(mean(logits, labels), expected)
