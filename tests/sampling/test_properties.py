"""Whatever the scores, sizes and dtypes: no crash, no NaN, bounds hold, sums are right.

Scores are any that a scorer can give: zeros, equal ones, the smallest and the largest
number of every dtype, side by side.
"""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    ConstantTime,
    ConstantVariance,
    CostModel,
    EfficiencyGate,
    Evidence,
    ImportancePlan,
    ImportanceSubset,
    LossPercentile,
    Mixed,
    NeverOpen,
    OnlineBatchSelection,
    Power,
    PowerWeights,
    Prioritized,
    Proportional,
    RandomSubset,
    RankExponential,
    RankPower,
    Shuffled,
    Sizes,
    SoftPruned,
    StaleSelection,
    TauGate,
    Timing,
    Uniform,
    UnitWeights,
    Warmup,
    Window,
    capped_inclusion,
    constant_time_sizes,
    effective_batch,
    max_normalised,
    multinomial,
    rescaled_power,
    systematic,
    tau,
    without_replacement,
)
from lightning_is.sampling.moments import evidence, moments, no_moments, only_faults
from lightning_is.sampling.numerics import even_unless_finite, faults
from lightning_is.sampling.percentile import share_below
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.scheme import Draw

INF = float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NUMBERS = st.one_of(
    st.just(0.0),
    st.just(1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 3e38),
    st.sampled_from([5e-324, 1e-200, 1e-45, 1e-38, 6e-8, 65504.0, 3.4e38, 1e200]),
)
BAD = st.sampled_from([float("nan"), INF, -INF, -1.0, -1e-30])
SHARES = st.floats(0.01, 1.0)
SEEDS = st.integers(0, 2**20)

DISTRIBUTIONS = [
    Proportional(),
    Uniform(),
    Mixed(),
    Mixed(Power(), 0.3),
    Power(0.5, 0.0),
    Power(3.0),
    RankPower(),
    RankExponential(),
    RankExponential(1e30),
]
SELECTIONS = [multinomial, systematic, without_replacement]
SCHEMES = [
    Shuffled(),
    RandomSubset(0.3),
    ImportanceSubset(0.6),
    ImportanceSubset("auto"),
    SoftPruned(),
    SoftPruned(0.9, until=1.0),
    StaleSelection(),
    StaleSelection(4.0, floor=0.1),
    OnlineBatchSelection(),
    OnlineBatchSelection(1.0, 1e10, size=1.7),
    Prioritized(),
    Prioritized(by="rank", beta=1.0, size=0.5),
    Prioritized(alpha=1.0, epsilon=0.0),
]
GATES = {
    "always": AlwaysOpen,
    "never": NeverOpen,
    "warmup": lambda: Warmup(3),
    "tau": TauGate,
    "tau-fixed": lambda: TauGate(1.5, smoothing=0.0),
    "efficiency": EfficiencyGate,
    "efficiency-assumed": lambda: EfficiencyGate("assumed", smoothing=0.0),
    "adaptive": AdaptiveSize,
    "adaptive-epsilon": lambda: AdaptiveSize((0.1, 0.9), "assumed", epsilon=0.1),
    "variance": lambda: ConstantVariance(smoothing=0.5),
    "time": lambda: ConstantTime(smoothing=0.0),
    "window": lambda: Window(0.2, 0.9, interrupt=2),
}


def examples(count):
    """Check so many examples, the same ones every time, however slow the machine."""
    return settings(max_examples=count, derandomize=True, deadline=None)


@st.composite
def scores(draw, least=1, most=24, numbers=NUMBERS, dtypes=DTYPES):
    """Scores of any dtype, each representable in it."""
    dtype = draw(st.sampled_from(dtypes))
    values = draw(st.lists(numbers, min_size=least, max_size=most))
    wide = torch.tensor(values, dtype=torch.float64)
    return wide.clamp(max=torch.finfo(dtype).max).to(dtype)


@st.composite
def sized(draw, **settings):
    """Scores, and how many of their examples to draw."""
    found = draw(scores(**settings))
    return found, draw(st.integers(1, len(found)))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def is_number(values, least=0.0, most=INF):
    return bool(((values >= least) & (values <= most) & values.isfinite()).all())


# From scores to a batch.


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@examples(25)
@given(found=scores())
def test_probabilities_sum_to_one_and_never_fall_with_the_score(distribution, found):
    probs = distribution(found)
    assert probs.shape == found.shape
    assert is_number(probs, 0.0, 1 + 1e-12)
    assert float(probs.sum()) == pytest.approx(1, abs=1e-9)
    by_score = probs[found.double().sort(stable=True).indices]
    if not isinstance(distribution, (RankPower, RankExponential)):
        assert bool((by_score.diff() >= -1e-15).all())  # ranks split what is equal
    if isinstance(distribution, Mixed):
        assert is_number(probs, distribution.share / len(found) * (1 - 1e-12))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@examples(12)
@given(found=scores(), bad=BAD, place=st.integers(0, 99))
def test_what_is_no_score_is_refused(distribution, found, bad, place):
    spoilt = found.index_fill(0, torch.tensor([place % len(found)]), bad)
    unseen = isinstance(distribution, (Power, RankPower, RankExponential))
    if isinstance(distribution, Mixed):
        unseen = isinstance(distribution.base, Power)
    ignored = isinstance(distribution, Uniform) or (unseen and bad == INF)
    # In half precision a small negative number is rounded to zero.
    if ignored or not bool(faults(spoilt).any()):
        assert is_number(distribution(spoilt), 0.0, 1 + 1e-12)
        return
    with pytest.raises(ValueError, match=f"got 1 of {len(found)} that are not"):
        distribution(spoilt)


@examples(60)
@given(drawn=sized())
def test_inclusion_is_capped_proportional_and_sums_to_the_batch(drawn):
    found, size = drawn
    probs = Proportional()(found)
    inclusion = capped_inclusion(probs, size)
    assert is_number(inclusion, 0.0, 1.0)
    assert float(inclusion.sum()) == pytest.approx(size, rel=1e-9)
    free = (inclusion < 1) & (probs > 1e-20)
    if bool(free.any()):
        scale = inclusion[free] / probs[free]
        assert float(scale.max()) == pytest.approx(float(scale.min()), rel=1e-6)
        # Whoever is certain would be included at least once at that scale.
        assert bool((probs[inclusion == 1] * scale.max() >= 1 - 1e-6).all())


@pytest.mark.parametrize(
    ("distribution", "selection"),
    list(product([Proportional(), Mixed(), RankExponential()], SELECTIONS)),
    ids=lambda part: type(part).__name__,
)
@examples(20)
@given(drawn=sized(), seed=SEEDS)
def test_draws_are_of_the_batch_size_and_honour_their_counts(
    distribution, selection, drawn, seed
):
    found, size = drawn
    counts = selection.expected_counts(distribution(found), size)
    assert is_number(counts, 0.0, size * (1 + 1e-12))
    assert float(counts.sum()) == pytest.approx(size, rel=1e-9)
    picked = selection.pick(counts, size, generator=generator(seed))
    assert picked.shape == (size,)
    assert is_number(picked, 0, len(found) - 1)
    assert is_number(counts[picked], 1e-40)
    if selection is not multinomial:
        assert is_number(counts, 0.0, 1.0)
        assert len(picked.unique()) == size


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("share", [0.05, 0.5])
@examples(20)
@given(drawn=sized(), seed=SEEDS)
def test_weights_undo_the_draw_and_are_bounded(selection, share, drawn, seed):
    """Expected counts times weights are even: the gradient is unbiased."""
    found, size = drawn
    plan = ImportancePlan(Mixed(share=share), selection)
    counts = plan.expected_counts(found, size)
    everyone = torch.arange(len(found))
    batch = Draw(everyone[:size], counts[:size])
    weights = plan.weights(batch, len(found)).double()
    even = size / len(found)
    torch.testing.assert_close(
        counts[:size] * weights, torch.full_like(weights, even), rtol=1e-6, atol=0.0
    )
    chosen = plan.draw(found, size, generator=generator(seed))
    assert is_number(chosen.weights, 0.0, (1 + 1e-6) / share)
    assert chosen.weights.dtype == torch.float32


@examples(40)
@given(drawn=sized(), k=st.floats(-2.0, 1.0))
def test_powers_of_weights_are_numbers(drawn, k):
    found, size = drawn
    probs = Mixed(share=0.1)(found)
    batch = Draw(torch.arange(size), size * probs[:size])
    for weights in (PowerWeights(k)(batch, len(found)), UnitWeights()(batch, 9)):
        assert weights.shape == (size,)
        assert is_number(weights, 0.0, 1e6)
    # Above 1 only where hard examples are stressed, below only where they are easy.
    unbiased = PowerWeights()(batch, len(found))
    powered = PowerWeights(k)(batch, len(found))
    torch.testing.assert_close(powered, unbiased.double().pow(k).float())


@examples(40)
@given(drawn=sized(), seed=SEEDS, beta=st.floats(0.0, 1.0), k=st.floats(0.0, 1.0))
def test_relative_weights_stay_below_one_and_totals_are_kept(drawn, seed, beta, k):
    found, size = drawn
    probs = Mixed(share=0.1)(found)
    picked = multinomial.pick(probs, size, generator=generator(seed))
    assert is_number(max_normalised(probs, picked, beta), 0.0, 1 + 1e-6)
    # Those of `PredictedLoss` are clamped to a million.
    losses = found.float().clamp(max=1e6)[picked]
    weights = rescaled_power(probs[picked], losses, len(found), k)
    assert is_number(weights)
    unbiased = 1 / (len(found) * probs[picked])
    if float(losses.max()) > 1e-30:
        total = float(weights.double() @ losses.double())
        assert total == pytest.approx(float(unbiased @ losses.double()), rel=1e-4)


# What gates are told.


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: type(s).__name__)
@examples(30)
@given(drawn=sized(), other=scores())
def test_moments_tell_what_all_scores_would(selection, drawn, other):
    """Bounds hold for one rank and for two; one rank's are those of its scores."""
    found, size = drawn
    plan = ImportancePlan(Mixed(), selection)

    def packed(of, wanted):
        return moments(of, [(wanted, plan.expected_counts(of, wanted))], selection)

    mine = packed(found, size)
    seen = evidence(mine.tolist(), len(found), size)
    assert 1 <= seen.tau <= len(found) ** 0.5 * (1 + 1e-9)
    assert 0 < seen.effective_batch <= len(found) / size * (1 + 1e-9)
    if is_number(found[found > 0], 1e-45, 4e38):  # sums of other squares are rounded
        assert seen.tau == pytest.approx(float(tau(found)), rel=1e-6)
        gain = effective_batch(found, plan.distribution(found), size, selection)
        assert seen.effective_batch == pytest.approx(float(gain), rel=1e-6)
    theirs = packed(other, min(size, len(other)))
    both = evidence((mine + theirs).tolist(), len(found), size)
    n = len(found) + len(other)
    assert 1 <= both.tau <= n**0.5 * (1 + 1e-9)
    assert 0 < both.effective_batch <= n
    nothing = no_moments(1, found.device)
    assert evidence((mine + nothing).tolist(), len(found), size) == seen


@examples(60)
@given(found=scores(numbers=st.one_of(NUMBERS, BAD)), forgiving=st.booleans())
def test_faults_are_all_counted_and_a_skipped_step_is_even(found, forgiving):
    packed = only_faults(found, 3, forgiving=forgiving).tolist()
    overflowed = int((~found.isfinite()).sum())
    negative = int((found < 0).sum()) - int((found == -INF).sum())
    expected = [negative, overflowed] if forgiving else [negative + overflowed, 0]
    assert packed == [0.0, 0.0, 0.0, *expected, *([0.0] * 6)]
    assert evidence(packed, 4, 2) is None
    kept, finite = even_unless_finite(found)
    assert bool(finite) == (overflowed == 0)
    assert torch.equal(kept, found if bool(finite) else torch.ones_like(found))


@st.composite
def told(draw):
    """What a gate of any kind may be told, for all the sizes it asks for."""
    presample = draw(st.integers(1, 300))
    batch = draw(st.integers(1, presample))
    number = st.floats(1.0, 300.0)
    time = st.sampled_from([0.0, 1e-9, 0.001, 0.1, 5.0])
    sizes = st.sampled_from([batch, presample])
    timing = st.builds(Timing, sizes, sizes, time, time, time, st.booleans())
    common = {"presample_size": presample, "batch_size": batch}
    looks = st.builds(
        dict,
        tau=number,
        effective_batch=st.floats(1e-3, 300.0),
        steps=st.integers(1, 20),
        progress=st.floats(0.0, 1.0),
        epochs=st.floats(0.0, 9.0),
        timings=st.lists(timing, max_size=8).map(tuple),
    )
    return common, draw(st.lists(looks, max_size=6))


@pytest.mark.parametrize("kind", GATES)
@examples(25)
@given(story=told(), gain=st.floats(1e-3, 8.0))
def test_gates_always_ask_for_what_can_be_had(kind, story, gain):
    common, looks = story
    presample, batch = common["presample_size"], common["batch_size"]
    gate = GATES[kind]()
    for look in looks:
        places = len(gate.candidates(presample, batch))
        gate.observe(Evidence(**common, **look, gains=(gain,) * places))
        assert isinstance(gate.is_open, bool)
        assert gate.interval >= 1
        sizes, candidates = (
            ask(presample, batch) for ask in (gate.sizes, gate.candidates)
        )
        assert 1 <= sizes.batch <= sizes.presample <= presample
        assert sizes.batch in candidates
        assert all(1 <= size <= presample for size in candidates)
        assert all(math.isfinite(value) for value in gate.metrics().values())
    again, state = GATES[kind](), gate.state_dict()
    again.load_state_dict(state)
    assert all(
        type(value) is float and not math.isnan(value) for value in state.values()
    )
    assert again.state_dict() == state
    assert (again.is_open, again.interval) == (gate.is_open, gate.interval)
    assert again.sizes(presample, batch) == gate.sizes(presample, batch)


@examples(60)
@given(story=told(), threshold=st.floats(1.0, 20.0), smoothing=st.floats(0.0, 0.99))
def test_the_average_of_tau_stays_among_what_it_was_told(story, threshold, smoothing):
    common, looks = story
    gate, largest = TauGate(threshold, smoothing), 0.0
    for look in looks:
        gate.observe(Evidence(**common, **look))
        largest = max(largest, look["tau"])
        assert 0 <= gate.tau <= largest * (1 + 1e-12)
        assert gate.is_open == (gate.tau > threshold)


@examples(60)
@given(story=told(), gain=st.floats(0.0, 1.0))
def test_assumed_costs_never_open_where_no_draw_could_pay(story, gain):
    """The gain of a draw is at most ``B / b``."""
    common, looks = story
    gate = EfficiencyGate("assumed", smoothing=0.0)
    most = common["presample_size"] / common["batch_size"]
    for look in looks:
        found = Evidence(**common, **(look | {"effective_batch": gain * most}))
        gate.observe(found)
        if most <= found.break_even():
            assert not gate.is_open
        assert gate.is_open <= (found.effective_batch > found.break_even() * 0.95)


@examples(100)
@given(
    equivalent=st.floats(0.0, 1e6),
    batch=st.integers(1, 5000),
    cost=st.floats(0.1, 50.0),
    extra=st.floats(0.0, 1.0),
)
def test_constant_time_costs_no_more_than_an_ordinary_step(
    equivalent, batch, cost, extra
):
    found = constant_time_sizes(equivalent, batch, cost, extra * cost / (1 + cost))
    assert isinstance(found, Sizes)
    assert found.presample >= batch
    assert 1 <= found.batch <= batch
    spent = found.presample + (1 + cost) * found.batch
    assert found.batch == 1 or spent <= (1 + cost) * batch * (1 + 1e-9)


@examples(60)
@given(
    timings=st.lists(
        st.builds(
            Timing,
            st.sampled_from([4, 32]),
            st.sampled_from([1, 4]),
            *[st.sampled_from([0.0, 1e-9, 0.01, 0.01, 3.0])] * 3,
            st.booleans(),
        ),
        max_size=10,
    ),
    expires=st.integers(1, 20),
)
def test_costs_are_finite_numbers_whatever_the_clock_says(timings, expires):
    model = CostModel(expires=expires)
    for timing in timings:
        for _ in range(4):  # a kind is measured once it was seen a few times
            model.observe(timing)
        for loaded, trained, ordinary in product((4, 32), (1, 4), (4, 32)):
            ratio = model.ratio(loaded, trained, ordinary, ordinary)
            assert math.isfinite(ratio)
            assert ratio >= 0
    assert model.is_empty == (not timings)


# What to load.


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@examples(20)
@given(
    found=scores(numbers=st.one_of(NUMBERS, st.just(INF)), dtypes=[torch.float32]),
    progress=st.floats(0.0, 1.0),
    seed=SEEDS,
)
def test_passes_hold_examples_of_the_dataset_and_numbers(scheme, found, progress, seed):
    indices, weights = scheme(found, progress, generator(seed))
    n = len(found)
    assert indices.dtype == torch.int64
    assert indices.shape == weights.shape
    assert len(indices) >= 1
    assert is_number(indices, 0, n - 1)
    assert weights.dtype == torch.float32
    assert is_number(weights, 0.0, 20.0)
    if isinstance(scheme, (Shuffled, RandomSubset, ImportanceSubset)):
        share = getattr(scheme, "share", getattr(scheme, "keep", 1.0))
        share = 1.0 if share == "auto" else share
        assert len(indices) == math.ceil(share * n - 1e-9) or scheme.keep == "auto"
    if not isinstance(scheme, (OnlineBatchSelection, Prioritized)):
        assert len(indices.unique()) == len(indices)
    if isinstance(scheme, (SoftPruned, StaleSelection)):
        unseen = (found == INF).nonzero()[:, 0]
        assert bool(torch.isin(unseen, indices).all())
    again = scheme(found, progress, generator(seed))
    assert torch.equal(again.indices, indices)


@pytest.mark.parametrize(
    "scheme",
    [s for s in SCHEMES if not isinstance(s, (Shuffled, RandomSubset))],
    ids=repr,
)
@examples(8)
@given(found=scores(least=2, dtypes=[torch.float32]), place=st.integers(0, 99))
def test_a_table_with_a_number_that_is_no_score_is_refused(scheme, found, place):
    for bad in (float("nan"), -1.0):
        spoilt = found.index_fill(0, torch.tensor([place % len(found)]), bad)
        with pytest.raises(ValueError, match="Scores must be finite and at least 0"):
            scheme(spoilt, 0.5, generator(0))


@examples(40)
@given(
    found=scores(numbers=st.floats(-3e38, 3e38), dtypes=DTYPES[:3]),
    history=st.integers(1, 30),
    beta=st.floats(0.1, 9.0),
    floor=st.floats(0.0, 1.0),
    seed=SEEDS,
)
def test_acceptance_remembers_and_decides_on_each(found, history, beta, floor, seed):
    finite = found.nan_to_num(0.0)
    acceptance = LossPercentile(beta, history, floor)
    for _ in range(3):
        accepted = acceptance.accept(finite, generator(seed))
        assert (accepted.shape, accepted.dtype) == (finite.shape, torch.bool)
        kept = acceptance.state_dict()["losses"]
        assert 1 <= len(kept) <= history
        assert is_number(kept, -INF)
    shares = share_below(finite.float(), kept.sort().values)
    assert is_number(shares, 0.0, 1.0)
    everyone = LossPercentile(beta, history, floor=1.0)
    assert bool(everyone.accept(finite, generator(seed)).all())


@examples(100)
@given(
    seed=st.integers(0, 2**70),
    rank=st.integers(0, 2**40),
    counter=st.integers(0, 2**40),
    global_seed=SEEDS,
)
def test_every_draw_has_random_numbers_of_its_own(seed, rank, counter, global_seed):
    torch.manual_seed(global_seed)
    before = torch.get_rng_state()

    def numbers(*parts):
        return torch.rand(4, generator=draw_generator(*parts)).tolist()

    mine = numbers(seed, rank, counter)
    assert mine == numbers(seed, rank, counter)
    for other in ((seed + 1, rank, counter), (seed, rank + 1, counter)):
        assert mine != numbers(*other)
    assert mine != numbers(seed, rank, counter + 1)
    assert torch.equal(before, torch.get_rng_state())
