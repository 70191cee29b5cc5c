"""A subset by importance has its size, its weights, and no bias."""

import math

import pytest
import torch

from lightning_is.sampling import (
    ImportancePlan,
    ImportanceSubset,
    Mixed,
    capped_inclusion,
    multinomial,
)
from lightning_is.sampling.subset import largest_useful_share

N = 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lognormal(count=N, seed=1):
    return torch.randn(count, generator=seeded(seed)).exp()


def passes(scheme, scores, count=2000):
    generator = seeded()
    return [scheme(scores, 0.0, generator) for _ in range(count)]


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.55, 0.6, 1.0])
def test_a_pass_has_so_many_and_none_twice(keep):
    drawn = ImportanceSubset(keep)(lognormal(), 0.0, seeded())
    assert len(drawn.indices) == math.ceil(round(keep * N, 6))
    assert len(drawn.indices.unique()) == len(drawn.indices)
    assert drawn.weights.dtype == torch.float32
    assert drawn.weights.max() <= 2.0 + 1e-6  # half of it is uniform


def test_all_of_it_is_an_ordinary_pass():
    drawn = ImportanceSubset(1.0)(lognormal(), 0.0, seeded())
    assert sorted(drawn.indices.tolist()) == list(range(N))
    torch.testing.assert_close(drawn.weights, torch.ones(N))
    assert drawn.indices.tolist() != sorted(drawn.indices.tolist())


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_examples_are_included_as_often_as_they_should_be_and_the_mean_is_fair(keep):
    scores = lognormal()
    size = round(keep * N)
    counts = torch.zeros(N).double()
    means = []
    values = torch.randn(N, generator=seeded(7))
    for drawn in passes(ImportanceSubset(keep), scores):
        counts[drawn.indices] += 1
        means.append((drawn.weights * values[drawn.indices]).mean())
    inclusion = capped_inclusion(Mixed(share=0.5)(scores), size)
    counts /= 2000
    error = (inclusion * (1 - inclusion) / 2000).sqrt() + 1e-6
    assert ((counts - inclusion) / error).abs().max() < 4.5
    found = torch.stack(means)
    z = (found.mean() - values.mean()) / (found.std() / 2000**0.5)
    assert z.abs() < 4


def test_every_place_of_a_pass_is_as_fair_as_the_whole():
    """Batches are cut from it, and each must be unbiased by itself."""
    scores = lognormal()
    values = torch.randn(N, generator=seeded(7))
    drawn = passes(ImportanceSubset(0.3), scores, 4000)
    rows = torch.stack([one.weights * values[one.indices] for one in drawn])
    z = (rows.mean(0) - values.mean()) / (rows.std(0) / 4000**0.5)
    assert z.abs().max() < 4


def test_systematic_inclusion_is_less_noisy_than_poissons():
    """The design drew each example by itself; the sum over a pass then varies more."""
    scores, size = lognormal(400), 240
    inclusion = capped_inclusion(Mixed(share=0.5)(scores), size)
    sums = [
        (one.weights * scores[one.indices]).sum() * 400 / size
        for one in passes(ImportanceSubset(0.6), scores, 1500)
    ]
    poisson = ((1 - inclusion) / inclusion * scores**2).sum().sqrt()
    assert torch.stack(sums).std() < 0.9 * poisson


def test_unseen_examples_count_as_average_ones():
    scores = lognormal()
    scores[:10] = torch.inf
    known = scores.clone()
    known[:10] = scores[10:].mean()
    ours = ImportanceSubset(0.5)(scores, 0.0, seeded())
    theirs = ImportanceSubset(0.5)(known, 0.0, seeded())
    assert ours.indices.tolist() == theirs.indices.tolist()


@pytest.mark.parametrize("value", [0.0, torch.inf])
def test_scores_that_tell_nothing_draw_uniformly(value):
    drawn = ImportanceSubset(0.5)(torch.full((N,), value), 0.0, seeded())
    assert len(drawn.indices) == N // 2
    torch.testing.assert_close(drawn.weights, torch.ones(N // 2))


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_scores_at_fault_are_refused(value):
    scores = lognormal()
    scores[3] = value
    with pytest.raises(ValueError, match=r"got 1 of 40 .* \{3: "):
        ImportanceSubset()(scores, 0.0, seeded())


def test_the_plan_can_be_another():
    plan = ImportancePlan(Mixed(share=0.5), multinomial)
    drawn = ImportanceSubset(0.5, plan)(lognormal(), 0.0, seeded())
    assert len(drawn.indices) == N // 2


def second_moment(scores, plan, share):
    """Of a batch of a pass, by the definition."""
    size = math.ceil(share * len(scores))
    counts = plan.expected_counts(scores, size)
    return (counts * (size / (len(scores) * counts) * scores) ** 2).sum() / size


@pytest.mark.parametrize("spread", [0.1, 0.7, 1.5, 3.0])
def test_the_largest_share_with_nearly_all_there_is_to_gain(spread):
    scores, plan = lognormal(2000) ** spread, ImportanceSubset().plan
    found = largest_useful_share(scores, plan, seeded())
    shares = [k / 10 for k in range(10, 0, -1)]
    moments = {share: second_moment(scores, plan, share) for share in shares}
    good = [s for s in shares if moments[s] <= moments[0.1] / 0.95 * (1 + 1e-9)]
    assert found == max(good)


def test_the_automatic_share_follows_the_scores():
    shares = [
        len(ImportanceSubset("auto")(lognormal(2000) ** spread, 0.0, seeded()).indices)
        for spread in (0.0, 0.7, 1.5, 3.0)
    ]
    assert shares[0] == 2000
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1000


def test_many_examples_are_compared_by_some_of_them():
    scores = lognormal(200_000)
    found = largest_useful_share(scores, ImportanceSubset().plan, seeded())
    some = largest_useful_share(scores[:50_000], ImportanceSubset().plan, seeded())
    assert abs(found - some) <= 0.1 + 1e-9


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match=r'`keep` must be in \(0, 1\] or "auto", got'):
        ImportanceSubset(keep)
