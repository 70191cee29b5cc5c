"""The digits are split the same way every time, and fairly."""

import torch

from lightning_is.experiments.data import Digits


def test_every_digit_lands_in_exactly_one_part():
    splits = Digits().splits
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert [len(part) for part in parts] == [1297, 200, 300]
    # The whole set, whose class counts are published, is there again.
    counts = sum(torch.bincount(part.y) for part in parts)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_each_part_has_its_share_of_every_class():
    splits = Digits().splits
    whole = torch.bincount(splits.train.y) / 1297
    for part in (splits.val, splits.tests["test"]):
        expected = whole * len(part)
        assert (torch.bincount(part.y) - expected).abs().max() <= 1.5


def test_the_training_images_are_standardised():
    x = Digits().splits.train.x
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_two_runs_see_the_same_split_whatever_the_global_seed():
    first = Digits().splits.tests["test"]
    torch.manual_seed(1)
    second = Digits().splits.tests["test"]
    assert torch.equal(first.x, second.x)
