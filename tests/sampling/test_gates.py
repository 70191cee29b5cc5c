"""A gate opens on evidence alone, closes again on evidence, and resumes exactly."""

import io
from itertools import pairwise, permutations

import pytest
import torch

from lightning_is.sampling import efficiency, gates
from lightning_is.sampling.efficiency import AdaptiveSize, EfficiencyGate
from lightning_is.sampling.gate import Evidence, Gate
from lightning_is.sampling.gates import (
    AlwaysOpen,
    NeverOpen,
    TauGate,
    Warmup,
)

MEMBERS = [  # a new gate joins here, as a function that makes one
    pytest.param(AlwaysOpen, id="always"),
    pytest.param(NeverOpen, id="never"),
    pytest.param(lambda: Warmup(steps=3), id="warmup"),
    pytest.param(lambda: TauGate(smoothing=0.5), id="tau-auto"),
    pytest.param(lambda: TauGate(1.6, smoothing=0.5), id="tau"),
    pytest.param(lambda: EfficiencyGate("assumed", smoothing=0.5), id="efficiency"),
    pytest.param(lambda: AdaptiveSize(costs="assumed", smoothing=0.5), id="adaptive"),
]
FIRST_STEP_ABOVE = [  # of tau, constant from the first step: 0.9 ** t decides
    pytest.param(1.6, 1.5, 27, id="1.6-over-1.5"),
    pytest.param(2.0, 1.5, 14, id="2-over-1.5"),
    pytest.param(2.5, 1.5, 9, id="2.5-over-1.5"),
    pytest.param(2.5, 2.0, 16, id="2.5-over-2"),
    pytest.param(2.5, 7 / 3, 26, id="2.5-over-2.33"),
]


def evidence(
    tau: float = 1.0,
    gain: float = 1.0,
    presample_size: int = 128,
    batch_size: int = 32,
) -> Evidence:
    gains = (1.2 * gain, gain, 0.7 * gain)
    return Evidence(tau, gain, presample_size, batch_size, gains=gains)


def history(steps: int) -> list[Evidence]:
    """Evidence that wanders across every threshold used here."""
    generator = torch.Generator().manual_seed(0)
    values = 1 + 4 * torch.rand(steps, 2, generator=generator)
    return [
        evidence(tau, gain, presample_size=64 * (2 + step % 3))
        for step, (tau, gain) in enumerate(values.tolist())
    ]


def steps_until_open(gate: Gate, seen: Evidence, most: int = 100) -> int:
    for step in range(most):
        if gate.is_open:
            return step
        gate.observe(seen)
    return most


def through_a_checkpoint(state: dict[str, float]) -> dict[str, float]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_gate_is_listed_here():
    written = {
        found
        for found in [*vars(gates).values(), *vars(efficiency).values()]
        if isinstance(found, type)
        and issubclass(found, Gate)
        and not found.__name__.startswith("_")
        and found is not Gate
    }
    assert written == {type(param.values[0]()) for param in MEMBERS}


@pytest.mark.parametrize("make", MEMBERS)
def test_asking_a_gate_changes_nothing(make):
    gate = make()
    for seen in history(6):
        before = gate.state_dict()
        assert gate.is_open == gate.is_open
        assert gate.state_dict() == before
        gate.observe(seen)


@pytest.mark.parametrize("make", MEMBERS)
@pytest.mark.parametrize("stop", [0, 1, 2, 7])
def test_a_resumed_gate_decides_as_if_it_had_never_stopped(make, stop):
    whole, first, second = make(), make(), make()
    for seen in history(20)[:stop]:
        whole.observe(seen)
        first.observe(seen)
    second.load_state_dict(through_a_checkpoint(first.state_dict()))
    decisions = []
    for seen in history(20)[stop:]:
        assert second.is_open == whole.is_open
        assert second.state_dict() == whole.state_dict()
        whole.observe(seen)
        second.observe(seen)
        decisions.append(whole.is_open)
    assert isinstance(make(), (AlwaysOpen, NeverOpen)) or any(decisions)


@pytest.mark.parametrize("make", MEMBERS)
def test_a_state_holds_plain_numbers(make):
    gate = make()
    gate.observe(evidence())
    assert all(type(value) in {int, float} for value in gate.state_dict().values())


@pytest.mark.parametrize(
    ("make", "other"),
    [
        pytest.param(*pair, id=f"{other}-into-{one}")
        for (one, other), pair in (
            ((a.id, b.id), (a.values[0], b.values[0]))
            for a, b in permutations(MEMBERS, 2)
        )
        # Two that hold no state, or the same kind twice, may well be swapped.
        if not {one, other} <= {"always", "never"}
        and not {one, other} <= {"tau", "tau-auto"}
    ],
)
def test_the_state_of_another_gate_is_refused(make, other):
    gate, foreign = make(), other().state_dict()
    before = gate.state_dict()
    with pytest.raises(ValueError, match="written with another gate") as caught:
        gate.load_state_dict(foreign)
    assert str(caught.value).startswith(type(gate).__name__)
    assert f"got {sorted(foreign)}" in str(caught.value)
    assert f"keys {sorted(before)}" in str(caught.value)
    assert gate.state_dict() == before


@pytest.mark.parametrize(
    ("gate", "answer"), [(AlwaysOpen(), True), (NeverOpen(), False)]
)
def test_a_stateless_gate_never_changes_its_mind(gate, answer):
    for seen in history(5):
        assert gate.is_open is answer
        gate.observe(seen)
    assert gate.is_open is answer


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_warmup_opens_after_its_steps_and_stays_open(steps):
    gate = Warmup(steps)
    assert steps_until_open(gate, evidence()) == steps
    for _ in range(3):
        gate.observe(evidence())
        assert gate.is_open


@pytest.mark.parametrize(
    ("presample_size", "batch_size", "expected"),
    [(640, 128, 2.6667), (48, 16, 2.0), (128, 32, 2.3333)],
)
def test_the_break_even_is_the_one_of_the_paper(presample_size, batch_size, expected):
    seen = evidence(presample_size=presample_size, batch_size=batch_size)
    assert seen.break_even() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("backward_cost", [0.5, 1.0, 2.0, 3.0])
def test_at_the_break_even_precision_per_cost_is_that_of_a_uniform_step(backward_cost):
    seen = evidence(presample_size=640, batch_size=128)
    uniform_step = (1 + backward_cost) * 128
    open_step = 640 + uniform_step
    gain = seen.break_even(backward_cost)
    assert gain / open_step == pytest.approx(1 / uniform_step)


@pytest.mark.parametrize(("tau", "threshold", "step"), FIRST_STEP_ABOVE)
def test_tau_gate_opens_at_the_known_step(tau, threshold, step):
    assert steps_until_open(TauGate(threshold), evidence(tau)) == step


@pytest.mark.parametrize(
    ("tau", "sizes", "step"),
    [
        pytest.param(2.5, (48, 16), 16, id="48-of-16"),
        pytest.param(2.5, (128, 32), 26, id="128-of-32"),
    ],
)
def test_tau_gate_takes_the_break_even_as_its_threshold(tau, sizes, step):
    assert steps_until_open(TauGate(), evidence(tau, 1.0, *sizes)) == step


def test_tau_gate_moves_its_own_threshold_with_the_sizes_of_the_step():
    gate = TauGate(smoothing=0.0)
    gate.observe(evidence(2.5, presample_size=48, batch_size=16))  # break-even 2
    assert gate.is_open
    gate.observe(evidence(2.5, presample_size=96, batch_size=16))  # break-even 3
    assert not gate.is_open


def test_tau_gate_keeps_a_threshold_given_as_a_number():
    gate = TauGate(2.2, smoothing=0.0)
    gate.observe(evidence(2.5, presample_size=640, batch_size=16))
    assert gate.is_open


def test_a_checkpoint_does_not_override_a_threshold_given_as_a_number():
    strict, lenient = TauGate(3.0, smoothing=0.0), TauGate(2.0, smoothing=0.0)
    strict.observe(evidence(2.5))
    lenient.load_state_dict(strict.state_dict())
    assert lenient.is_open
    assert not strict.is_open


def test_tau_gate_is_closed_at_the_threshold_itself():
    gate = TauGate(2.0, smoothing=0.0)
    gate.observe(evidence(2.0))
    assert gate.tau == 2
    assert not gate.is_open
    gate.observe(evidence(2.0 + 1e-9))
    assert gate.is_open


def test_tau_gate_averages_in_both_phases_and_closes_again():
    gate, expected = TauGate(1.5, smoothing=0.8), 0.0
    decisions = []
    for tau in [3.0] * 8 + [1.0] * 8 + [3.0] * 8:
        gate.observe(evidence(tau))
        expected = 0.8 * expected + 0.2 * tau
        assert gate.tau == pytest.approx(expected)
        decisions.append(gate.is_open)
    switches = sum(a != b for a, b in pairwise(decisions))
    assert switches == 3  # opens, closes, opens again


def test_tau_gate_starts_closed_at_tau_zero():
    assert TauGate(1.0).tau == 0
    assert not TauGate(1.0).is_open
    assert not TauGate().is_open


def test_tau_gate_looks_at_tau_and_efficiency_gate_at_the_gain():
    by_tau, by_gain = TauGate(1.5, smoothing=0.0), EfficiencyGate(smoothing=0.0)
    for gate in (by_tau, by_gain):
        gate.observe(evidence(tau=9.0, gain=1.0))
    assert (by_tau.is_open, by_gain.is_open) == (True, False)
    for gate in (by_tau, by_gain):
        gate.observe(evidence(tau=1.0, gain=9.0))
    assert (by_tau.is_open, by_gain.is_open) == (False, True)


@pytest.mark.parametrize(("gain", "threshold", "step"), FIRST_STEP_ABOVE[3:])
def test_efficiency_gate_averages_as_the_paper_averages_tau(gain, threshold, step):
    sizes = {2.0: (48, 16), 7 / 3: (128, 32)}[threshold]
    gate = EfficiencyGate(smoothing=0.9, margin=0.0)
    assert steps_until_open(gate, evidence(1.0, gain, *sizes)) == step


@pytest.mark.parametrize("gate", [TauGate(), EfficiencyGate()])
def test_equal_scores_never_open_a_gate(gate):
    assert steps_until_open(gate, evidence(tau=1.0, gain=1.0), most=200) == 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: Warmup(-1),
            r"`steps` must be at least 0, got -1\. Use 0",
            id="steps",
        ),
        pytest.param(
            lambda: TauGate(0.99),
            r'`threshold` must be "auto" or .* at least 1, got 0\.99\. The paper',
            id="low-threshold",
        ),
        pytest.param(
            lambda: TauGate("often"), "`threshold` must .* got 'often'", id="word"
        ),
        pytest.param(
            lambda: TauGate(float("nan")), "`threshold` must .* got nan", id="nan"
        ),
        pytest.param(
            lambda: EfficiencyGate(backward_cost=0.0),
            r"`backward_cost` must be a number above 0, got 0\.0\. 2 forward",
            id="free-backward",
        ),
        pytest.param(
            lambda: EfficiencyGate(backward_cost=float("nan")),
            "`backward_cost` must be a number above 0, got nan",
            id="nan-cost",
        ),
    ],
)
def test_a_setting_without_a_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("gate", [TauGate, EfficiencyGate])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_never_settles_is_refused(gate, smoothing):
    rule = rf"`smoothing` must be in \[0, 1\), got {smoothing}\. The paper uses 0\.9"
    with pytest.raises(ValueError, match=rule):
        gate(smoothing=smoothing)
