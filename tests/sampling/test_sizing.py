"""Gates keep the variance, the time of a step, or to their window, as promised."""

import io
from itertools import permutations, product

import pytest
import torch

from lightning_is.sampling import sizing, window
from lightning_is.sampling.gate import Average, Evidence, Gate
from lightning_is.sampling.sizing import (
    ConstantTime,
    ConstantVariance,
    constant_time_sizes,
)
from lightning_is.sampling.window import Window

INF = float("inf")
MEMBERS = [  # a new gate joins here, as a function that makes one
    pytest.param(lambda: ConstantVariance(smoothing=0.5), id="variance"),
    pytest.param(lambda: ConstantTime(smoothing=0.5), id="time"),
    pytest.param(lambda: Window(0.1, 0.9, interrupt=2, warmup=0.5), id="window"),
]
TAUS = [0.0, 0.5, 1.0, 1.3, 2.0, 2.2, 3.0, 5.0, 11.0, 25.0]


def evidence(tau: float = 1.0, progress: float = 0.0, epochs: float = 0.0) -> Evidence:
    return Evidence(tau, 1.0, 128, 32, 1, progress, epochs)


def history(steps: int) -> list[Evidence]:
    """Evidence that wanders across every threshold used here."""
    taus = 1 + 4 * torch.rand(steps, generator=torch.Generator().manual_seed(0))
    return [
        evidence(tau, step / steps, 3 * step / steps)
        for step, tau in enumerate(taus.tolist())
    ]


def told(gate: Gate, tau: float) -> Gate:
    gate.observe(evidence(tau))
    return gate


def test_every_gate_is_listed_here():
    written = {
        found
        for module in (sizing, window)
        for found in vars(module).values()
        if isinstance(found, type)
        and found.__module__ == module.__name__
        and issubclass(found, Gate)
    }
    assert written == {type(param.values[0]()) for param in MEMBERS}


@pytest.mark.parametrize("make", MEMBERS)
def test_asking_a_gate_changes_nothing(make):
    gate = make()
    for seen in history(20):
        before = gate.state_dict()
        assert gate.is_open == gate.is_open
        assert gate.sizes(640, 128) == gate.sizes(640, 128)
        assert gate.state_dict() == before
        gate.observe(seen)


@pytest.mark.parametrize("make", MEMBERS)
@pytest.mark.parametrize("stop", [0, 1, 2, 7, 14])
def test_a_resumed_gate_decides_as_if_it_had_never_stopped(make, stop):
    whole, first, second = make(), make(), make()
    for seen in history(30)[:stop]:
        whole.observe(seen)
        first.observe(seen)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    decisions = set()
    for seen in history(30)[stop:]:
        assert second.is_open == whole.is_open
        assert second.sizes(640, 128) == whole.sizes(640, 128)
        assert second.state_dict() == whole.state_dict()
        whole.observe(seen)
        second.observe(seen)
        decisions.add(whole.is_open)
    assert decisions == {True, False}


@pytest.mark.parametrize("make", MEMBERS)
def test_a_state_holds_plain_numbers(make):
    gate = told(make(), 2.0)
    assert all(type(value) in {int, float} for value in gate.state_dict().values())


@pytest.mark.parametrize(
    ("make", "other"), list(permutations([param.values[0] for param in MEMBERS], 2))
)
def test_the_state_of_another_gate_is_refused(make, other):
    gate = make()
    with pytest.raises(ValueError, match="written with another gate"):
        gate.load_state_dict(other().state_dict())


@pytest.mark.parametrize("make", [ConstantVariance, ConstantTime])
def test_sizing_gates_average_tau_from_zero_and_open_strictly_above(make):
    gate, threshold = make(), {ConstantVariance: 1 / (2 / 3 - 0.2), ConstantTime: 2.0}
    opened = next(t for t in range(60) if told(gate, 2.5).is_open)
    averages = [2.5 * (1 - 0.9 ** (t + 1)) for t in range(60)]
    expected = next(t for t in range(60) if averages[t] > threshold[make])
    assert opened == expected
    exact = make(smoothing=0.0)
    assert not exact.is_open
    assert told(exact, threshold[make] + 1e-9).is_open
    assert not told(exact, threshold[make] - 1e-9).is_open
    many = make()
    many.observe(Evidence(2.5, 1.0, 128, 32, steps=60))
    assert many.is_open  # as many steps as the evidence stands for


def test_time_gate_is_closed_at_the_threshold_itself():
    assert not told(ConstantTime(threshold=3.0, smoothing=0.0), 3.0).is_open


@pytest.mark.parametrize(
    ("cost", "extra", "threshold"),
    [(2.0, 0.2, 2.143), (1.0, 0.0, 2.0), (2.0, 0.0, 1.5)],
)
def test_variance_gate_opens_where_scoring_all_and_training_on_a_part_is_cheaper(
    cost, extra, threshold
):
    gate = ConstantVariance(cost, extra, smoothing=0.0)
    assert not told(gate, threshold - 1e-3).is_open
    assert told(gate, threshold + 1e-3).is_open
    share = 1 / threshold + extra
    assert 1 + (1 + cost) * share == pytest.approx(1 + cost, rel=1e-3)


@pytest.mark.parametrize("size", [1, 5, 50, 128, 640])
@pytest.mark.parametrize("tau", TAUS)
def test_variance_gate_rounds_the_share_of_tau_up_to_the_menu(size, tau):
    gate = told(ConstantVariance(smoothing=0.0), tau)
    presample, batch = gate.sizes(size, 7)
    share = 1.0 if tau < 1 else min(1 / tau + 0.2, 1.0)
    assert presample == size
    assert max(1, int(share * size)) <= batch <= size
    assert batch <= share * size + size / 8 + 1  # no more than rounding asks for
    assert batch in {-(-place * size // 8) for place in range(1, 9)}


def test_variance_gate_gives_the_sizes_of_the_authors_before_rounding():
    gate = told(ConstantVariance(smoothing=0.0, menu=100), 4.0)
    assert gate.sizes(100, 1).batch == int((1 / 4 + 0.2) * 100)


def test_variance_gate_trains_on_everything_before_any_evidence():
    assert ConstantVariance().sizes(64, 64) == (64, 64)


def test_only_a_gate_that_needs_no_presample_asks_for_part_of_any_batch():
    assert ConstantVariance.chooses_size
    assert not ConstantTime.chooses_size
    assert not Window.chooses_size


def test_the_sizes_of_constant_time_are_those_of_the_authors():
    presample, batch = constant_time_sizes(5.0, 128)
    assert (presample, batch) == (217, 55)
    assert presample + 3 * batch <= 384


@pytest.mark.parametrize(
    ("tau", "cost", "extra", "expected"),
    [
        pytest.param(2.5, 2.0, 0.2, (179, 68), id="tau-decides"),
        pytest.param(5.0, 1.0, 0.2, (166, 45), id="cheap-backward"),
        pytest.param(9.0, 2.0, 0.4, (179, 68), id="extra-decides"),
        pytest.param(1.0, 2.0, 0.2, (128, 85), id="nothing-to-gain"),
        pytest.param(0.0, 2.0, 0.2, (128, 85), id="no-evidence"),
    ],
)
def test_constant_time_shares_what_the_budget_leaves(tau, cost, extra, expected):
    assert constant_time_sizes(tau, 128, cost, extra) == expected


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(("b", "cost"), list(product([16, 50, 128], [1.0, 2.0, 3.0])))
@pytest.mark.parametrize("most", [1.0, 1.3, 5.0])
def test_time_gate_never_exceeds_the_cost_of_an_ordinary_step(tau, b, cost, most):
    gate = told(ConstantTime(cost, smoothing=0.0), tau)
    loader = int(most * b)
    presample, batch = gate.sizes(loader, b)
    assert b <= presample <= loader
    assert 1 <= batch <= b
    assert presample + (1 + cost) * batch <= (1 + cost) * b
    menu = {place * b // 8 for place in range(1, 25)}
    assert {presample, batch} <= menu


def test_time_gate_asks_for_the_same_again_once_that_is_loaded():
    for tau in TAUS:
        gate = told(ConstantTime(smoothing=0.0), tau)
        wanted = gate.sizes(640, 128)
        assert gate.sizes(wanted.presample, 128) == wanted


def test_time_gate_trains_more_on_what_rounding_the_presample_saved():
    gate = told(ConstantTime(smoothing=0.0, menu=4), 5.0)
    # 217 becomes 192; (384 - 192) / 3 is 64, a place of the menu, where 55 is none.
    assert gate.sizes(640, 128) == (192, 64)


def test_time_gate_handles_a_last_batch_smaller_than_asked_for():
    presample, batch = told(ConstantTime(smoothing=0.0), 5.0).sizes(50, 128)
    assert presample == 50
    assert 1 <= batch <= 33  # (150 - 50) / 3


def test_a_menu_too_coarse_for_the_budget_is_left():
    gate = told(ConstantTime(smoothing=0.0, extra=0.0, menu=1), 25.0)
    presample, batch = gate.sizes(640, 128)
    assert (presample, batch) == (128, 85)
    assert told(ConstantTime(smoothing=0.0), 5.0).sizes(1, 1) == (1, 1)


@pytest.mark.parametrize(
    ("progress", "is_open"),
    [(0.0, 0), (0.49, 0), (0.5, 1), (0.89, 1), (0.9, 0), (1.0, 0)],
)
def test_a_window_is_open_from_its_start_until_before_its_end(progress, is_open):
    gate = Window(0.5, 0.9)
    gate.observe(evidence(progress=progress, epochs=5.0))
    assert gate.is_open is bool(is_open)


def test_a_window_waits_for_the_epochs_of_its_warmup():
    gate = Window(warmup=1.5)
    for epochs, is_open in [(0.0, False), (1.49, False), (1.5, True), (3.0, True)]:
        gate.observe(evidence(progress=0.1, epochs=epochs))
        assert gate.is_open is is_open


@pytest.mark.parametrize(
    ("start", "warmup", "is_open"),
    [(0.0, 0.0, True), (0.1, 0.0, False), (0.0, 0.5, False)],
)
def test_before_any_evidence_a_window_is_open_only_from_the_very_start(
    start, warmup, is_open
):
    assert Window(start, warmup=warmup).is_open is is_open


@pytest.mark.parametrize("interrupt", [0, 1, 2, 5])
def test_one_ordinary_batch_follows_after_as_many_selected_ones(interrupt):
    gate, decisions = Window(0.2, 0.8, interrupt=interrupt, warmup=0.0), []
    for step in range(100):
        gate.observe(evidence(progress=step / 100))
        decisions.append(gate.is_open)
    assert not any(decisions[:20])
    assert not any(decisions[80:])
    turns = [place % (interrupt + 1) < interrupt for place in range(60)]
    assert decisions[20:80] == (turns if interrupt else [True] * 60)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("make", [ConstantVariance, ConstantTime, Average])
def test_a_smoothing_that_never_settles_is_refused(make, smoothing):
    with pytest.raises(ValueError, match=rf"`smoothing` .* got {smoothing}\. The"):
        make(smoothing=smoothing)


@pytest.mark.parametrize("make", [ConstantVariance, ConstantTime])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"backward_cost": 0.0},
            r"`backward_cost` must be a number above 0, got 0\.0\. 2",
            id="free",
        ),
        pytest.param(
            {"backward_cost": float("nan")}, "`backward_cost` .*nan", id="nan"
        ),
        pytest.param({"backward_cost": INF}, "`backward_cost` .*inf", id="endless"),
        pytest.param(
            {"extra": 2 / 3},
            r"`extra` must be at least 0 and below 0\.667, .* got 0\.666.*\. 0\.2",
            id="no-gain",
        ),
        pytest.param({"extra": -0.1}, "`extra` .* got -0.1", id="negative"),
        pytest.param({"menu": 0}, "`menu` must be at least 1, got 0. 8", id="menu"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: ConstantTime(threshold=0.9),
            r"`threshold` must be a number of at least 1, got 0\.9\. Tau",
            id="threshold",
        ),
        pytest.param(
            lambda: Window(0.5, 0.5),
            r"0 <= start < end <= 1, got 0\.5 and 0\.5\. 0\.5 and",
            id="empty-window",
        ),
        pytest.param(lambda: Window(-0.1), "got -0.1 and 1.0", id="early"),
        pytest.param(lambda: Window(0.0, 1.1), "got 0.0 and 1.1", id="late"),
        pytest.param(
            lambda: Window(interrupt=-1),
            r"`interrupt` must be at least 0, got -1\. 2 lets",
            id="interrupt",
        ),
        pytest.param(
            lambda: Window(warmup=-1.0), "`warmup` .* got -1.0. 1 sees", id="warmup"
        ),
        pytest.param(
            lambda: Window(warmup=float("nan")), "`warmup` .* got nan", id="nan-warmup"
        ),
    ],
)
def test_a_window_or_threshold_without_a_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
