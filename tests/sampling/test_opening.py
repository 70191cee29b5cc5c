"""When gates open, asked of copies: each rule in closed form."""

import copy

import pytest

from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    ConstantTime,
    ConstantVariance,
    EfficiencyGate,
    Evidence,
    Gate,
    NeverOpen,
    Sizes,
    TauGate,
    Warmup,
    Window,
)
from lightning_is.sampling.opening import Gatekeeper, Opening
from lightning_is.sampling.prospects import Ordinary, Prospect

B, b = 128, 32
MARGIN = 1.05  # of gates that choose by costs


def prospects(*sizes, score=12.0, forth_and_back=40.0):
    plain = Ordinary(Sizes(B, B), forth_and_back)
    return [
        Prospect(plain, Sizes(B, size), score, forth_and_back * size / B)
        for size in sizes
    ]


def opening(gate, *sizes, **costs):
    return Gatekeeper(gate, B, b, prospects(*(sizes or (b,)), **costs)).opening()


@pytest.mark.parametrize(
    ("gate", "above"),
    [
        (TauGate(1.5), 1.5),
        (TauGate("auto"), (B + 3 * b) / (3 * b)),
        (ConstantVariance(), 1 / (2 / 3 - 0.2)),
        (ConstantTime(threshold=2.5), 2.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gates_that_go_by_tau(gate, above):
    found, _ = opening(gate)
    assert found.measure == "is/tau"
    assert found.above == pytest.approx(above, rel=1e-4)


@pytest.mark.parametrize(
    "gate",
    [AlwaysOpen(), Warmup(100), Window(start=0.9), Window(warmup=3.0)],
    ids=lambda gate: type(gate).__name__,
)
def test_gates_that_open_by_themselves(gate):
    assert opening(gate)[0] == Opening("nothing")


def test_a_gate_that_never_opens():
    assert opening(NeverOpen())[0] == Opening("never")


def test_measured_costs_say_when_to_open():
    found, (told,) = opening(EfficiencyGate())
    assert found == Opening("is/effective_batch")
    expected = MARGIN * (12.0 + 10.0) / 40.0 * B / b
    assert told.opens_above == pytest.approx(expected, rel=1e-4)


def test_assumed_costs_say_when_to_open():
    _, (told,) = opening(EfficiencyGate("assumed", margin=0.2))
    assert told.opens_above == pytest.approx(1.2 * (B + 3 * b) / (3 * b), rel=1e-4)


def test_no_scores_open_a_gate_where_scoring_costs_too_much():
    found, told = opening(EfficiencyGate(), score=31.0)  # and 10 to train: above 40
    assert found == Opening("never")
    assert told[0].opens_above is None


def test_each_size_opens_by_itself_where_the_gate_chooses():
    found, told = opening(AdaptiveSize(), 16, 32, 64, score=19.0)
    assert found == Opening("is/effective_batch")
    for prospect, size in zip(told[:2], (16, 32), strict=True):
        expected = MARGIN * (19.0 + 40.0 * size / B) / 40.0 * B / size
        assert prospect.opens_above == pytest.approx(expected, rel=1e-4)
    assert told[2].opens_above is None  # 39 of 40, and a margin


def test_a_gate_of_ones_own_may_ask_for_both():
    class Both(Gate):
        is_open = False

        def observe(self, evidence):
            self.is_open = evidence.tau > 2 and evidence.effective_batch > 2

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    assert opening(Both())[0] == Opening("both")


@pytest.mark.parametrize(
    ("gate", "sizes"),
    [
        (EfficiencyGate(), [(B, b)]),
        (AdaptiveSize(), [(B, 16), (B, 32), (B, 64)]),
        (ConstantVariance(), [(B, 48)]),  # (1 / sqrt(128) + 0.2) * 128 is 36.9
    ],
    ids=lambda value: type(value).__name__,
)
def test_sizes_are_those_of_the_most_uneven_scores(gate, sizes):
    assert Gatekeeper(gate, B, b).sizes() == sizes


def test_presamples_are_those_of_the_most_uneven_scores():
    (found,) = Gatekeeper(ConstantTime(), 640, 128).sizes()
    gate = ConstantTime(smoothing=0.0)
    gate.observe(Evidence(640**0.5, 1.0, 640, 128))
    assert found == gate.sizes(640, 128)


@pytest.mark.parametrize(
    "gate",
    [TauGate(1.5), EfficiencyGate(), Window()],
    ids=lambda gate: type(gate).__name__,
)
def test_the_gate_itself_is_told_nothing(gate):
    before = copy.deepcopy(vars(gate)), gate.state_dict()
    opening(gate)
    assert gate.state_dict() == before[1]
    assert vars(gate).keys() == before[0].keys()
