"""What is chosen buys most for its cost, as it was assumed or as it was measured."""

from itertools import pairwise

import pytest
import torch

from lightning_is.sampling.chooser import check_settings
from lightning_is.sampling.costs import Timing
from lightning_is.sampling.efficiency import AdaptiveSize, EfficiencyGate
from lightning_is.sampling.gate import Evidence, Sizes

B, MENU = 128, (16, 32, 64)
FLAT, STEEP = (1.0, 1.0, 1.0), (6.0, 3.6, 1.95)


def evidence(gains, timings=(), **settings):
    """Evidence of four steps of a batch of 128, of which 32 are asked for."""
    settings = {"steps": 4, "ordinary": Sizes(B, B)} | settings
    return Evidence(2.0, gains[1], B, 32, gains=gains, timings=timings, **settings)


class Machine:
    """A clock that runs as fast as it is told; it times what a gate lets it do."""

    def __init__(self, score, steps, wait=0.0, pace=None, noise=0.0):
        self.score, self.steps, self.wait, self.pace = score, steps, wait, pace
        self.noise, self.random = noise, torch.Generator().manual_seed(0)
        self.sizes = []

    def run(self, gate, gains, looks=60):
        for _ in range(looks):
            timings = tuple(self.step(gate) for _ in range(gate.interval))
            gate.observe(evidence(gains, timings))
        return gate

    def step(self, gate):
        size = gate.sizes(B, 32).batch if gate.is_open else B
        self.sizes.append(size)
        jitter = 1 + self.noise * torch.randn((), generator=self.random).item()
        step = self.steps[size] * jitter
        score = self.score * jitter if gate.is_open else 0.0
        wait = self.wait
        if self.pace is not None:
            wait = max(0.0, self.pace - score - step)
        return Timing(B, size, wait, score, step, self.pace is not None)

    def worth(self, gains, size):
        """Examples of a uniform batch per cost, in ordinary steps: by hand."""
        if size == B:
            return 1.0
        cycle, ordinary = self.score + self.steps[size], self.steps[B]
        if self.pace is None:
            cycle, ordinary = cycle + self.wait, ordinary + self.wait
        else:
            cycle, ordinary = max(cycle, self.pace), max(ordinary, self.pace)
        return gains[MENU.index(size)] * size / B / (cycle / ordinary)

    def best(self, gains):
        return max((*MENU, B), key=lambda size: self.worth(gains, size))


def linear(score, fixed=0.0):
    """A machine on which a step of 128 takes 1, scoring them ``score`` of it."""
    steps = {size: fixed + (1 - fixed) * size / B for size in (*MENU, B)}
    return {"score": score, "steps": steps}


MACHINES = [
    pytest.param(linear(1 / 3), id="arithmetic"),
    pytest.param(linear(0.15), id="cheap-forward"),
    pytest.param(linear(0.6), id="dear-forward"),
    pytest.param(linear(0.95), id="frozen-backbone"),
    pytest.param(linear(1 / 3, fixed=0.3), id="overheads"),
    pytest.param(linear(0.2) | {"wait": 3.0}, id="loads-in-turn"),
    pytest.param(linear(0.2) | {"pace": 0.7}, id="loads-beside"),
    pytest.param(linear(0.2) | {"pace": 2.0}, id="loader-bound"),
]
GAINS = [
    pytest.param(FLAT, id="flat"),
    pytest.param((2.0, 1.8, 1.4), id="mild"),
    pytest.param((4.5, 3.0, 1.8), id="uneven"),
    pytest.param(STEEP, id="steep"),
]


@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize("machine", MACHINES)
def test_on_every_machine_the_choice_is_the_one_worth_most(machine, gains):
    machine = Machine(**machine)
    gate = machine.run(AdaptiveSize(), gains, looks=150)
    chosen = gate.sizes(B, B).batch if gate.is_open else B
    best = machine.worth(gains, machine.best(gains))
    assert machine.worth(gains, chosen) >= best / 1.06  # but for the margin
    assert machine.sizes[-200:].count(chosen) > 180  # and it stays, but for trials


@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_gate_of_one_size_opens_where_that_is_worth_it(machine, gains):
    machine = Machine(**machine)
    gate = machine.run(EfficiencyGate(), gains)
    worth = machine.worth(gains, 32)
    assert gate.is_open == (worth > 1) or 1 <= worth < 1.06  # within the margin


@pytest.mark.parametrize("machine", MACHINES)
def test_flat_scores_are_never_tried_out(machine):
    machine = Machine(**machine)
    machine.run(AdaptiveSize(), FLAT, looks=600)
    assert set(machine.sizes) == {B}


def test_trials_are_few_where_they_show_no_gain():
    machine = Machine(**linear(0.95))
    machine.run(AdaptiveSize(), STEEP, looks=2000)
    tried = sum(size != B for size in machine.sizes)
    assert 0 < tried < 0.02 * len(machine.sizes)


def test_noise_in_gains_and_times_does_not_make_it_chatter():
    machine, gate = Machine(**linear(0.36), noise=0.1), AdaptiveSize()
    random = torch.Generator().manual_seed(0)
    for _ in range(400):
        noise = (1 + 0.1 * torch.randn(3, generator=random)).tolist()
        gains = tuple(g * n for g, n in zip((4.5, 2.9, 1.8), noise, strict=True))
        machine.run(gate, gains, looks=1)
    late = machine.sizes[400:]
    assert sum(a != b for a, b in pairwise(late)) < 0.02 * len(late)


def test_a_backbone_that_thaws_is_noticed():
    machine, gate = Machine(**linear(0.95)), AdaptiveSize()
    machine.run(gate, STEEP, looks=100)
    assert not gate.is_open
    machine.score = 0.3
    machine.run(gate, STEEP, looks=600)
    assert gate.is_open


def test_an_open_gate_measures_ordinary_steps_again():
    machine, gate = Machine(**linear(0.2)), AdaptiveSize()
    machine.run(gate, STEEP, looks=100)
    assert gate.is_open
    machine.steps[B] = 0.3  # they have become cheaper than scoring and a part
    machine.run(gate, STEEP, looks=700)
    assert not gate.is_open


@pytest.mark.parametrize(
    ("backward_cost", "break_even"), [(1.0, 3.0), (2.0, 7 / 3), (3.0, 2.0)]
)
def test_with_assumed_costs_the_break_even_is_that_of_the_arithmetic(
    backward_cost, break_even
):
    gate = EfficiencyGate("assumed", backward_cost, smoothing=0.0, margin=0.0)
    for gain, expected in [
        (break_even - 1e-9, False),
        (break_even + 1e-9, True),
        (break_even - 1e-9, False),
    ]:
        gate.observe(evidence((1.0, gain, 1.0)))
        assert gate.is_open is expected


def test_assumed_costs_listen_to_no_clock():
    machine = Machine(**linear(0.95))
    gate = machine.run(EfficiencyGate("assumed"), STEEP)
    assert gate.is_open
    assert not gate.is_timed


def test_the_margin_holds_both_ways():
    gate = EfficiencyGate("assumed", smoothing=0.0, margin=0.1)
    for gain, expected in [
        (7 / 3 * 1.09, False),
        (7 / 3 * 1.11, True),
        (7 / 3 * 0.95, True),
        (7 / 3 * 0.90, False),
    ]:
        gate.observe(evidence((1.0, gain, 1.0)))
        assert gate.is_open is expected


def test_a_step_follows_the_sizes_that_loader_and_user_have():
    gate = EfficiencyGate("assumed", smoothing=0.0)
    gate.observe(Evidence(1.0, 2.5, 48, 16))  # break-even 2
    assert gate.is_open
    gate.observe(Evidence(1.0, 2.5, 96, 16))  # break-even 3
    assert not gate.is_open


def test_a_presample_is_paid_for_by_what_an_ordinary_step_would_have_been():
    """Algorithm 1 loads and trains on 128 while closed, and on 640 while open."""
    gate = EfficiencyGate("assumed", smoothing=0.0)
    for gain, expected in [(2.6, False), (2.9, True)]:  # break-even 8 / 3, and margin
        gate.observe(Evidence(1.0, gain, 640, 128, ordinary=Sizes(128, 128)))
        assert gate.is_open is expected


@pytest.mark.parametrize(
    ("gains", "epsilon", "expected"),
    [
        ((4.0, 3.2, 1.9), 0.1, 64),  # 1 / 0.95: five per cent more noise
        ((4.0, 3.2, 1.9), 0.3, 32),  # 1 / 0.8
        ((4.0, 3.2, 1.9), 1.5, 16),  # 1 / 0.5
        ((4.0, 3.2, 1.9), 0.01, B),
    ],
)
def test_the_smallest_size_with_so_much_noise_and_no_more(gains, epsilon, expected):
    gate = AdaptiveSize(costs="assumed", smoothing=0.0, margin=0.0, epsilon=epsilon)
    gate.observe(evidence(gains))
    assert (gate.sizes(B, B).batch if gate.is_open else B) == expected


def test_a_size_precise_enough_but_no_cheaper_is_not_taken():
    machine = Machine(**linear(0.95))
    gate = machine.run(AdaptiveSize(epsilon=0.5), STEEP)
    assert not gate.is_open


@pytest.mark.parametrize("loaded", [1, 2, 3, 100, 128])
def test_sizes_are_shares_of_what_is_loaded_and_at_least_two(loaded):
    gate = AdaptiveSize()
    sizes = gate.candidates(loaded, loaded)
    least = min(2, loaded)
    assert sizes == tuple(max(least, round(share * loaded)) for share in gate.shares)
    assert gate.sizes(loaded, loaded).batch in sizes


def test_costs_and_shares_are_told_to_the_loggers():
    gate = AdaptiveSize(costs="assumed", smoothing=0.0)
    assert gate.metrics() == {"is/cost": 1.0, "is/share": 1.0}
    gate.observe(evidence((1.0, 3.6, 1.9)))
    assert gate.metrics() == {
        "is/cost": pytest.approx((128 + 96) / 384),
        "is/share": 0.25,
    }


def test_the_choice_and_its_cost_survive():
    gate, again = (AdaptiveSize(costs="assumed", smoothing=0.0) for _ in range(2))
    gate.observe(evidence((1.0, 3.6, 1.9)))
    again.load_state_dict(gate.state_dict())
    assert again.metrics() == gate.metrics()
    assert again.state_dict() == gate.state_dict()


def test_the_state_of_another_menu_is_refused():
    state = AdaptiveSize((1 / 8, 1 / 4)).state_dict()
    with pytest.raises(ValueError, match=r"keys .*gain_0\.125.*got .*another gate"):
        AdaptiveSize((1 / 8, 1 / 2)).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"menu": ()}, "`menu` must hold rising shares"),
        ({"menu": (0.5, 0.25)}, "`menu` must hold rising shares"),
        ({"menu": (0.0, 0.5)}, "`menu` must hold rising shares"),
        ({"menu": (0.5, 1.0)}, "`menu` must hold rising shares"),
        ({"margin": -0.1}, "`margin` must be a number of at least 0"),
        ({"epsilon": float("nan")}, "`epsilon` must be a number of at least 0"),
        ({"backward_cost": 0.0}, "`backward_cost` must be a number above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSize(**settings)


def test_costs_are_measured_or_assumed():
    with pytest.raises(ValueError, match='`costs` must be "measured" or "assumed"'):
        check_settings("guessed", 2.0, 0.1, None)
