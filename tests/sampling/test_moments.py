"""A few numbers that ranks add up say what the whole presample would have said."""

import pytest
import torch

from lightning_is.sampling.distributions import Mixed, Proportional
from lightning_is.sampling.moments import evidence, moments, no_moments, only_faults
from lightning_is.sampling.numerics import tau
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.sampling.selection import multinomial, without_replacement

PLANS = [
    pytest.param(ImportancePlan(), id="trim"),
    pytest.param(ImportancePlan(Proportional(), multinomial), id="paper"),
    pytest.param(ImportancePlan(Mixed(), without_replacement), id="uniform"),
]


def lognormal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).exp()


def packed_moments(scores, batch_size, plan):
    counts = plan.expected_counts(scores, batch_size)
    return moments(scores, [(batch_size, counts)], plan.selection)


@pytest.mark.parametrize("plan", PLANS)
def test_evidence_of_one_rank_is_that_of_its_scores(plan):
    scores = lognormal(48, seed=0)
    found = evidence(packed_moments(scores, 12, plan).tolist(), 48, 12)
    assert found.tau == pytest.approx(tau(scores).item())
    assert found.effective_batch == pytest.approx(
        plan.effective_batch(scores, 12).item()
    )
    assert (found.presample_size, found.batch_size) == (48, 12)


@pytest.mark.parametrize("plan", PLANS)
def test_evidence_of_two_ranks_is_that_of_the_mean_of_their_gradients(plan):
    ranks = [lognormal(48, seed=1), 3 * lognormal(48, seed=2)]
    packed = sum(packed_moments(scores, 12, plan) for scores in ranks)
    found = evidence(packed.tolist(), 48, 12)

    second = torch.cat(ranks).square().mean()
    noise = sum(
        plan.selection.noise(scores, plan.expected_counts(scores, 12))
        for scores in ranks
    )
    expected = (second / 24) / (second / 96 + noise / 4)
    assert found.tau == pytest.approx(tau(torch.cat(ranks)).item())
    assert found.effective_batch == pytest.approx(expected.item(), rel=1e-5)
    assert (found.presample_size, found.batch_size) == (48, 12)


def test_the_sizes_of_the_evidence_are_those_of_an_open_step():
    """A closed step may score fewer examples than an open one would."""
    found = evidence(
        packed_moments(lognormal(16, 0), 8, ImportancePlan()).tolist(), 640, 128
    )
    assert (found.presample_size, found.batch_size) == (640, 128)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_evidence_does_not_depend_on_the_scale_of_the_scores(plan, scale):
    scores = lognormal(48, seed=0)
    found = evidence(packed_moments(scores * scale, 12, plan).tolist(), 48, 12)
    plain = evidence(packed_moments(scores, 12, plan).tolist(), 48, 12)
    assert found.tau == pytest.approx(plain.tau, rel=1e-5)
    assert found.effective_batch == pytest.approx(plain.effective_batch, rel=1e-5)


def test_scores_that_are_all_zero_show_no_gain():
    found = evidence(packed_moments(torch.zeros(4), 2, ImportancePlan()).tolist(), 4, 2)
    assert (found.tau, found.effective_batch) == (1.0, 1.0)


def test_no_scores_are_no_evidence():
    assert evidence(no_moments(1, torch.device("cpu")).tolist(), 4, 2) is None


def test_a_rank_without_scores_changes_nothing():
    packed = packed_moments(lognormal(16, 0), 4, ImportancePlan())
    nothing = no_moments(1, torch.device("cpu"))
    assert evidence((packed + nothing).tolist(), 16, 4) == evidence(
        packed.tolist(), 16, 4
    )


def test_moments_count_examples_draws_and_sums():
    packed = packed_moments(torch.tensor([1.0, 2.0, 0.0]), 2, ImportancePlan()).tolist()
    assert packed[:6] == [3.0, 3.0, 5.0, 0.0, 0.0, 2.0]


def test_moments_wait_for_no_device_and_count_the_faults():
    """On an accelerator a fault does not raise; it is counted for a later report."""
    shape = packed_moments(torch.ones(6, device="meta"), 2, ImportancePlan()).shape
    assert shape == (7,)

    class Elsewhere(torch.Tensor):
        device = property(lambda _: torch.device("cuda"))
        __torch_function__ = torch._C._disabled_torch_function_impl

    faulty = torch.tensor([1.0, float("nan"), -1.0, 2.0]).as_subclass(Elsewhere)
    assert packed_moments(faulty, 2, ImportancePlan()).tolist()[3] == 2


def test_moments_of_faulty_scores_are_refused_where_looking_is_free():
    with pytest.raises(ValueError, match=r"got 1 of 2 .* \{1: nan\}"):
        packed_moments(torch.tensor([1.0, float("nan")]), 1, ImportancePlan())


def test_every_candidate_size_has_a_gain_of_its_own():
    scores, plan = lognormal(48, seed=0), ImportancePlan()
    draws = [(size, plan.expected_counts(scores, size)) for size in (6, 12, 24)]
    found = evidence(moments(scores, draws, plan.selection).tolist(), 48, 12, place=1)
    expected = [plan.effective_batch(scores, size).item() for size in (6, 12, 24)]
    assert found.gains == pytest.approx(expected)
    assert found.effective_batch == found.gains[1]


@pytest.mark.parametrize("plan", PLANS)
def test_a_batch_that_is_alone_has_no_noise_of_being_picked(plan):
    scores = lognormal(48, seed=0)
    draws = [(size, plan.expected_counts(scores, size)) for size in (6, 12)]
    alone = moments(scores, draws, plan.selection, several=False)
    torch.testing.assert_close(alone, moments(scores, draws, plan.selection))
    together = [(6, plan.expected_counts(scores, 12))]
    several = moments(scores, together, plan.selection)
    assert several[-1] > moments(scores, together, plan.selection, several=False)[-1]


def test_what_tells_of_faults_alone_is_no_evidence_and_fits_the_moments():
    scores, plan = torch.tensor([1.0, 2.0, 0.0]), ImportancePlan()
    whole = moments(scores, [(1, scores / 3), (2, scores)], plan.selection)
    bad = torch.tensor([float("nan"), 1.0, -1.0, -float("inf")])
    for forgiving, counted in ((False, [3, 0]), (True, [1, 2])):
        faulty = only_faults(bad, sizes=2, forgiving=forgiving)
        assert faulty.tolist() == [0, 0, 0, *counted, 0, 0, 0, 0]
        assert whole.shape == faulty.shape
        assert evidence(faulty.tolist(), 3, 1) is None
