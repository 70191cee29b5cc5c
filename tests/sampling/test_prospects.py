"""What could be gained at best: closed forms, and the gate's own model of costs."""

import pytest

from lightning_is.sampling import CostModel, Evidence, Sizes, Timing
from lightning_is.sampling.prospects import Ordinary, Prospect


def prospect(loaded=128, trained=32, ordinary=None, score=12.0, step=7.0, **loading):
    ordinary = Ordinary(ordinary or Sizes(loaded, loaded), 40.0, **loading)
    return Prospect(ordinary, Sizes(loaded, trained), score, step)


def test_trimming_is_limited_by_the_steps_in_a_second():
    found = prospect()
    assert found.limit == pytest.approx(40.0 / (12.0 + 7.0))
    assert found.attainable == 4
    # At the break-even a step on b is worth as much, for its cost, as one on B.
    assert found.break_even * 32 / 128 / found.cost == pytest.approx(1)
    assert found.attainable * 32 / 128 / found.cost == pytest.approx(found.limit)


@pytest.mark.parametrize("sizes", [(128, 32), (640, 128), (96, 8)], ids=str)
@pytest.mark.parametrize("backward", [1.0, 2.0, 2.7])
def test_by_assumed_costs_the_break_even_is_the_papers(sizes, backward):
    large, small = sizes
    there_and_back = 1 + backward
    open_step = Sizes(*sizes), float(large), there_and_back * small
    trim, paper = (
        Prospect(Ordinary(Sizes(plain, plain), there_and_back * plain), *open_step)
        for plain in sizes
    )
    expected = Evidence(1.0, 1.0, large, small).break_even(backward)
    assert trim.break_even == pytest.approx(expected)
    assert paper.break_even == pytest.approx(expected)
    most = there_and_back * large / (large + there_and_back * small)
    assert [trim.limit, paper.limit] == pytest.approx([most, most])


def test_a_loader_without_workers_needs_its_time_beside_the_steps():
    trim = prospect(wait=10.0)
    assert trim.limit == pytest.approx((40.0 + 10.0) / (19.0 + 10.0))
    presample = prospect(640, 128, Sizes(128, 128), 60.0, 40.0, wait=10.0)
    # Five times as much is loaded.
    assert presample.cost == pytest.approx((60.0 + 40.0 + 50.0) / (40.0 + 10.0))


@pytest.mark.parametrize(
    ("wait", "limit"),
    [
        pytest.param(0.0, 40 / 19, id="hidden"),
        pytest.param(1.9, 40 / 19, id="as-good-as-hidden"),
        pytest.param(10.0, 1.0, id="sets-the-pace"),
    ],
)
def test_no_step_is_faster_than_the_workers(wait, limit):
    found = prospect(wait=wait, overlaps=True)
    assert found.limit == pytest.approx(limit)
    assert found.ordinary.is_loader_bound == (wait > 5)


def test_presamples_wait_for_workers_in_proportion():
    found = prospect(640, 128, Sizes(128, 128), 60.0, 40.0, wait=10.0, overlaps=True)
    assert found.cycle == pytest.approx(5 * 50.0)
    assert found.cost == pytest.approx(5)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("wait", [0.0, 1.0, 10.0, 200.0])
@pytest.mark.parametrize("ordinary", [Sizes(128, 128), Sizes(32, 32)], ids=str)
def test_a_gate_that_is_told_of_these_times_finds_the_same_costs(
    wait, overlaps, ordinary
):
    found = prospect(ordinary=ordinary, wait=wait, overlaps=overlaps)
    plain, costs = found.ordinary, CostModel()
    waited = plain.cycle - plain.compute
    for timing in (
        Timing(*plain.sizes, waited, 0.0, plain.compute, overlaps),
        found.timing(),
    ):
        for _ in range(4):
            costs.observe(timing)
    assert costs.ratio(*found.sizes, *plain.sizes) == pytest.approx(found.cost)


def test_a_clock_that_stands_still_promises_nothing():
    found = Prospect(Ordinary(Sizes(8, 8), 0.0), Sizes(8, 2), 0.0, 0.0)
    assert (found.cost, found.limit) == (1.0, 1.0)
