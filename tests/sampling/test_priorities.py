"""Priorities are probabilities over a table in which some examples are unseen."""

import pytest
import torch

from lightning_is.sampling import priorities
from lightning_is.sampling.distributions import Distribution
from lightning_is.sampling.priorities import (
    Power,
    RankExponential,
    RankPower,
    check_known,
)

INF = float("inf")
MEMBERS = [  # a new priority joins here
    pytest.param(RankExponential(), id="rank-exponential"),
    pytest.param(RankPower(), id="rank-power"),
    pytest.param(Power(), id="power"),
]
UNIFORM = [
    pytest.param(RankExponential(pressure=1.0), id="rank-exponential"),
    pytest.param(RankPower(alpha=0.0), id="rank-power"),
    pytest.param(Power(alpha=0.0), id="power"),
]
BY_RANK = [param for param in MEMBERS if param.id.startswith("rank")]
SCORES = [
    pytest.param([1.0, 2.0, 3.0], id="mild"),
    pytest.param([0.0, 5.0, 0.0, 1e-6], id="with-zeros"),
    pytest.param([0.0, 0.0, 0.0], id="all-zero"),
    pytest.param([1e30, 1e-30], id="extreme"),
    pytest.param([INF, 1.0, INF], id="with-unseen"),
    pytest.param([INF, INF], id="all-unseen"),
    pytest.param([INF, 0.0], id="zero-and-unseen"),
    pytest.param([4.0], id="single"),
]


def test_every_priority_is_listed_here():
    written = {
        found
        for found in vars(priorities).values()
        if isinstance(found, type)
        and found.__module__ == priorities.__name__
        and issubclass(found, Distribution)
    }
    assert written == {type(param.values[0]) for param in MEMBERS}


@pytest.mark.parametrize("priority", [*MEMBERS, Power(epsilon=0.0), Power(50.0)])
@pytest.mark.parametrize("scores", SCORES)
def test_probabilities_are_at_least_zero_and_sum_to_one(priority, scores):
    probs = priority(torch.tensor(scores))
    assert probs.shape == (len(scores),)
    assert probs.dtype == torch.float64
    assert (probs >= 0).all()
    assert probs.sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("priority", MEMBERS)
def test_the_order_of_the_table_does_not_matter_where_no_two_are_equal(priority):
    scores = torch.tensor([1.0, 0.0, 8.0, INF, 2.0])
    order = torch.tensor([2, 4, 0, 3, 1])
    probs = priority(scores)
    torch.testing.assert_close(priority(scores[order]), probs[order])


@pytest.mark.parametrize("priority", MEMBERS)
def test_a_higher_score_is_more_likely(priority):
    probs = priority(torch.tensor([3.0, 1.0, 2.0]))
    assert probs.argsort().tolist() == [1, 2, 0]


@pytest.mark.parametrize("priority", MEMBERS)
def test_none_is_more_likely_than_one_never_seen(priority):
    probs = priority(torch.tensor([3.0, 1e30, INF, 2.0]))
    assert probs[2] == probs.max()


@pytest.mark.parametrize("priority", BY_RANK)
def test_equal_scores_rank_by_position_and_values_do_not_matter(priority):
    for scores in ([1.0] * 4, [INF] * 4, [4e9, 3.0, 0.2, 0.1]):
        probs = priority(torch.tensor(scores))
        assert probs.argsort(descending=True).tolist() == [0, 1, 2, 3]
        torch.testing.assert_close(probs, priority(torch.tensor([9.0, 8.0, 7.0, 0.0])))


@pytest.mark.parametrize("priority", UNIFORM)
@pytest.mark.parametrize("scores", [[5.0, 0.0, 1.0, INF], [0.0] * 4])
def test_the_weakest_preference_is_the_uniform_one(priority, scores):
    torch.testing.assert_close(
        priority(torch.tensor(scores)), torch.full((4,), 0.25, dtype=torch.float64)
    )


@pytest.mark.parametrize("priority", MEMBERS)
def test_no_priority_waits_for_the_device(priority):
    assert priority(torch.ones(5, device="meta")).shape == (5,)


@pytest.mark.parametrize("priority", [*MEMBERS, check_known])
@pytest.mark.parametrize("bad", [float("nan"), -1.0, -INF])
def test_faulty_scores_are_refused_and_unseen_ones_are_not_counted(priority, bad):
    with pytest.raises(ValueError, match=r"got 1 of 3 .* at positions \{1: "):
        priority(torch.tensor([1.0, bad, INF]))


def test_rank_exponential_is_that_of_online_batch_selection():
    probs = RankExponential(100.0)(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    expected = [0.60797, 0.24204, 0.09636, 0.03836, 0.01527]
    assert probs.tolist() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("pressure", [1.0, 7.0, 1e6])
def test_the_pressure_is_about_the_ratio_of_the_first_to_the_last(pressure):
    probs = RankExponential(pressure)(torch.arange(1000.0))
    ratio = (probs[-1] / probs[0]).item()
    assert ratio == pytest.approx(pressure ** (999 / 1000), rel=1e-9)


def test_rank_power_is_a_power_of_the_inverse_rank():
    probs = RankPower(alpha=2.0)(torch.tensor([0.1, INF, 7.0]))
    shares = torch.tensor([1 / 9, 1.0, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(probs, shares / shares.sum())


@pytest.mark.parametrize(("alpha", "epsilon"), [(0.6, 1e-6), (1.0, 0.5), (0.5, 0.0)])
def test_power_is_the_formula_with_the_unseen_at_the_top_of_the_known(alpha, epsilon):
    probs = Power(alpha, epsilon)(torch.tensor([0.0, INF, 7.0, 2.0]))
    known = torch.tensor([0.0, 7.0, 7.0, 2.0], dtype=torch.float64)
    shares = (known + epsilon) ** alpha
    torch.testing.assert_close(probs, shares / shares.sum())


def test_the_defaults_are_those_of_public_implementations():
    assert (RankExponential().pressure, RankPower().alpha) == (100, 0.6)
    assert (Power().alpha, Power().epsilon) == (0.6, 0.1)


@pytest.mark.parametrize(
    ("make", "name"), [(RankPower, "alpha"), (Power, "alpha"), (Power, "epsilon")]
)
@pytest.mark.parametrize("bad", [-0.1, INF, float("nan")])
def test_a_setting_below_zero_is_refused(make, name, bad):
    rule = rf"`{name}` must be a number of at least 0, got {bad}\. \w+ is"
    with pytest.raises(ValueError, match=rule):
        make(**{name: bad})


@pytest.mark.parametrize("bad", [0.99, INF, float("nan")])
def test_a_pressure_below_one_is_refused(bad):
    rule = rf"`pressure` must be a number of at least 1, got {bad}\. 1 is"
    with pytest.raises(ValueError, match=rule):
        RankExponential(bad)
