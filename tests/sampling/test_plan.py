"""A plan is its three stages, one after the other."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from lightning_is.sampling.distributions import Mixed, Proportional, Uniform
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.sampling.selection import (
    effective_batch,
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.sampling.weights import PowerWeights, UnitWeights

PLANS = [
    pytest.param(ImportancePlan(), id="trim"),
    pytest.param(ImportancePlan(Proportional(), multinomial), id="paper"),
    pytest.param(ImportancePlan(Uniform(), without_replacement), id="uniform"),
    pytest.param(
        ImportancePlan(Mixed(share=0.5), multinomial, PowerWeights(k=0.5)), id="biased"
    ),
    pytest.param(ImportancePlan(weights=UnitWeights()), id="unweighted"),
]
UNBIASED = [param for param in PLANS if param.id in {"trim", "paper", "uniform"}]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_default_plan_is_trim():
    assert ImportancePlan() == ImportancePlan(
        Mixed(Proportional(), share=0.05), systematic, PowerWeights(k=1.0)
    )


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_its_stages_in_turn(plan):
    scores = torch.tensor([0.5, 3.0, 0.0, 1.0, 2.0])
    drawn = plan.draw(scores, 3, generator=generator())

    draw = plan.selection(plan.distribution(scores), 3, generator=generator())
    assert drawn.indices.tolist() == draw.indices.tolist()
    assert drawn.weights.tolist() == plan.weights(draw, len(scores)).tolist()


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_predicts_the_gain_of_its_own_draw(plan):
    scores = torch.tensor([0.5, 3.0, 0.0, 1.0, 2.0])
    probs = plan.distribution(scores)
    expected = effective_batch(scores, probs, 3, plan.selection)
    torch.testing.assert_close(plan.effective_batch(scores, 3), expected)


@pytest.mark.parametrize("plan", UNBIASED)
def test_the_mean_over_the_batch_estimates_the_mean_over_the_presample(plan):
    """Black box: scores in, weighted mean out, in standard errors."""
    scores = torch.tensor([0.1, 3.0, 0.0, 1.0, 2.0, 0.3])
    values = scores * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    random = generator()
    means = []
    for _ in range(1000):
        drawn = plan.draw(scores, 2, generator=random)
        means.append((drawn.weights * values[drawn.indices]).mean())
    means = torch.stack(means)
    standard_error = means.std() / len(means) ** 0.5
    assert (means.mean() - values.mean()).abs() <= 4 * standard_error


def test_no_default_weight_exceeds_twenty():
    random = generator()
    scores = torch.tensor([1e-6] * 30 + [1e3, 1e4])
    weights = [
        ImportancePlan().draw(scores, 20, generator=random).weights for _ in range(20)
    ]
    assert max(weight.max() for weight in weights) <= 20 * (1 + 1e-6)


def test_copies_of_an_easy_example_nearly_vanish_from_the_batch():
    scores = torch.cat([torch.full((900,), 1e-4), torch.ones(100)])
    drawn = ImportancePlan(Proportional()).draw(scores, 100, generator=generator())
    assert (drawn.indices >= 900).sum() >= 98


def test_equal_scores_leave_a_plain_uniform_batch():
    drawn = ImportancePlan().draw(torch.full((9,), 2.0), 4, generator=generator())
    torch.testing.assert_close(drawn.weights, torch.ones(4))
    assert drawn.indices.unique().numel() == 4


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_draws_from_scores_that_are_all_zero(plan):
    drawn = plan.draw(torch.zeros(4), 2, generator=generator())
    torch.testing.assert_close(drawn.weights, torch.ones(2))
    assert plan.effective_batch(torch.zeros(4), 2).item() == 1


@pytest.mark.parametrize("call", ["draw", "effective_batch"])
def test_faulty_scores_are_refused_with_their_place(call):
    scores = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match=r"got 1 of 3 .* \{1: nan\}"):
        getattr(ImportancePlan(), call)(scores, 2)


def test_more_than_the_presample_cannot_be_drawn():
    with pytest.raises(ValueError, match="the 3 candidates, got 4"):
        ImportancePlan().draw(torch.ones(3), 4)


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_waits_for_no_device(plan):
    """A meta tensor holds no values: whatever looked at one would raise."""
    scores = torch.ones(6, device="meta")
    assert plan.draw(scores, 2, generator=generator()).weights.shape == (2,)
    assert plan.effective_batch(scores, 2).shape == ()


def test_a_plan_cannot_change_under_way():
    with pytest.raises(FrozenInstanceError):
        ImportancePlan().selection = multinomial
