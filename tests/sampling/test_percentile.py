"""Whether an example is accepted depends on recent losses alone, and on chance."""

import io

import pytest
import torch

from lightning_is.sampling.percentile import LossPercentile, share_below
from lightning_is.sampling.selective import StaleSelection


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(acceptance: LossPercentile, loss: float, rounds: int = 1500) -> float:
    """How often a loss is accepted, by copies of the same history."""
    state, generator, hits = acceptance.state_dict(), seeded(), 0
    for _ in range(rounds):
        acceptance.load_state_dict(state)
        hits += int(acceptance.accept(torch.tensor([loss]), generator).item())
    return hits / rounds


def remembering(
    losses: list[float], history: int, beta: float = 1.0, floor: float = 0.0
) -> LossPercentile:
    acceptance = LossPercentile(beta=beta, history=history, floor=floor)
    for loss in losses:
        acceptance.accept(torch.tensor([loss]), seeded())
    return acceptance


@pytest.mark.parametrize(
    ("pushed", "below"),
    [([1.0, 2.0, 3.0, 4.0], 0.5), ([1.0, 2.0, 3.0, 4.0, 5.0], 0.25)],
)
def test_the_percentile_is_that_of_the_last_losses(pushed, below):
    kept = remembering(pushed, history=4).state_dict()["losses"]
    assert kept.tolist() == pushed[-4:]
    assert share_below(torch.tensor([3.0]), kept).item() == below


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0, 2.5, 9.0])
def test_only_what_lies_strictly_below_counts(value):
    ordered = torch.tensor([-1.0, 0.0, 2.0, 2.0, 2.0, 3.0])
    expected = sum(other < value for other in ordered.tolist()) / 6
    found = share_below(torch.tensor([value]), ordered).item()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "beta", "floor", "chance"),
    [
        pytest.param(3.0, 1.0, 0.0, 0.4, id="itself-among-five"),
        pytest.param(9.0, 1.0, 0.0, 0.8, id="highest"),
        pytest.param(3.0, 2.0, 0.0, 0.16, id="squared"),
        pytest.param(3.0, 2.0, 0.3, 0.3, id="floor"),
        pytest.param(0.0, 1.0, 0.0, 0.0, id="lowest"),
    ],
)
def test_a_loss_joins_the_history_before_it_is_judged(loss, beta, floor, chance):
    acceptance = remembering([1.0, 2.0, 3.0, 4.0], 100, beta, floor)
    error = (chance * (1 - chance) / 1500) ** 0.5
    assert abs(shares(acceptance, loss) - chance) <= 4 * error


@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0])
def test_about_one_in_one_plus_beta_is_accepted(beta):
    acceptance, generator = LossPercentile(beta), seeded()
    accepted = []
    for _ in range(400):
        losses = torch.randn(64, generator=generator)  # negative ones too
        accepted.append(acceptance.accept(losses, generator))
    rate = torch.cat(accepted[16:]).float().mean().item()  # once the history is full
    share = 1 / (1 + beta)
    error = (share * (1 - share) / (384 * 64)) ** 0.5
    assert abs(rate - share) < 4 * error + 0.5 / 1024  # the CDF's own step


def test_higher_losses_are_accepted_more_often_than_lower_ones():
    acceptance, generator = LossPercentile(), seeded()
    rows = [
        acceptance.accept(torch.arange(10.0), generator).float() for _ in range(2000)
    ]
    rate = torch.stack(rows).mean(0)
    error = (0.25 / 2000) ** 0.5
    assert ((rate - torch.arange(10) / 10).abs() < 4 * error).all()


def test_a_batch_longer_than_the_history_is_judged_by_its_end():
    acceptance = LossPercentile(history=2, floor=0.0)
    found = acceptance.accept(torch.tensor([9.0, 0.0, 1.0]), seeded())
    assert acceptance.state_dict()["losses"].tolist() == [0.0, 1.0]
    assert found.shape == (3,)
    assert bool(found[0])  # above all that is remembered
    assert not bool(found[1])


def test_the_generator_alone_decides_and_the_losses_need_no_gradient():
    before = torch.get_rng_state()
    losses = torch.rand(50, generator=seeded(3)).requires_grad_()
    first, same = (LossPercentile().accept(losses, seeded(1)) for _ in range(2))
    other = LossPercentile().accept(losses, seeded(2))
    assert first.dtype == torch.bool
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_losses_of_any_precision_are_judged(dtype):
    acceptance = remembering([0.0] * 3, history=8, floor=1.0)
    assert acceptance.accept(torch.ones(4, dtype=dtype), seeded()).all()
    assert acceptance.state_dict()["losses"].dtype == torch.float32


def test_no_loss_at_all_is_no_decision():
    assert LossPercentile().accept(torch.empty(0), seeded()).shape == (0,)


def test_the_history_moves_to_the_device_of_the_losses_and_nothing_waits_for_it():
    acceptance = remembering([1.0, 2.0], history=4)
    found = acceptance.accept(torch.ones(3, device="meta"), seeded())
    assert (found.shape, found.device.type) == ((3,), "meta")


@pytest.mark.parametrize("stop", [0, 1, 3, 9])
def test_a_resumed_acceptance_decides_as_if_it_had_never_stopped(stop):
    losses = torch.randn(12, 5, generator=seeded(5))
    whole, first, second = (LossPercentile(history=16) for _ in range(3))
    for step in range(stop):
        whole.accept(losses[step], seeded(step))
        first.accept(losses[step], seeded(step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(stop, 12):
        expected = whole.accept(losses[step], seeded(step))
        assert torch.equal(second.accept(losses[step], seeded(step)), expected)
    assert torch.equal(second.state_dict()["losses"], whole.state_dict()["losses"])


def test_a_state_is_a_copy_on_the_host():
    acceptance = remembering([1.0], history=4)
    state = acceptance.state_dict()
    state["losses"][0] = 7.0
    assert acceptance.state_dict()["losses"].tolist() == [1.0]
    acceptance.load_state_dict(state)
    state["losses"][0] = 8.0
    assert acceptance.state_dict()["losses"].tolist() == [7.0]


def test_a_shorter_history_keeps_the_latest_losses_of_a_longer_one():
    acceptance = LossPercentile(history=2)
    acceptance.load_state_dict(remembering([1.0, 2.0, 3.0], 9).state_dict())
    assert acceptance.state_dict()["losses"].tolist() == [2.0, 3.0]


def test_the_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"keys \['losses'\], got \['tau'\]\. Start"):
        LossPercentile().load_state_dict({"tau": torch.ones(1)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_cannot_be_ranked_are_refused_and_not_remembered(bad):
    acceptance = remembering([1.0], history=4)
    message = rf"got 1 of 2 that are not, at positions \{{1: {bad}\}}\. Look"
    with pytest.raises(ValueError, match=message):
        acceptance.accept(torch.tensor([-1.0, bad]), seeded())
    assert acceptance.state_dict()["losses"].tolist() == [1.0]


@pytest.mark.parametrize("kind", [LossPercentile, StaleSelection])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0.0}, r"`beta` must be a number above 0, got 0\.0\. 1 accepts"),
        ({"beta": -1.0}, r"`beta` .* got -1\.0"),
        ({"beta": float("inf")}, "`beta` .* got inf"),
        ({"beta": float("nan")}, "`beta` .* got nan"),
        ({"floor": -0.1}, r"`floor` must be in \[0, 1\], got -0\.1\. It"),
        ({"floor": 2.0}, r"`floor` .* got 2\.0"),
        ({"floor": float("nan")}, "`floor` .* got nan"),
    ],
)
def test_a_selectivity_without_a_meaning_is_refused(kind, setting, message):
    with pytest.raises(ValueError, match=message):
        kind(**setting)


def test_a_history_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"`history` must be at least 1, got 0\. 1024"):
        LossPercentile(history=0)
