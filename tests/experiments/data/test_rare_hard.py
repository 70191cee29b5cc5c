"""Common points are easy, rare ones are not, and both are learnable."""

import pytest
import torch

from lightning_is.experiments.data import RareHard
from lightning_is.experiments.data.rare_hard import CELLS, CENTRES


def nearest_centre(x):
    return torch.cdist(x, CENTRES).argmin(dim=1)


def colour(x):
    return ((x + 1) / 2 * CELLS).floor().long().sum(dim=1) % 2


def accuracy(rule, part):
    return (rule(part.x) == part.y).float().mean().item()


def test_the_nearest_centre_solves_the_common_part_only():
    tests = RareHard(n=5000).splits.tests
    assert accuracy(nearest_centre, tests["common"]) > 0.999
    assert accuracy(nearest_centre, tests["rare"]) < 0.5


def test_the_board_solves_the_rare_part_without_error():
    assert accuracy(colour, RareHard(n=5000).splits.tests["rare"]) == 1.0


def test_training_holds_the_asked_share_of_rare_points():
    x = RareHard(n=1000, rare_share=0.05).splits.train.x
    assert (x.abs().max(dim=1).values <= 1).sum().item() == 50


def test_the_seed_alone_determines_the_points():
    before = torch.get_rng_state()
    first, other = RareHard(n=500, seed=3).splits, RareHard(n=500, seed=4).splits
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.train.x, RareHard(n=500, seed=3).splits.train.x)
    assert not torch.equal(first.train.x, other.train.x)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=rf"within \[0, 1\], got {share}"):
        RareHard(rare_share=share)
