"""Six numbers that ranks add up say what the whole presample would have said."""

import pytest
import torch

from lightning_is.sampling.distributions import Mixed, Proportional
from lightning_is.sampling.moments import evidence, moments
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


@pytest.mark.parametrize("plan", PLANS)
def test_evidence_of_one_rank_is_that_of_its_scores(plan):
    scores = lognormal(48, seed=0)
    found = evidence(moments(scores, 12, plan).tolist(), 48, 12)
    assert found.tau == pytest.approx(tau(scores).item())
    assert found.effective_batch == pytest.approx(
        plan.effective_batch(scores, 12).item()
    )
    assert (found.presample_size, found.batch_size) == (48, 12)


@pytest.mark.parametrize("plan", PLANS)
def test_evidence_of_two_ranks_is_that_of_the_mean_of_their_gradients(plan):
    ranks = [lognormal(48, seed=1), 3 * lognormal(48, seed=2)]
    packed = sum(moments(scores, 12, plan) for scores in ranks)
    found = evidence(packed.tolist(), 48, 12)

    second = torch.cat(ranks).square().mean()
    noise = sum(
        plan.selection.noise(scores, plan.distribution(scores), 12) for scores in ranks
    )
    expected = (second / 24) / (second / 96 + noise / 4)
    assert found.tau == pytest.approx(tau(torch.cat(ranks)).item())
    assert found.effective_batch == pytest.approx(expected.item(), rel=1e-5)
    assert (found.presample_size, found.batch_size) == (48, 12)


def test_the_sizes_of_the_evidence_are_those_of_an_open_step():
    """A closed step may score fewer examples than an open one would."""
    found = evidence(moments(lognormal(16, 0), 8, ImportancePlan()).tolist(), 640, 128)
    assert (found.presample_size, found.batch_size) == (640, 128)


def test_scores_that_are_all_zero_show_no_gain():
    found = evidence(moments(torch.zeros(4), 2, ImportancePlan()).tolist(), 4, 2)
    assert (found.tau, found.effective_batch) == (1.0, 1.0)


def test_no_scores_are_no_evidence():
    assert evidence([0.0] * 6, 4, 2) is None


def test_a_rank_without_scores_changes_nothing():
    packed = moments(lognormal(16, 0), 4, ImportancePlan())
    assert evidence((packed + torch.zeros(6)).tolist(), 16, 4) == evidence(
        packed.tolist(), 16, 4
    )


def test_moments_count_examples_draws_and_sums():
    packed = moments(torch.tensor([1.0, 2.0, 0.0]), 2, ImportancePlan()).tolist()
    assert packed[:4] == [3.0, 2.0, 3.0, 5.0]
    assert packed[5] == 0


def test_moments_wait_for_no_device_and_count_the_faults():
    """On an accelerator a fault does not raise; it is counted for a later report."""
    assert moments(torch.ones(6, device="meta"), 2, ImportancePlan()).shape == (6,)

    class Elsewhere(torch.Tensor):
        device = property(lambda _: torch.device("cuda"))
        __torch_function__ = torch._C._disabled_torch_function_impl

    faulty = torch.tensor([1.0, float("nan"), -1.0, 2.0]).as_subclass(Elsewhere)
    assert moments(faulty, 2, ImportancePlan()).tolist()[5] == 2


def test_moments_of_faulty_scores_are_refused_where_looking_is_free():
    with pytest.raises(ValueError, match=r"got 1 of 2 .* \{1: nan\}"):
        moments(torch.tensor([1.0, float("nan")]), 1, ImportancePlan())
