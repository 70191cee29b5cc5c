"""Weights undo the draw: what is drawn too often counts for less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_is.sampling import weights
from lightning_is.sampling.distributions import Mixed, Proportional, Uniform
from lightning_is.sampling.numerics import capped_inclusion
from lightning_is.sampling.scheme import Draw
from lightning_is.sampling.selection import (
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.sampling.weights import (
    PowerWeights,
    UnitWeights,
    Weights,
    max_normalised,
    rescaled_power,
)

MEMBERS = [  # a new weighting joins here
    pytest.param(PowerWeights(), id="unbiased"),
    pytest.param(PowerWeights(k=0.5), id="power"),
    pytest.param(UnitWeights(), id="unit"),
]
SCORES = [
    pytest.param([1.0, 2.0, 3.0, 4.0, 5.0], id="mild"),
    pytest.param([0.1, 0.2, 0.1, 50.0, 3.0], id="one-dominates"),
    pytest.param([0.0, 1.0, 2.0, 0.0, 7.0], id="with-zeros"),
]


def test_every_weighting_is_listed_here():
    written = {
        found
        for found in vars(weights).values()
        if isinstance(found, type)
        and found.__module__ == weights.__name__
        and issubclass(found, Weights)
        and found is not Weights
    }
    assert written == {type(param.values[0]) for param in MEMBERS}


@pytest.mark.parametrize("weighting", MEMBERS)
def test_every_drawn_example_gets_one_positive_float32_weight(weighting):
    draw = Draw(torch.tensor([2, 0, 2]), torch.tensor([0.5, 0.1, 0.5]).double())
    weight = weighting(draw, candidates=4)
    assert weight.shape == (3,)
    assert weight.dtype == torch.float32
    assert (weight > 0).all()


@pytest.mark.parametrize("weighting", MEMBERS)
def test_no_weighting_waits_for_the_device(weighting):
    draw = Draw(
        torch.zeros(3, dtype=torch.long, device="meta"), torch.ones(3).to("meta")
    )
    assert weighting(draw, candidates=4).shape == (3,)


def gradients(scores: torch.Tensor, parameters: int = 3) -> torch.Tensor:
    """One gradient per example whose norm is its score, in an arbitrary direction."""
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(len(scores), parameters, generator=generator).double()
    return scores[:, None] * ways / ways.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("distribution", [Proportional(), Mixed(), Uniform()])
@pytest.mark.parametrize("scores", SCORES)
def test_paper_weights_give_back_the_mean_gradient(distribution, scores):
    """sum_i p_i w_i grad_i = mean gradient, the draw being one of p."""
    scores = torch.tensor(scores, dtype=torch.float64)
    grads, probs = gradients(scores), distribution(scores)
    drawable = probs.nonzero()[:, 0]
    batch_size = len(drawable)  # each of them once, so that every weight is there
    draw = Draw(drawable, batch_size * probs[drawable])
    weight = PowerWeights()(draw, candidates=len(scores)).double()

    total = ((probs[drawable] * weight)[:, None] * grads[drawable]).sum(0)
    torch.testing.assert_close(total, grads.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        weight, 1 / (len(scores) * probs[drawable]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_inclusion_weights_give_back_the_mean_gradient(scores, batch_size):
    """sum_i pi_i w_i grad_i / b = mean gradient, where none is drawn twice."""
    scores = torch.tensor(scores, dtype=torch.float64)
    grads = gradients(scores)
    inclusion = capped_inclusion(Proportional()(scores), batch_size)
    total = torch.zeros(3, dtype=torch.float64)
    for i in scores.nonzero()[:, 0].tolist():  # without a score there is no gradient
        draw = Draw(torch.full((batch_size,), i), inclusion[i].expand(batch_size))
        weight = PowerWeights()(draw, candidates=len(scores))[0]
        total += inclusion[i] * weight * grads[i] / batch_size
    torch.testing.assert_close(total, grads.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        pytest.param(1.0, [2.5, 1.25, 0.833333, 0.625], id="unbiased"),
        pytest.param(0.5, [1.581139, 1.118034, 0.912871, 0.790569], id="root"),
        pytest.param(0.0, [1.0, 1.0, 1.0, 1.0], id="unweighted"),
        pytest.param(-1.0, [0.4, 0.8, 1.2, 1.6], id="hardest-first"),
    ],
)
def test_the_power_is_taken_of_the_unbiased_weight(k, expected):
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    draw = Draw(torch.arange(4), 4 * scores / scores.sum())
    weight = PowerWeights(k)(draw, candidates=4)
    torch.testing.assert_close(weight, torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("batch_size", "candidates"), [(1, 4), (3, 4), (3, 12)])
def test_a_weight_depends_on_no_other_example_of_the_batch(batch_size, candidates):
    """Dividing by the sum of the weights would make a lone example weigh 1."""
    counts = torch.full((batch_size,), 0.2)
    weight = PowerWeights()(Draw(torch.arange(batch_size), counts), candidates)
    expected = torch.full((batch_size,), batch_size / (candidates * 0.2))
    torch.testing.assert_close(weight, expected)


def test_a_uniform_draw_without_repeats_is_not_weighted():
    draw = without_replacement(torch.full((7,), 1 / 7), 3)
    weight = PowerWeights()(draw, candidates=7)
    torch.testing.assert_close(weight, torch.ones(3), rtol=1e-6, atol=0)


def test_unit_weights_are_one_whatever_was_drawn():
    draw = Draw(torch.tensor([0, 3]), torch.tensor([0.01, 1.0]))
    assert UnitWeights()(draw, candidates=4).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scheme", [multinomial, systematic])
@given(
    scores=st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 30.0]), min_size=1),
    share=st.sampled_from([0.01, 0.05, 0.5, 1.0]),
    data=st.data(),
)
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_the_uniform_share_bounds_every_weight(scheme, scores, share, data):
    """Capping only raises the chances of the others, so it cannot break the bound."""
    batch_size = data.draw(st.integers(1, len(scores)))
    probs = Mixed(share=share)(torch.tensor(scores))
    draw = scheme(probs, batch_size, generator=torch.Generator().manual_seed(0))
    weight = PowerWeights()(draw, candidates=len(scores))
    assert weight.max() <= (1 + 1e-6) / share


def test_the_bound_of_the_uniform_share_is_reached():
    """An example of score zero beside a giant weighs just 1 / share."""
    probs = Mixed(share=0.1)(torch.tensor([0.0, 1e6]))
    draw = Draw(torch.tensor([0]), probs[:1])
    assert PowerWeights()(draw, candidates=2).item() == pytest.approx(10)


@pytest.mark.parametrize("k", [1.01, float("nan")])
def test_a_power_above_one_is_refused(k):
    with pytest.raises(ValueError, match=rf"`k` must be at most 1, got {k}\. 1 is"):
        PowerWeights(k=k)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        pytest.param(1.0, [2.5, 1.25, 0.8333333, 0.625], id="unbiased"),
        pytest.param(0.5, [1.62700, 1.15047, 0.93935, 0.81350], id="root"),
        pytest.param(0.0, [1.0, 1.0, 1.0, 1.0], id="unweighted"),
        pytest.param(-1.0, [1 / 3, 2 / 3, 1.0, 4 / 3], id="hardest-first"),
    ],
)
def test_rescaled_powers_are_those_of_the_published_code(k, expected):
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weight = rescaled_power(scores / 10, scores, candidates=4, k=k)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [1.0, 0.5, 0.0, -2.0])
def test_rescaling_keeps_the_weighted_loss_of_the_batch(k):
    probs, scores = torch.tensor([0.1, 0.4, 0.05]), torch.tensor([3.0, 0.0, 0.2])
    weight = rescaled_power(probs, scores, candidates=9, k=k)
    kept = (scores / (9 * probs)).sum()
    torch.testing.assert_close((weight * scores).sum(), kept)
    power = (9 * probs) ** -k
    torch.testing.assert_close(weight / power, (weight / power)[:1].expand(3))


def test_scores_that_are_all_zero_are_not_rescaled():
    weight = rescaled_power(torch.tensor([0.25, 0.5]), torch.zeros(2), 4, 0.5)
    assert weight.tolist() == pytest.approx([1.0, 0.5**0.5])


def test_rescaling_waits_for_no_device():
    probs = torch.ones(3, device="meta")
    assert rescaled_power(probs, probs, 4, 0.5).shape == (3,)
    chosen = torch.zeros(2, dtype=torch.long, device="meta")
    assert max_normalised(probs, chosen, 0.5).shape == (2,)


@pytest.mark.parametrize("k", [1.01, float("nan")])
def test_a_rescaled_power_above_one_is_refused(k):
    with pytest.raises(ValueError, match=rf"`k` must be at most 1, got {k}\. 1 is"):
        rescaled_power(torch.ones(1), torch.ones(1), 1, k)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_largest_weight_of_the_table_is_one_whoever_was_drawn(beta):
    probs = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    indices = torch.tensor([2, 0, 2])  # not the rarest
    weight = max_normalised(probs, indices, beta)
    all_weights = (1 / (3 * probs)) ** beta
    expected = (all_weights[indices] / all_weights.max()).float()
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, expected)


def test_who_cannot_be_drawn_does_not_shrink_the_weights_of_the_others():
    weight = max_normalised(torch.tensor([0.0, 0.25, 0.75]), torch.tensor([1, 2]), 1.0)
    assert weight.tolist() == pytest.approx([1, 1 / 3])


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_beta_outside_zero_to_one_is_refused(beta):
    rule = rf"`beta` must be in \[0, 1\], got {beta}\. 0 does not weight"
    with pytest.raises(ValueError, match=rule):
        max_normalised(torch.ones(1), torch.tensor([0]), beta)
