"""Scores become probabilities at any scale; faulty ones are named, not swallowed."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_is.sampling.numerics import (
    capped_inclusion,
    check_batch_size,
    check_probs,
    check_scores,
    faults,
    normalise,
    precise,
    tau,
)

NAN, INF = float("nan"), float("inf")
FAULTY = [
    pytest.param([1.0, NAN, 2.0], r"got 1 of 3 .* \{1: nan\}", id="nan"),
    pytest.param([INF, 1.0], r"got 1 of 2 .* \{0: inf\}", id="inf"),
    pytest.param([1.0, -INF], r"got 1 of 2 .* \{1: -inf\}", id="minus-inf"),
    pytest.param([0.5, -2.0, NAN], r"got 2 of 3 .* \{1: -2, 2: nan\}", id="negative"),
    pytest.param(
        [-1.0] * 5, r"got 5 of 5 .* \{0: -1, 1: -1, 2: -1, 3: -1, 4: -1\}", id="five"
    ),
    pytest.param(
        [0.0] + [-1.0] * 6,
        r"got 6 of 7 .* \{1: -1, 2: -1, 3: -1, 4: -1, 5: -1, \.\.\.\}",
        id="more-than-five",
    ),
]


def lognormal(count: int, sigma: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return (sigma * noise).exp()


def elsewhere(values: torch.Tensor, place: str) -> torch.Tensor:
    """Values on the CPU that claim another device, so that its branch can be read."""

    class Elsewhere(torch.Tensor):
        device = property(lambda _: torch.device(place))
        __torch_function__ = torch._C._disabled_torch_function_impl

    return values.as_subclass(Elsewhere)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param(torch.full((7,), 0.3), 1.0, id="equal"),
        pytest.param(torch.eye(640)[17], 25.2982, id="one-hot-of-640"),
        pytest.param(torch.zeros(5), 1.0, id="all-zero"),
        pytest.param(torch.tensor([1.0, 3.0]), 1.25**0.5, id="one-to-three"),
    ],
)
def test_tau_has_its_known_values(scores, expected):
    assert tau(scores).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_tau_is_the_first_form_of_the_paper(sigma):
    scores = lognormal(640, sigma)
    g = scores / scores.sum()
    distance = (g - 1 / len(g)).square().sum()
    paper = (1 - distance / g.square().sum()) ** -0.5
    assert tau(scores).item() == pytest.approx(paper.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        pytest.param(torch.float16, 1e4, id="half"),
        pytest.param(torch.bfloat16, 1e30, id="bfloat16"),
        pytest.param(torch.float32, 1e-30, id="tiny"),
        pytest.param(torch.float32, 1e30, id="huge"),
        pytest.param(torch.float64, 1e-300, id="tiny-double"),
        pytest.param(torch.float64, 1e307, id="huge-double"),
    ],
)
def test_tau_and_probabilities_do_not_depend_on_the_scale_of_the_scores(dtype, scale):
    # Powers of two survive every format, so only over- and underflow could show.
    plain = torch.tensor([1.0, 2.0, 4.0, 0.0, 1.0], dtype=torch.float64).repeat(1000)
    scaled = (plain * scale).to(dtype)
    exact = scaled.double() / scaled.double().max()
    torch.testing.assert_close(normalise(scaled), exact / exact.sum())
    torch.testing.assert_close(tau(scaled), tau(exact))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_tau_lies_between_one_and_the_root_of_the_count(values):
    measured = tau(torch.tensor(values)).item()
    assert 1 - 1e-9 <= measured <= len(values) ** 0.5 + 1e-9


def test_zero_scores_are_no_preference():
    assert torch.equal(normalise(torch.zeros(4)), torch.full((4,), 0.25).double())


def test_a_zero_score_beside_others_stays_zero():
    expected = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.equal(normalise(torch.tensor([0.0, 2.0, 0.0])), expected)


@pytest.mark.parametrize("entrance", [check_scores, normalise, tau])
@pytest.mark.parametrize(("scores", "message"), FAULTY)
def test_faulty_scores_are_refused_with_their_number_and_place(
    entrance, scores, message
):
    with pytest.raises(ValueError, match=message) as caught:
        entrance(torch.tensor(scores))
    assert str(caught.value).startswith("Scores must be finite and at least 0")
    assert "another scorer" in str(caught.value)


def test_faults_marks_what_is_no_score_and_nothing_else():
    scores = torch.tensor([0.0, 1.0, NAN, INF, -INF, -1e-9, 3e38])
    expected = [False, False, True, True, True, True, False]
    assert faults(scores).tolist() == expected


def test_good_scores_pass_the_check():
    assert check_scores(torch.tensor([0.0, 3e38])) is None


@pytest.mark.parametrize("bad", [NAN, INF, -INF, -1.0])
def test_on_an_accelerator_a_faulty_score_makes_the_draw_uniform(bad):
    """Looking at the score would stall the device; `check_scores` reports it later."""
    scores = elsewhere(torch.tensor([1.0, bad, 5.0, 2.0]), "cuda")
    assert normalise(scores).tolist() == [0.25] * 4
    assert tau(scores).item() == 1.0


@pytest.mark.parametrize("scores", [[1.0, 3.0], [0.0, 0.0]])
def test_on_an_accelerator_good_scores_count_as_on_the_cpu(scores):
    scores = torch.tensor(scores)
    assert normalise(elsewhere(scores, "cuda")).tolist() == normalise(scores).tolist()


@pytest.mark.parametrize(
    ("place", "dtype"), [("cuda", torch.float64), ("mps", torch.float32)]
)
def test_sums_use_the_widest_float_of_the_device(place, dtype):
    assert precise(elsewhere(torch.ones(2), place)).dtype == dtype
    assert precise(torch.ones(2)).dtype == torch.float64


def test_nothing_but_the_check_waits_for_the_device():
    """A meta tensor holds no values: whatever looked at one would raise."""
    scores = torch.ones(6, device="meta")
    assert normalise(scores).shape == (6,)
    assert tau(scores).shape == ()
    assert capped_inclusion(scores, 2).shape == (6,)


def capped_one_by_one(scores: list[int], batch_size: int) -> list[float]:
    """The textbook loop: whoever exceeds 1 leaves the table with 1, and again."""
    inclusion = [Fraction(0)] * len(scores)
    active, places = set(range(len(scores))), batch_size
    while active:
        total = sum(scores[i] for i in active)
        shares = {
            i: Fraction(places * scores[i], total)
            if total
            else Fraction(places, len(active))
            for i in active
        }
        over = {i for i in active if shares[i] > 1}
        for i in active:
            inclusion[i] = min(shares[i], Fraction(1))
        if not over:
            break
        active, places = active - over, places - len(over)
    return [float(chance) for chance in inclusion]


@st.composite
def presamples(draw: st.DrawFn) -> tuple[list[int], int]:
    score = st.one_of(
        st.integers(0, 3), st.integers(1, 1000), st.integers(0, 9).map(lambda k: 10**k)
    )
    scores = draw(st.lists(score, min_size=1, max_size=25).filter(any))
    return scores, draw(st.integers(1, len(scores)))


@given(presamples())
@settings(deadline=None, derandomize=True, database=None, max_examples=300)
def test_capped_inclusion_is_the_textbook_loop(presample):
    scores, batch_size = presample
    probs = normalise(torch.tensor(scores, dtype=torch.float64))
    inclusion = capped_inclusion(probs, batch_size)

    exact = torch.tensor(capped_one_by_one(scores, batch_size), dtype=torch.float64)
    torch.testing.assert_close(inclusion, exact, rtol=1e-9, atol=1e-12)
    assert inclusion.sum().item() == pytest.approx(batch_size, rel=1e-9)
    assert (inclusion > 0).all()
    assert (inclusion <= 1).all()


@pytest.mark.parametrize(
    ("probs", "batch_size", "expected"),
    [
        pytest.param([0.25] * 4, 2, [0.5] * 4, id="even"),
        pytest.param([0.7, 0.1, 0.1, 0.1], 2, [1, 1 / 3, 1 / 3, 1 / 3], id="one-caps"),
        # Once the first is certain, the second exceeds 1 in its turn.
        pytest.param([0.80, 0.14, 0.03, 0.03], 3, [1, 1, 0.5, 0.5], id="cascade"),
        pytest.param([0.0, 1.0, 0.0], 2, [0.5, 1, 0.5], id="fewer-positive-than-b"),
        pytest.param([0.6, 0.4, 0.0], 2, [1, 1, 0], id="just-b-positive"),
        pytest.param([0.9, 0.1, 0.0], 3, [1, 1, 1], id="everybody"),
    ],
)
def test_capped_inclusion_has_its_known_values(probs, batch_size, expected):
    inclusion = capped_inclusion(torch.tensor(probs), batch_size)
    assert inclusion.tolist() == pytest.approx(expected, abs=1e-6)


def test_capped_inclusion_keeps_its_sum_over_a_large_uneven_presample():
    probs = normalise(lognormal(5000, sigma=4.0))
    inclusion = capped_inclusion(probs, 1000)
    assert inclusion.sum().item() == pytest.approx(1000, rel=1e-12)
    assert (inclusion == 1).sum() > 100


@pytest.mark.parametrize("batch_size", [-1, 0, 5])
@pytest.mark.parametrize(
    "entrance",
    [
        pytest.param(lambda b: check_batch_size(b, 4), id="check"),
        pytest.param(lambda b: capped_inclusion(torch.ones(4) / 4, b), id="capped"),
    ],
)
def test_a_batch_must_fit_its_presample(entrance, batch_size):
    rule = rf"between 1 and the 4 candidates, got {batch_size}\. Draw fewer"
    with pytest.raises(ValueError, match=rule):
        entrance(batch_size)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_may_be_one_example_or_all(batch_size):
    assert check_batch_size(batch_size, 4) is None


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        pytest.param([0.5, 0.4], r"sum 0\.9 over 2 candidates", id="short-sum"),
        pytest.param([0.5, 0.501], r"sum 1\.001 over 2", id="long-sum"),
        pytest.param([1.5, -0.5], r"minimum -0\.5", id="negative"),
        pytest.param([NAN, 1.0], r"minimum nan .* Normalise", id="nan"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_numbers(probs, message):
    with pytest.raises(ValueError, match=message):
        check_probs(torch.tensor(probs))


@pytest.mark.parametrize("probs", [[0.5, 0.5], [0.0, 1.0], [0.5, 0.50005]])
def test_rounding_does_not_spoil_a_distribution(probs):
    assert check_probs(torch.tensor(probs)) is None
