"""Every selection scheme must honour the counts it announces, and know its noise."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_is.sampling import selection
from lightning_is.sampling.distributions import Mixed, Proportional, Uniform
from lightning_is.sampling.numerics import capped_inclusion, tau
from lightning_is.sampling.scheme import Draw, Selection
from lightning_is.sampling.selection import (
    effective_batch,
    multinomial,
    systematic,
    without_replacement,
)

MEMBERS = [  # a new scheme joins here
    pytest.param(multinomial, id="multinomial"),
    pytest.param(systematic, id="systematic"),
    pytest.param(without_replacement, id="without-replacement"),
]
BY_PROBABILITY = [p for p in MEMBERS if p.id in {"multinomial", "systematic"}]
WITHOUT_REPEATS = [p for p in MEMBERS if p.id != "multinomial"]
PROBS = [
    pytest.param([0.20, 0.20, 0.20, 0.20, 0.20], id="uniform"),
    pytest.param([0.05, 0.15, 0.45, 0.10, 0.25], id="skewed"),
    pytest.param([0.40, 0.00, 0.20, 0.30, 0.10], id="with-zero"),
    pytest.param([0.01, 0.01, 0.96, 0.01, 0.01], id="one-dominates"),
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def lognormal(count: int, sigma: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return (sigma * noise).exp()


def counts_of(draw: Draw, candidates: int) -> torch.Tensor:
    return torch.bincount(draw.indices, minlength=candidates).double()


def announced(scheme: Selection, probs: torch.Tensor, size: int) -> torch.Tensor:
    """The expected counts in closed form, one for each candidate."""
    if scheme is multinomial:
        return size * probs.double()
    if scheme is systematic:
        return capped_inclusion(probs, size)
    return torch.full_like(probs, size / len(probs)).double()


def test_every_scheme_is_listed_here():
    written = {
        found
        for found in vars(selection).values()
        if isinstance(found, type)
        and found.__module__ == selection.__name__
        and issubclass(found, Selection)
        and found is not Selection
    }
    assert written == {type(param.values[0]) for param in MEMBERS}


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("probs", PROBS)
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_draw_has_the_asked_size_and_announces_its_counts(
    scheme, probs, batch_size, generator
):
    probs = torch.tensor(probs)
    expected = announced(scheme, probs, batch_size)
    for _ in range(10):
        draw = scheme(probs, batch_size, generator=generator)
        assert draw.indices.shape == draw.expected_counts.shape == (batch_size,)
        assert draw.indices.dtype == torch.int64
        assert (draw.expected_counts > 0).all()
        counts = draw.expected_counts.double()
        torch.testing.assert_close(counts, expected[draw.indices], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("probs", PROBS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_candidates_are_drawn_as_often_as_announced(
    scheme, probs, batch_size, generator
):
    probs, draws = torch.tensor(probs), 800
    counts = torch.stack(
        [
            counts_of(scheme(probs, batch_size, generator=generator), len(probs))
            for _ in range(draws)
        ]
    )
    standard_error = counts.std(0) / draws**0.5
    gap = (counts.mean(0) - announced(scheme, probs, batch_size)).abs()
    # A candidate that is nearly never, or nearly always, drawn may show no spread.
    assert (gap <= 4 * standard_error + 5 / draws).all()


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("probs", PROBS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_dividing_by_expected_counts_is_unbiased(scheme, probs, batch_size, generator):
    """E[sum over drawn f_i / E[N_i]] = sum of f_i, f being 0 where p is."""
    probs, values = torch.tensor(probs), torch.tensor([1.0, 0.0, 3.0, 0.5, -2.0])
    draws = [scheme(probs, batch_size, generator=generator) for _ in range(800)]
    sums = torch.stack([(values[d.indices] / d.expected_counts).sum() for d in draws])

    standard_error = sums.std() / len(sums) ** 0.5
    assert (sums.mean() - values.sum()).abs() <= 4 * standard_error + 1e-5


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_no_candidate_is_drawn_twice(scheme, sigma, generator):
    for batch_size in (1, 7, 20, 39, 40):
        probs = Proportional()(lognormal(40, sigma, generator))
        for _ in range(20):
            draw = scheme(probs, batch_size, generator=generator)
            assert counts_of(draw, 40).max() == 1


def test_multinomial_may_draw_a_candidate_again_and_more_than_there_are(generator):
    draw = multinomial(torch.tensor([0.25, 0.75]), 50, generator=generator)
    assert draw.indices.unique().tolist() == [0, 1]
    assert len(draw.indices) == 50


def test_multinomial_draws_are_independent(generator):
    """The variance of a count is that of b separate draws, b p (1 - p)."""
    probs, draws = torch.tensor([0.3, 0.7]), 3000
    counts = torch.stack(
        [
            counts_of(multinomial(probs, 4, generator=generator), 2)[0]
            for _ in range(draws)
        ]
    )
    squares = (counts - 4 * 0.3).square()
    standard_error = squares.std() / draws**0.5
    assert (squares.mean() - 4 * 0.3 * 0.7).abs() <= 4 * standard_error


def test_probabilities_in_half_precision_reach_every_candidate(generator):
    """Summed in their own precision, most edges would fall together."""
    probs = torch.full((1024,), 2**-10, dtype=torch.bfloat16)
    draw = multinomial(probs, 100_000, generator=generator)
    assert counts_of(draw, 1024).min() > 50


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
def test_every_pair_of_equal_candidates_is_drawn_equally_often(scheme, generator):
    """In a fixed order, systematic draws would never take two neighbours."""
    draws, size, chance = 2000, 3, 3 * 2 / (6 * 5)
    pairs = dict.fromkeys(combinations(range(6), 2), 0)
    for _ in range(draws):
        indices = scheme(torch.full((6,), 1 / 6), size, generator=generator).indices
        for pair in combinations(sorted(indices.tolist()), 2):
            pairs[pair] += 1
    standard_error = (chance * (1 - chance) / draws) ** 0.5
    for pair, seen in pairs.items():
        assert abs(seen / draws - chance) <= 4 * standard_error, pair


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
def test_taking_everybody_takes_each_once(scheme, generator):
    draw = scheme(torch.tensor([0.7, 0.1, 0.0, 0.2]), 4, generator=generator)
    assert sorted(draw.indices.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(draw.expected_counts.double(), torch.ones(4).double())


@pytest.mark.parametrize("scheme", BY_PROBABILITY)
def test_a_candidate_of_probability_zero_is_not_drawn(scheme, generator):
    probs = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    for _ in range(100):
        indices = scheme(probs, 3, generator=generator).indices
        assert (probs[indices] > 0).all()


def test_systematic_fills_up_with_zeros_where_too_few_are_positive(generator):
    draw = systematic(torch.tensor([0.0, 1.0, 0.0, 0.0]), 3, generator=generator)
    chance = dict(
        zip(draw.indices.tolist(), draw.expected_counts.tolist(), strict=True)
    )
    assert chance.pop(1) == 1
    assert list(chance.values()) == pytest.approx([2 / 3, 2 / 3])


def test_systematic_is_exact_over_every_order_and_shift(monkeypatch):
    """All 24 orders times a grid that meets every edge: no statistics left."""
    probs, size = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 2
    counts, draws = torch.zeros(4, dtype=torch.float64), 0
    together = set()
    for order in permutations(range(4)):
        for step in range(10):
            shift = torch.tensor([(step + 0.5) / 10], dtype=torch.float64)
            monkeypatch.setattr(torch, "rand", lambda *_, s=shift, **__: s)
            monkeypatch.setattr(
                torch, "randperm", lambda *_, o=order, **__: torch.tensor(o)
            )
            draw = systematic(probs, size)
            counts += counts_of(draw, 4)
            together.add(tuple(sorted(draw.indices.tolist())))
            draws += 1
    torch.testing.assert_close(counts / draws, size * probs)
    assert together == set(combinations(range(4), 2))


SHIFTS = [0.0, 1 - 2**-53]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("widest", [torch.float64, torch.float32])
@pytest.mark.parametrize("scheme", BY_PROBABILITY)
def test_no_end_of_the_shift_reaches_a_candidate_of_probability_zero(
    scheme, widest, shift, monkeypatch
):
    """Nor where the device knows single precision alone, and the shift rounds to 1."""

    def rand(count, *, dtype, **_):
        return torch.full((count,), shift, dtype=dtype)

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    monkeypatch.setattr(selection, "precise", lambda values: values.to(widest))
    drawn = scheme(torch.tensor([0.0, 0.5, 0.5, 0.0]), 2).indices.tolist()
    assert set(drawn) <= {1, 2}


@pytest.mark.parametrize("size", [2, 5, 37, 64])
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_end_of_the_shift_draws_a_candidate_twice(shift, size, monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda *_, dtype, **__: torch.tensor([shift], dtype=dtype)
    )
    draw = systematic(torch.full((64,), 1 / 64, dtype=torch.float64), size)
    assert counts_of(draw, 64).max() == 1


@pytest.mark.parametrize("scheme", MEMBERS)
def test_draws_come_from_the_given_generator_alone(scheme):
    probs = torch.full((50,), 0.02)

    def drawn(seed):
        torch.manual_seed(seed + 100)  # must make no difference
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        indices = [scheme(probs, 20, generator=generator).indices for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(*indices)
        return torch.stack(indices).tolist()

    with torch.random.fork_rng():
        first = drawn(seed=1)
        torch.manual_seed(7)
        assert drawn(seed=1) == first
        assert drawn(seed=2) != first


@pytest.mark.parametrize("scheme", MEMBERS)
def test_the_same_seed_draws_the_same_whatever_the_global_seed(scheme):
    probs = torch.full((50,), 0.02)
    draws = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(0)
            draws.append(scheme(probs, 20, generator=generator).indices.tolist())
    assert draws[0] == draws[1]


@pytest.mark.parametrize("scheme", MEMBERS)
def test_without_a_generator_the_global_seed_decides(scheme):
    probs = torch.full((50,), 0.02)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = scheme(probs, 20).indices.tolist()
        second = scheme(probs, 20).indices.tolist()
        torch.manual_seed(3)
        again = scheme(probs, 20).indices.tolist()
    assert first == again != second


@pytest.mark.parametrize("scheme", MEMBERS)
def test_drawing_and_predicting_wait_for_no_device(scheme):
    """A meta tensor holds no values: whatever looked at one would raise."""
    probs = torch.ones(6, device="meta")
    draw = scheme(probs, 2, generator=torch.Generator())
    assert draw.indices.device.type == draw.expected_counts.device.type == "meta"
    assert effective_batch(probs, probs, 2, scheme).device.type == "meta"


@pytest.mark.parametrize("scheme", BY_PROBABILITY)
@pytest.mark.parametrize(
    ("probs", "message"),
    [
        pytest.param([0.5, 0.4], r"sum 0\.9 over 2 candidates", id="sum"),
        pytest.param([1.5, -0.5], r"minimum -0\.5", id="negative"),
        pytest.param([float("nan"), 1.0], "must be at least 0", id="nan"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_numbers(scheme, probs, message):
    with pytest.raises(ValueError, match=message):
        scheme(torch.tensor(probs), 2)


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("batch_size", [0, -3])
def test_an_empty_batch_is_refused(scheme, batch_size):
    with pytest.raises(ValueError, match=rf"the 2 candidates, got {batch_size}\."):
        scheme(torch.tensor([0.5, 0.5]), batch_size)


@pytest.mark.parametrize("scheme", WITHOUT_REPEATS)
def test_without_repeats_no_more_than_all_can_be_drawn(scheme):
    probs = torch.tensor([0.5, 0.5])
    rule = "between 1 and the 2 candidates, got 3"
    with pytest.raises(ValueError, match=rule):
        scheme(probs, 3)
    with pytest.raises(ValueError, match=rule):
        scheme.expected_counts(probs, 3)


NOISY = [
    pytest.param(0.5, Proportional(), id="mild"),
    pytest.param(1.0, Mixed(share=0.3), id="defended"),
    pytest.param(2.0, Proportional(), id="uneven"),
    pytest.param(1.0, Uniform(), id="blind"),
]


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize(("sigma", "distribution"), NOISY)
def test_noise_is_the_variance_that_drawing_adds(
    scheme, sigma, distribution, generator
):
    """Gradients at right angles, so that no pair of examples adds a term."""
    count, size, draws = 48, 12, 400
    scores = lognormal(count, sigma, generator)
    probs = distribution(scores)
    errors = []
    for _ in range(draws):
        draw = scheme(probs, size, generator=generator)
        share = torch.zeros(count, dtype=torch.float64)
        share.index_add_(0, draw.indices, 1 / draw.expected_counts.double())
        errors.append(((share - 1) * scores / count).square().sum())
    errors = torch.stack(errors)

    predicted = scheme.noise(scores, scheme.expected_counts(probs, size))
    if scheme is multinomial:  # its formula is the second moment, not centred
        predicted = predicted - scores.square().mean() / (size * count)
    standard_error = errors.std() / draws**0.5
    assert (errors.mean() - predicted).abs() <= 4 * standard_error + 1e-12


@given(
    scores=st.lists(st.floats(0, 100), min_size=2, max_size=20).filter(any),
    data=st.data(),
)
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_systematic_is_never_noisier_than_multinomial(scores, data):
    scores = torch.tensor(scores, dtype=torch.float64)
    size = data.draw(st.integers(1, len(scores)))
    probs = Mixed()(scores)
    calm = systematic.noise(scores, systematic.expected_counts(probs, size))
    assert calm <= multinomial.noise(
        scores, multinomial.expected_counts(probs, size)
    ) * (1 + 1e-9)


def test_noise_counts_no_example_without_a_score():
    scores, probs = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.5, 0.5])
    assert systematic.noise(
        scores, systematic.expected_counts(probs, 2)
    ).item() == pytest.approx(0)
    assert multinomial.noise(
        scores, multinomial.expected_counts(probs, 2)
    ).item() == pytest.approx(4 / 18)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_effective_batch_of_multinomial_is_its_closed_form(sigma, size, generator):
    scores = lognormal(192, sigma, generator)
    measured = effective_batch(scores, Proportional()(scores), size, multinomial)
    torch.testing.assert_close(measured, 1 / (size / 192 + 1 / tau(scores) ** 2))


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_effective_batch_of_systematic_is_its_closed_form(sigma, size, generator):
    scores = lognormal(192, sigma, generator)
    probs = Proportional()(scores)
    pi, second = capped_inclusion(probs, size), scores.square().mean()
    noise = ((1 - pi) / pi * scores.square()).sum() / 192**2
    expected = (second / size) / (second / 192 + noise)
    torch.testing.assert_close(effective_batch(scores, probs, size), expected)


TABLE = [  # b and sigma of lognormal scores, with B = 3b or 5b: the table of method.md
    pytest.param(3, 1.0, multinomial, 1.41, id="multinomial"),
    pytest.param(3, 1.0, systematic, 2.19, id="systematic"),
    pytest.param(5, 1.0, multinomial, 1.72, id="multinomial-of-5"),
    pytest.param(5, 1.0, systematic, 2.43, id="systematic-of-5"),
]


@pytest.mark.parametrize(("ratio", "sigma", "scheme", "known"), TABLE)
def test_effective_batch_predicts_the_measured_multiplier(
    ratio, sigma, scheme, known, generator
):
    """Fresh presamples of unrelated gradients: noise of the presample included."""
    size, predicted, uniform, drawn = 64, [], [], []
    for _ in range(200):
        scores = lognormal(ratio * size, sigma, generator)
        probs = Proportional()(scores)
        predicted.append(effective_batch(scores, probs, size, scheme))
        draw = scheme(probs, size, generator=generator)
        sums = torch.zeros(len(scores), dtype=torch.float64)
        sums.index_add_(0, draw.indices, scores[draw.indices] / draw.expected_counts)
        uniform.append(scores.square().mean() / size)
        drawn.append((sums / len(scores)).square().sum())

    expected = torch.stack(predicted).mean().item()
    measured = (torch.stack(uniform).mean() / torch.stack(drawn).mean()).item()
    assert expected == pytest.approx(known, rel=0.2)
    assert measured == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("scheme", MEMBERS)
def test_effective_batch_of_zero_scores_is_one(scheme):
    even = torch.full((4,), 0.25)
    assert effective_batch(torch.zeros(4), even, 2, scheme).item() == 1


@pytest.mark.parametrize("selection", [systematic, without_replacement])
def test_effective_batch_of_equal_scores_is_one(selection):
    even = torch.full((6,), 1 / 6)
    measured = effective_batch(torch.full((6,), 3.0), even, 2, selection)
    assert measured.item() == pytest.approx(1, rel=1e-6)


def test_effective_batch_of_a_blind_draw_with_repeats_is_below_one():
    even = torch.full((6,), 1 / 6)
    measured = effective_batch(torch.ones(6), even, 2, multinomial)
    assert measured.item() == pytest.approx(1 / (2 / 6 + 1), rel=1e-6)


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("sigma", [0.5, 2.0, 8.0])
def test_effective_batch_never_exceeds_the_ceiling(scheme, sigma, generator):
    for _ in range(10):
        scores = lognormal(48, sigma, generator)
        measured = effective_batch(scores, Proportional()(scores), 12, scheme)
        assert 0 < measured <= 48 / 12 + 1e-9


def test_effective_batch_reaches_the_ceiling_where_nothing_is_left_to_chance():
    scores = torch.tensor([5.0, 7.0, 0.0, 0.0, 0.0, 0.0])
    measured = effective_batch(scores, Proportional()(scores), 2)
    assert measured.item() == pytest.approx(6 / 2)


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        pytest.param(torch.float16, 1e3, id="half"),
        pytest.param(torch.float32, 1e-30, id="tiny"),
        pytest.param(torch.float32, 1e30, id="huge"),
        pytest.param(torch.float64, 1e-300, id="tiny-double"),
        pytest.param(torch.float64, 1e307, id="huge-double"),
    ],
)
def test_effective_batch_does_not_depend_on_the_scale(scheme, dtype, scale):
    plain = torch.tensor([1.0, 3.0, 7.0, 0.0, 1.3], dtype=torch.float64)
    scaled = (plain * scale).to(dtype)
    same = scaled.double() / scaled.double().max()
    probs = Proportional()(plain)
    measured = effective_batch(scaled, probs, 2, scheme)
    torch.testing.assert_close(measured, effective_batch(same, probs, 2, scheme))


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_noise_squares_scores_in_the_widest_float(scheme, scale):
    scores = torch.tensor([1.0, 3.0, 7.0, 0.0, 1.3]) * scale
    probs = Proportional()(scores)
    expected = scheme.noise(scores.double(), scheme.expected_counts(probs, 2))
    assert expected > 0
    torch.testing.assert_close(
        scheme.noise(scores, scheme.expected_counts(probs, 2)),
        expected,
        atol=0,
        rtol=1e-9,
    )
