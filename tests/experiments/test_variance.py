"""Draws are measured by the library's own parts, and rightly."""

from math import isnan

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_is.experiments.variance.closed_form import expected_square
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.draws import SCORES, UNIFORM, arms
from lightning_is.experiments.variance.measuring import Measurer
from lightning_is.experiments.variance.program import chosen
from lightning_is.experiments.variance.record import (
    Measurement,
    Ratio,
    Row,
    pooled_errors,
    pooled_points,
)
from lightning_is.sampling import (
    ImportancePlan,
    Mixed,
    Proportional,
    Uniform,
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.sampling.randomness import draw_generator
from tests.experiments.gradients import scores_of, single_gradients

ARMS = [(arm.selection, arm.score) for arm in arms(Proportional())]
SIZE, DRAWN = 36, 9


class Once(L.Callback):
    """Measures before the first step."""

    def __init__(self, batch, design):
        self.batch, self.design, self.found = batch, design, None

    def on_train_start(self, trainer, pl_module):
        measurer = Measurer(trainer, pl_module, batch=self.batch, design=self.design)
        self.found = measurer.measure(0)


def measured(kit, net, batch=None, **design):
    """Measure draws of a classifier by some network."""
    batch = kit.examples(SIZE) if batch is None else batch
    once = Once(batch, Design(**{"batch_size": DRAWN, **design}))
    trainer = kit.trainer(once, max_steps=1, max_epochs=-1, log_every_n_steps=10**9)
    trainer.fit(kit.Classifier(net, lr=0.0), kit.loader())
    return once.found


# What is measured


@pytest.fixture(scope="module")
def linear(kit):
    """A linear classifier, measured many times, and the gradients of its examples."""
    torch.manual_seed(0)
    net, batch = nn.Linear(6, 3), kit.examples(SIZE)
    found = measured(kit, net, batch, repeats=120)
    return found, single_gradients(net, *batch), scores_of(net, *batch)


def within_errors(row, expected):
    squares = torch.tensor(row.squares)
    error = squares.std() / len(squares) ** 0.5
    return abs(float((squares.mean() - expected) / error)) < 3.5


def test_uniform_draws_have_the_variance_of_the_textbook(linear):
    found, single, _ = linear
    spread = (single - single.mean(0)).square().sum(1)
    with_replacement = float(spread.mean() / DRAWN)
    without = float(spread.sum() / (SIZE - 1) / DRAWN * (1 - DRAWN / SIZE))
    for selection, expected in zip(
        ("multinomial", "systematic"), (with_replacement, without), strict=True
    ):
        row = found.row(selection, UNIFORM)
        assert row.expected == pytest.approx(expected, rel=1e-5)
        assert within_errors(row, expected)
        assert not within_errors(row, 1.3 * expected)


@pytest.mark.parametrize("score", SCORES)
def test_multinomial_draws_have_the_trace_of_the_covariance(linear, score):
    """Of w G under the draw, summed over all of its outcomes."""
    found, single, scores = linear
    p = scores[score].double() / scores[score].double().sum()
    mean = single.mean(0)
    outcomes = single / (SIZE * p)[:, None] - mean
    expected = float((p * outcomes.square().sum(1)).sum() / DRAWN)
    row = found.row("multinomial", score)
    assert row.expected == pytest.approx(expected, rel=1e-4)
    assert within_errors(row, expected)


def test_ratios_of_few_draws_are_of_the_exact_variance_of_uniform_ones(kit):
    found = measured(kit, kit.mlp(), repeats=2)
    for selection, score in ARMS:
        exact = found.row(selection, UNIFORM).expected
        squares = found.row(selection, score).squares
        mean = sum(squares) / len(squares) / exact
        assert found.variance(selection, score).mean == pytest.approx(mean)
    assert found.variance("multinomial", UNIFORM).mean != pytest.approx(1, rel=1e-3)


def test_the_gradient_norm_draws_best_and_systematic_draws_better(linear):
    found, *_ = linear
    assert found.expected("multinomial", "gradient_norm") == min(
        found.expected("multinomial", score) for score in (UNIFORM, *SCORES)
    )
    for score in SCORES:
        one, other = (found.row(s, score) for s in ("systematic", "multinomial"))
        assert sum(one.squares) < sum(other.squares)


@pytest.mark.parametrize("net", ["mlp", "linear"])
def test_a_drawn_gradient_is_the_weighted_mean_of_single_ones(kit, net):
    net = nn.Linear(6, 3) if net == "linear" else kit.mlp()
    batch = kit.examples(SIZE)
    found = measured(kit, net, batch, repeats=3, seed=5, distribution=Mixed(share=0.2))
    single, scores = single_gradients(net, *batch), scores_of(net, *batch)
    assert found.norm == pytest.approx(float(single.mean(0).norm()), rel=1e-4)
    loss = functional.cross_entropy(net(batch[0]).detach(), batch[1])
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    for number, arm in enumerate(arms(Mixed(share=0.2))):
        expected = []
        for counter in range(3 * number, 3 * number + 3):
            generator = draw_generator(5, 0, counter)
            given = scores[arm.score].float(), DRAWN
            drawn = arm.plan.draw(*given, generator=generator)
            gradient = (drawn.weights[:, None] * single[drawn.indices]).mean(0)
            expected.append(float((gradient - single.mean(0)).square().sum()))
        row = found.row(arm.selection, arm.score)
        assert list(row.squares) == pytest.approx(expected, rel=1e-3)
        assert list(row.distances) == pytest.approx(
            [e**0.5 for e in expected], rel=1e-3
        )


def test_drawing_all_of_them_without_repeats_leaves_no_variance(kit):
    found = measured(kit, kit.mlp(), batch_size=SIZE)
    for score in (UNIFORM, *SCORES):
        assert max(found.row("systematic", score).squares) < 1e-10 * found.norm**2
        assert min(found.row("multinomial", score).squares) > 1e-4 * found.norm**2


@pytest.mark.parametrize("batch_size", [1, 7])
def test_what_the_best_draw_saves_is_its_distance_from_the_uniform_one(kit, batch_size):
    """Equations 20 to 26: Tr V_u[G] - Tr V_g[wG] = (mean s)^2 B |g - u|^2."""
    norms = scores_of(kit.mlp(), *kit.examples(SIZE))["gradient_norm"]
    plans = [ImportancePlan(d, multinomial) for d in (Uniform(), Proportional())]
    uniform, best = (
        expected_square(plan, norms, norms=norms, whole=0.4, batch_size=batch_size)
        for plan in plans
    )
    g = norms / norms.sum()
    saved = norms.mean() ** 2 * SIZE * (g - 1 / SIZE).square().sum()
    assert uniform - best == pytest.approx(float(saved) / batch_size)


def test_examples_of_probability_zero_do_not_spoil_the_closed_form():
    scores, norms = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1e-9, 1.0, 1.0])
    plan = ImportancePlan(Proportional(), multinomial)
    # Of the two that are drawn, weighted by 2 / 3 each, whose mean is opposite.
    given = {"norms": norms, "whole": 0.0, "batch_size": 1}
    assert expected_square(plan, scores, **given) == pytest.approx(4 / 9)
    assert expected_square(ImportancePlan(), scores, **given) is None


def test_squared_errors_are_those_of_a_loop(kit):
    net, batch = kit.mlp(), kit.examples(SIZE)
    found, scores = measured(kit, net, batch, repeats=1), scores_of(net, *batch)
    p = {name: [float(s / scores[name].sum()) for s in scores[name]] for name in scores}
    for name in SCORES:
        expected = 0.0
        for ours, best in zip(p[name], p["gradient_norm"], strict=True):
            expected += (ours - best) ** 2
        assert found.errors[name] == pytest.approx(expected, rel=1e-3, abs=1e-15)
    assert found.errors["loss"] > 0
    twice = pooled_errors([found, found])
    assert pooled_points([found, found]) == 2 * SIZE
    assert twice["loss"] == pytest.approx(2 * found.errors["loss"])


def test_every_selection_is_divided_by_the_uniform_draw_of_its_kind():
    plans = {(arm.selection, arm.score): arm.plan for arm in arms(Mixed())}
    assert plans["multinomial", UNIFORM] == ImportancePlan(Uniform(), multinomial)
    alone = ImportancePlan(Uniform(), without_replacement)
    assert plans["systematic", UNIFORM] == alone
    assert plans["systematic", "loss"] == ImportancePlan(Mixed(), systematic)
    rows = tuple(
        Row(selection, score, (4.0 * place, 16.0 * place), 2.0 * place)
        for place, (selection, score) in enumerate(ARMS, 1)
    )
    found = Measurement(3, 0.1, 1.0, {}, {}, rows)
    assert found.variance("systematic", "loss") == Ratio(
        6.0, 2.4, 9.6
    )  # in 10, exactly
    root = 1.2**0.5
    assert found.distance("systematic", "loss") == pytest.approx(
        Ratio(root, root * 2 / 3, root * 4 / 3)
    )
    assert found.expected("multinomial", "gradient_norm") == 4
    assert found.expected("multinomial", UNIFORM) == 1


@pytest.mark.parametrize("unit", [0.0, -1e-20])
def test_draws_without_variance_give_no_ratio(unit):
    assert isnan(Ratio.of([1.0], unit).mean)


# What is drawn from


@pytest.mark.parametrize("name", ["batch_size", "repeats"])
def test_a_design_needs_something_to_draw(name):
    with pytest.raises(ValueError, match=f"`{name}` of a measurement.*got 0"):
        Design(**{name: 0})


def test_a_design_needs_a_known_way_to_compute_norms():
    design = Design()
    object.__setattr__(design, "norms", "fast")  # types are checked in tests alone
    with pytest.raises(ValueError, match="one of vmap, loop, got fast"):
        design.__post_init__()


@pytest.mark.parametrize("wanted", [4, 21])
def test_a_presample_must_be_there_and_exceed_the_draw(wanted):
    with pytest.raises(ValueError, match=f"exceed the 4.*20 training.*got {wanted}"):
        chosen(20, wanted, design=Design(batch_size=4))


def test_the_presample_is_uniform_and_follows_from_the_seed():
    first, other = (chosen(2000, 500, design=Design(seed=s)) for s in (0, 1))
    assert len(set(first.tolist())) == 500
    assert torch.equal(first, chosen(2000, 500, design=Design(seed=0)))
    assert not torch.equal(first, other)
    assert abs(first.double().mean() - 1000) < 4 * 2000 / 12**0.5 / 500**0.5
