"""Costs are assumed until they are measured, and then they are the machine's own."""

import pytest

from lightning_is.sampling.costs import CostModel, Timing

B, SMALL = 128, 32


def told(*timings, **settings):
    """A cost model that has seen each of the timings often enough."""
    costs = CostModel(**settings)
    for timing in timings:
        for _ in range(6):
            costs.observe(timing)
    return costs


def closed(step=0.1, wait=0.0, loaded=B, trained=B, overlaps=False):
    return Timing(loaded, trained, wait, 0.0, step, overlaps)


def opened(score=0.04, step=0.03, wait=0.0, loaded=B, trained=SMALL, overlaps=False):
    return Timing(loaded, trained, wait, score, step, overlaps)


@pytest.mark.parametrize("backward_cost", [1.0, 2.0, 3.0])
def test_without_timings_arithmetic_counts(backward_cost):
    costs = CostModel(backward_cost)
    whole = (1 + backward_cost) * B
    expected = (B + (1 + backward_cost) * SMALL) / whole
    assert costs.is_empty
    assert costs.ratio(B, SMALL, B, B) == pytest.approx(expected)


def test_what_was_measured_counts():
    costs = told(closed(), opened())
    assert costs.ratio(B, SMALL, B, B) == pytest.approx(0.7)
    assert costs.is_known(B, SMALL)
    assert not costs.is_known(B, 64)


def test_an_untried_size_is_judged_kindly_by_what_is_known():
    """A missed chance would never be found out, a bad trial is."""
    costs = told(closed(step=0.1))
    assert costs.ratio(B, SMALL, B, B) == pytest.approx(0.1 + 0.25)
    costs = told(closed(step=0.1), opened(score=0.06, step=0.03))
    assert costs.ratio(B, 64, B, B) == pytest.approx(0.6 + 0.5)  # scoring is known


def test_the_first_step_of_a_kind_and_the_odd_slow_one_do_not_count():
    costs = CostModel()
    for kind in (closed(), opened()):
        costs.observe(Timing(*(kind.loaded, kind.trained), 0.0, kind.score * 50, 9.0))
        for number in range(20):
            slow = 30.0 if number % 7 == 3 else 1.0  # a checkpoint, a collection
            times = kind.score * slow, kind.step * slow
            costs.observe(Timing(kind.loaded, kind.trained, 0.0, *times))
    assert costs.ratio(B, SMALL, B, B) == pytest.approx(0.7)


def test_steps_in_turns_are_never_measured():
    """Each would begin with what the other left behind: cold caches, full queues."""
    costs = CostModel()
    for _ in range(20):
        costs.observe(closed())
        costs.observe(opened())
    assert not costs.is_known(B, SMALL)


@pytest.mark.parametrize("wait", [0.0, 0.1, 1.0])
def test_a_loader_that_works_in_turn_with_the_steps_costs_its_time(wait):
    costs = told(closed(wait=wait), opened(wait=wait))
    assert costs.ratio(B, SMALL, B, B) == pytest.approx((wait + 0.07) / (wait + 0.1))


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        pytest.param(0.05, 0.7, id="faster-than-any-step"),
        pytest.param(0.09, 0.9, id="faster-than-ordinary-steps"),
        pytest.param(0.2, 1.0, id="slower-than-any-step"),
    ],
)
def test_steps_are_never_faster_than_a_loader_that_works_beside_them(pace, expected):
    ordinary = closed(wait=max(0.0, pace - 0.1), overlaps=True)
    fewer = opened(wait=max(0.0, pace - 0.07), overlaps=True)
    assert told(ordinary, fewer).ratio(B, SMALL, B, B) == pytest.approx(expected)


def test_batches_that_come_in_bursts_show_the_mean_pace():
    """Four workers, 0.8 s for a batch each: one long wait, then three batches."""
    costs = CostModel()
    for number in range(33):
        wait = 0.4 if number % 4 == 0 else 0.0
        costs.observe(closed(wait=wait, overlaps=True))
    ratio = costs.ratio(B, SMALL, B, B)
    assert 0.9 < ratio <= 1.0


def test_a_presample_is_taken_to_load_for_longer_until_that_is_known():
    ordinary = closed(wait=0.1, loaded=128, trained=128)
    costs = told(ordinary)
    compute = 0.1 * 640 / 128 / 10 + 0.1
    assert costs.ratio(640, 128, 128, 128) == pytest.approx((0.5 + compute) / 0.2)
    costs = told(
        ordinary, opened(score=0.1, step=0.1, wait=0.1, loaded=640, trained=128)
    )
    assert costs.ratio(640, 128, 128, 128) == pytest.approx(0.3 / 0.2)


def test_a_measurement_expires():
    costs = told(closed(), opened(), expires=50)
    for _ in range(150):
        costs.observe(opened())
    assert costs.knows_ordinary(B)
    for _ in range(60):
        costs.observe(opened())
    assert costs.is_known(B, SMALL)
    assert not costs.knows_ordinary(B)
    for _ in range(60):
        costs.observe(closed())
    assert not costs.is_known(B, SMALL)


def test_a_clock_that_stands_still_measures_nothing():
    costs = told(closed(step=0.0))
    assert costs.ratio(B, SMALL, B, B) == pytest.approx((B + 3 * SMALL) / (3 * B))
