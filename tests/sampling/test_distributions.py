"""Every distribution hands out probabilities, whatever the scores."""

import pytest
import torch

from lightning_is.sampling import distributions
from lightning_is.sampling.distributions import (
    Distribution,
    Mixed,
    Proportional,
    Uniform,
)

MEMBERS = [  # a new distribution joins here
    pytest.param(Proportional(), id="proportional"),
    pytest.param(Uniform(), id="uniform"),
    pytest.param(Mixed(), id="mixed"),
    pytest.param(Mixed(share=1.0), id="all-uniform"),
    pytest.param(Mixed(base=Uniform(), share=0.5), id="mixed-uniform"),
]
BY_SCORE = [param for param in MEMBERS if param.id in {"proportional", "mixed"}]
SCORES = [
    pytest.param([1.0, 2.0, 3.0], id="mild"),
    pytest.param([0.0, 5.0, 0.0, 1e-6], id="with-zeros"),
    pytest.param([0.0, 0.0, 0.0], id="all-zero"),
    pytest.param([1e30, 1e-30], id="extreme"),
    pytest.param([4.0], id="single"),
]


def test_every_distribution_is_listed_here():
    written = {
        found
        for found in vars(distributions).values()
        if isinstance(found, type)
        and found.__module__ == distributions.__name__
        and issubclass(found, Distribution)
        and found is not Distribution
    }
    assert written == {type(param.values[0]) for param in MEMBERS}


@pytest.mark.parametrize("distribution", MEMBERS)
@pytest.mark.parametrize("scores", SCORES)
def test_probabilities_are_at_least_zero_and_sum_to_one(distribution, scores):
    probs = distribution(torch.tensor(scores))
    assert probs.shape == (len(scores),)
    assert probs.dtype == torch.float64
    assert (probs >= 0).all()
    assert probs.sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("distribution", MEMBERS)
def test_the_order_and_the_unit_of_the_scores_do_not_matter(distribution):
    scores = torch.tensor([1.0, 0.0, 8.0, 2.0])
    order = torch.tensor([2, 0, 3, 1])
    probs = distribution(scores)
    torch.testing.assert_close(distribution(scores[order]), probs[order])
    torch.testing.assert_close(distribution(scores * 1e-20), probs)


@pytest.mark.parametrize("distribution", MEMBERS)
def test_zero_or_equal_scores_are_drawn_uniformly(distribution):
    even = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(distribution(torch.zeros(4)), even)
    torch.testing.assert_close(distribution(torch.full((4,), 3.0)), even)


@pytest.mark.parametrize("distribution", MEMBERS)
def test_no_distribution_waits_for_the_device(distribution):
    assert distribution(torch.ones(5, device="meta")).shape == (5,)


@pytest.mark.parametrize("distribution", BY_SCORE)
def test_a_higher_score_is_more_likely(distribution):
    probs = distribution(torch.tensor([3.0, 1.0, 2.0]))
    assert probs.argsort().tolist() == [1, 2, 0]


@pytest.mark.parametrize("distribution", BY_SCORE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_faulty_scores_are_refused(distribution, bad):
    with pytest.raises(ValueError, match=r"got 1 of 2 .* at positions \{1: "):
        distribution(torch.tensor([1.0, bad]))


def test_proportional_is_the_share_of_the_score():
    probs = Proportional()(torch.tensor([1.0, 0.0, 3.0]))
    assert probs.tolist() == [0.25, 0.0, 0.75]


def test_uniform_ignores_the_scores():
    assert Uniform()(torch.tensor([1.0, 9.0, 0.0, 0.0])).tolist() == [0.25] * 4


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_mixed_blends_its_base_with_the_uniform_share(share):
    scores = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    base = torch.tensor([0.0, 0.25, 0.75, 0.0], dtype=torch.float64)
    probs = Mixed(share=share)(scores)
    torch.testing.assert_close(probs, (1 - share) * base + share / 4)
    assert probs.min().item() == pytest.approx(share / 4)


def test_mixed_defends_the_base_it_was_given():
    class Last:
        def __call__(self, scores):
            return torch.eye(len(scores), dtype=torch.float64)[-1]

    probs = Mixed(base=Last(), share=0.2)(torch.tensor([7.0, 1.0]))
    assert probs.tolist() == pytest.approx([0.1, 0.9])


def test_mixed_keeps_five_percent_uniform_unless_told_otherwise():
    assert Mixed()(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.025, 0.975])


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share):
    rule = rf"`share` .* must be in \[0, 1\], got {share}\. Use 0\.05"
    with pytest.raises(ValueError, match=rule):
        Mixed(share=share)
