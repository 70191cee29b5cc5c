"""A pass says what to load and what it counts for, honestly where that is promised."""

import math

import pytest
import torch

from lightning_is.sampling import passes, prioritized, selective
from lightning_is.sampling.passes import PassScheme, RandomSubset, Shuffled
from lightning_is.sampling.priorities import Power, RankExponential, RankPower
from lightning_is.sampling.prioritized import OnlineBatchSelection, Prioritized
from lightning_is.sampling.selective import SoftPruned, StaleSelection

INF = float("inf")
MEMBERS = [  # a new scheme joins here
    pytest.param(Shuffled(), id="shuffled"),
    pytest.param(RandomSubset(), id="random-subset"),
    pytest.param(OnlineBatchSelection(), id="online-batch-selection"),
    pytest.param(Prioritized(), id="prioritized"),
    pytest.param(Prioritized(by="rank"), id="prioritized-by-rank"),
    pytest.param(SoftPruned(), id="soft-pruned"),
    pytest.param(StaleSelection(), id="stale-selection"),
]
BY_SCORE = [param for param in MEMBERS if param.id not in {"shuffled", "random-subset"}]
WITHOUT_REPEATS = [
    param
    for param in MEMBERS
    if not isinstance(param.values[0], OnlineBatchSelection | Prioritized)
]
UNBIASED = [
    pytest.param(Shuffled(), id="shuffled"),
    pytest.param(RandomSubset(), id="random-subset"),
    pytest.param(SoftPruned(), id="soft-pruned"),
    pytest.param(SoftPruned(ratio=0.9, until=1.0), id="soft-pruned-hard"),
]
BIASED = [  # by design: the hard ones count for more
    pytest.param(OnlineBatchSelection(), id="online-batch-selection"),
    pytest.param(Prioritized(beta=0.0), id="prioritized"),
    pytest.param(StaleSelection(), id="stale-selection"),
]
TABLES = [
    pytest.param([1.0, 2.0, 3.0, 9.0], id="mild"),
    pytest.param([0.0, 0.0, 0.0], id="all-zero"),
    pytest.param([0.1] * 7, id="equal"),
    pytest.param([0.0, INF, 2.0], id="with-unseen"),
    pytest.param([INF] * 5, id="all-unseen"),
    pytest.param([3.0], id="single"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed(count: int = 20) -> torch.Tensor:
    return torch.randn(count, generator=seeded(7)).exp()


def counts(scheme, scores, rounds, progress=0.0):
    """How often each example was loaded, on average over many passes."""
    generator, loaded = seeded(), torch.zeros(len(scores))
    for _ in range(rounds):
        indices = scheme(scores, progress, generator).indices
        loaded += torch.bincount(indices, minlength=len(scores))
    return loaded / rounds


def deviation(scheme, scores, values, rounds=4000, progress=0.0) -> float:
    """Deviation of the weighted mean of a pass from the plain one, in its errors."""
    generator, means = seeded(), []
    for _ in range(rounds):
        indices, weights = scheme(scores, progress, generator)
        means.append((weights * values[indices]).mean())
    found = torch.stack(means).double()
    off = found.mean() - values.double().mean()
    error = found.std() / rounds**0.5
    return (off / error.clamp(min=1e-6)).item()


def test_every_scheme_is_listed_here():
    written = {
        found
        for module in (passes, prioritized, selective)
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__ == module.__name__
        and issubclass(found, PassScheme)
        and found is not PassScheme
    }
    assert written == {type(param.values[0]) for param in MEMBERS}


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_pass_is_never_empty_and_has_a_positive_weight_for_each(
    scheme, table, progress
):
    for seed in range(20):
        indices, weights = scheme(torch.tensor(table), progress, seeded(seed))
        assert len(indices) == len(weights) > 0
        assert (indices.dtype, weights.dtype) == (torch.int64, torch.float32)
        assert indices.min() >= 0
        assert indices.max() < len(table)
        assert (weights > 0).all()
        assert torch.isfinite(weights).all()


@pytest.mark.parametrize("scheme", MEMBERS)
def test_the_generator_alone_decides(scheme):
    before = torch.get_rng_state()
    scores = skewed(50)
    first, same = (scheme(scores, 0.3, seeded(1)) for _ in range(2))
    other = scheme(scores, 0.3, seeded(2))
    assert torch.equal(first.indices, same.indices)
    assert torch.equal(first.weights, same.weights)
    assert not torch.equal(first.indices, other.indices)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scheme", MEMBERS)
def test_the_table_is_left_as_it_was(scheme):
    scores = torch.tensor([3.0, INF, 1.0])
    scheme(scores, 0.0, seeded())
    assert scores.tolist() == [3.0, INF, 1.0]


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
def test_none_is_loaded_twice_where_that_is_promised(scheme):
    for seed in range(20):
        indices = scheme(skewed(), 0.0, seeded(seed)).indices
        assert len(indices.unique()) == len(indices)


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
def test_the_first_place_of_a_pass_goes_to_any_example(scheme):
    """In a shuffled pass every loaded example is as likely to come first."""
    scores, generator = torch.tensor([INF] * 4), seeded()
    first = [scheme(scores, 0.0, generator).indices[0] for _ in range(2000)]
    share = torch.bincount(torch.stack(first), minlength=4) / 2000
    assert ((share - 0.25).abs() < 4 * (0.25 * 0.75 / 2000) ** 0.5).all()


@pytest.mark.parametrize("scheme", BY_SCORE)
@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_faulty_scores_are_refused(scheme, bad):
    with pytest.raises(ValueError, match=r"got 1 of 2 .* at positions \{1: "):
        scheme(torch.tensor([1.0, bad]), 0.0, seeded())


@pytest.mark.parametrize("scheme", UNBIASED)
def test_the_weighted_mean_of_a_pass_is_the_mean_of_all_where_promised(scheme):
    scores = skewed()
    assert abs(deviation(scheme, scores, values=scores)) < 4


@pytest.mark.parametrize("scheme", BIASED)
def test_the_mean_of_a_pass_leans_to_the_hard_examples_elsewhere(scheme):
    scores = skewed()
    assert deviation(scheme, scores, values=scores, rounds=1000) > 20


@pytest.mark.parametrize("by", ["loss", "rank"])
def test_prioritized_ends_unbiased_up_to_the_largest_weight(by):
    scores = skewed()
    probs = Power()(scores) if by == "loss" else RankPower(0.6)(scores)
    indices, weights = Prioritized(by=by)(scores, 1.0, seeded())
    unbiased = 1 / (len(scores) * probs)
    expected = (unbiased / unbiased.max())[indices].float()
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)
    values = scores * unbiased.max()  # undoes the common factor
    generator, means = seeded(), []
    for _ in range(4000):
        chosen, weight = Prioritized(by=by)(scores, 1.0, generator)
        means.append((weight * values[chosen]).mean())
    found = torch.stack(means)
    error = found.std().item() / 4000**0.5
    assert abs(found.mean().item() - scores.mean().item()) < 4 * error


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_power_of_the_weights_rises_linearly_to_one(progress):
    scores = skewed()
    indices, weights = Prioritized(beta=0.4)(scores, progress, seeded())
    probs = Power()(scores)
    expected = (probs.min() / probs[indices]) ** (0.4 + 0.6 * progress)
    torch.testing.assert_close(weights, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("scheme", "progress", "priority"),
    [
        pytest.param(
            OnlineBatchSelection(100.0, 1.0), 0.0, RankExponential(100.0), id="start"
        ),
        pytest.param(
            OnlineBatchSelection(100.0, 1.0), 0.5, RankExponential(10.0), id="middle"
        ),
        pytest.param(
            OnlineBatchSelection(100.0, 1.0), 1.0, RankExponential(1.0), id="end"
        ),
        pytest.param(Prioritized(alpha=1.0), 0.5, Power(alpha=1.0), id="by-loss"),
        pytest.param(
            Prioritized(alpha=1.0, by="rank"), 0.5, RankPower(alpha=1.0), id="by-rank"
        ),
    ],
)
def test_examples_are_drawn_as_often_as_their_priority_says(scheme, progress, priority):
    scores, rounds = torch.tensor([0.5, INF, 3.0, 0.0, 2.0]), 1500
    expected = 5 * priority(scores)
    found = counts(scheme, scores, rounds, progress).double()
    error = (expected / rounds).sqrt()  # above that of a binomial count
    assert ((found - expected).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "scheme", [OnlineBatchSelection(), Prioritized(alpha=2.0, by="rank")]
)
def test_equal_scores_are_drawn_alike_wherever_they_stand(scheme):
    found = counts(scheme, torch.full((6,), INF), rounds=2500)
    # Given the order of a pass, counts vary more than independent draws would.
    assert (found - 1).abs().max() < 0.1


@pytest.mark.parametrize("make", [OnlineBatchSelection, Prioritized])
@pytest.mark.parametrize(
    ("size", "drawn"), [(1.0, 10), (0.25, 2), (0.01, 1), (2.5, 25)]
)
def test_a_pass_has_the_size_that_was_asked_for(make, size, drawn):
    assert len(make(size=size)(torch.ones(10), 0.0, seeded()).indices) == drawn


@pytest.mark.parametrize("scheme", [Shuffled(), OnlineBatchSelection()])
def test_unweighted_passes_weigh_one(scheme):
    assert (scheme(skewed(), 0.2, seeded()).weights == 1).all()


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_shuffled_loads_everything_once(progress):
    indices = Shuffled()(skewed(), progress, seeded()).indices
    assert indices.sort().values.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.3, 10, 3), (0.3, 11, 4), (0.55, 100, 55), (1.0, 7, 7), (0.001, 5, 1)],
)
def test_a_random_subset_has_its_share_rounded_up(share, count, expected):
    indices, weights = RandomSubset(share)(torch.ones(count), 0.0, seeded())
    assert len(indices) == expected
    assert (weights == 1).all()
    assert indices.untyped_storage().nbytes() == 8 * expected  # a checkpoint's size


def test_random_subsets_load_all_alike_and_are_fresh():
    found = counts(RandomSubset(0.3), skewed(10), rounds=2000)
    assert ((found - 0.3).abs() < 4 * (0.3 * 0.7 / 2000) ** 0.5).all()


def test_soft_pruning_drops_only_below_the_mean_of_what_is_known():
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, INF])  # mean 3
    found = counts(SoftPruned(ratio=0.25), scores, rounds=4000)
    assert found[2:].tolist() == [1, 1, 1]
    assert ((found[:2] - 0.75).abs() < 4 * (0.25 * 0.75 / 4000) ** 0.5).all()


def test_survivors_of_pruning_stand_in_for_the_dropped():
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0])
    sizes = set()
    for seed in range(30):
        indices, weights = SoftPruned(ratio=0.75)(scores, 0.0, seeded(seed))
        kept = len(indices) / 5
        expected = torch.where(indices == 4, kept, kept * 4)
        torch.testing.assert_close(weights, expected)
        sizes.add(len(indices))
    assert len(sizes) > 2


def test_without_the_kept_share_pruned_steps_would_be_longer_than_ordinary_ones():
    """What competitors leave out: their mean weight is well above 1."""
    scores, generator = skewed(200), seeded()
    drawn = [SoftPruned()(scores, 0.0, generator) for _ in range(500)]
    ours = torch.stack([weights.mean() for _, weights in drawn])
    theirs = torch.stack(
        [weights.mean() * 200 / len(indices) for indices, weights in drawn]
    )
    assert abs(ours.mean() - 1) < 4 * ours.std() / 500**0.5
    assert theirs.mean() > 1.3


@pytest.mark.parametrize("epochs", [1, 8, 30, 50, 90, 100])
def test_soft_pruning_ends_by_progress_whatever_the_number_of_epochs(epochs):
    generator, scores = seeded(), skewed(100)
    for epoch in range(epochs):
        indices, weights = SoftPruned()(scores, epoch / epochs, generator)
        over = epoch / epochs >= 0.875
        assert (len(indices) == 100) is over
        assert bool((weights == 1).all()) is over
        if over:
            assert len(indices.unique()) == 100


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-30])
@pytest.mark.parametrize("count", [3, 10, 49])
def test_equal_scores_are_not_below_their_own_mean(value, count):
    """Rounding can put a mean of equal numbers above each of them."""
    scores = torch.full((count,), value, dtype=torch.float64)
    assert len(SoftPruned(ratio=0.99)(scores, 0.0, seeded()).indices) == count


@pytest.mark.parametrize(
    ("beta", "floor", "expected"),
    [
        pytest.param(1.0, 0.0, [0.0, 0.3, 0.3, 0.6, 1.0], id="plain"),
        pytest.param(2.0, 0.0, [0.0, 0.09, 0.09, 0.36, 1.0], id="square"),
        pytest.param(1.0, 0.3, [0.3, 0.3, 0.3, 0.6, 1.0], id="floor"),
    ],
)
def test_stale_selection_loads_by_the_share_of_the_table_below(beta, floor, expected):
    scores = torch.tensor([1.0, 2.0, 2.0, 5.0, INF])
    chances = torch.tensor(expected)
    found = counts(StaleSelection(beta, floor), scores, rounds=4000)
    error = (chances * (1 - chances) / 4000).sqrt()
    assert ((found - chances).abs() <= 4 * error).all()


@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0])
def test_stale_selection_loads_about_one_in_one_plus_beta(beta):
    indices, weights = StaleSelection(beta)(skewed(20_000), 0.0, seeded())
    share = 1 / (1 + beta)
    error = (share * (1 - share) / 20_000) ** 0.5
    assert abs(len(indices) / 20_000 - share) < 4 * error
    assert (weights == 1).all()


def test_stale_selection_falls_back_on_the_highest_score():
    for seed in range(50):
        indices = StaleSelection(beta=60.0)(
            torch.tensor([1.0, 4.0, 2.0]), 0.0, seeded(seed)
        ).indices
        assert indices.tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: RandomSubset(0.0),
            r"`share` must be in \(0, 1\], got 0\.0\. 0\.3",
            id="share-0",
        ),
        pytest.param(lambda: RandomSubset(1.1), "`share` .* got 1.1", id="share-1.1"),
        pytest.param(
            lambda: OnlineBatchSelection(start=0.5),
            r"`start` must be a pressure of at least 1, got 0\.5\. 1 is",
            id="start",
        ),
        pytest.param(
            lambda: OnlineBatchSelection(end=float("nan")), "`end` .* nan", id="end"
        ),
        pytest.param(
            lambda: OnlineBatchSelection(size=0.0),
            r"`size` must be a number above 0, got 0\.0\. 1\.0 draws",
            id="size",
        ),
        pytest.param(
            lambda: Prioritized(size=INF), "`size` .* got inf", id="endless-size"
        ),
        pytest.param(
            lambda: Prioritized(by="score"),
            '`by` must be "loss" or "rank", got \'score\'. Use',
            id="by",
        ),
        pytest.param(
            lambda: Prioritized(beta=1.5),
            r"`beta` must be in \[0, 1\], got 1\.5\. It",
            id="beta",
        ),
        pytest.param(
            lambda: Prioritized(alpha=-1.0), "`alpha` .* at least 0, got -1", id="alpha"
        ),
        pytest.param(
            lambda: Prioritized(epsilon=-1.0), "`epsilon` .* got -1", id="epsilon"
        ),
        pytest.param(
            lambda: SoftPruned(ratio=1.0),
            r"`ratio` must be in \[0, 1\), got 1\.0\. Those",
            id="ratio",
        ),
        pytest.param(
            lambda: SoftPruned(until=1.01),
            r"`until` must be in \[0, 1\], got 1\.01\. 0\.875",
            id="until",
        ),
    ],
)
def test_a_setting_without_a_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "scheme",
    [
        OnlineBatchSelection(100.0, 1.0),
        Prioritized(),
        SoftPruned(),
    ],
)
def test_what_changes_over_a_run_must_know_its_length(scheme):
    with pytest.raises(ValueError, match="must know its length"):
        scheme(torch.ones(10), math.nan, seeded())


@pytest.mark.parametrize(
    "scheme",
    [OnlineBatchSelection(5.0, 5.0), Prioritized(beta=1.0), SoftPruned(0.5, 1.0)],
)
def test_what_does_not_change_need_not(scheme):
    assert len(scheme(torch.ones(10), math.nan, seeded()).indices) == 10


def test_equal_scores_share_their_places():
    scores = torch.cat([torch.zeros(600), torch.ones(400)])
    indices = StaleSelection()(scores, 0.0, seeded()).indices
    low, high = int((indices < 600).sum()), int((indices >= 600).sum())
    assert abs(low - 600 * 0.2995) < 4 * (600 * 0.3 * 0.7) ** 0.5
    assert abs(high - 400 * 0.7995) < 4 * (400 * 0.8 * 0.2) ** 0.5
