"""Draws by predicted losses: what is drawn, its weights, and exact continuation."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_is.data.predicted_loss import PredictedLoss
from lightning_is.data.source import Loading

N = 30
LOSSES = torch.linspace(0.1, 3.0, N) ** 2
CLASSES = torch.arange(N) % 3


def loading(examples: int = N, seed: int = 0, **where: int) -> Loading:
    return Loading(CLASSES, examples, seed, progress=float, rescore=abs, **where)


def bound(examples: int = N, seed: int = 0, **options: Any) -> PredictedLoss:
    source = PredictedLoss(**({"warmup": 0} | options))
    source.bind(loading(examples, seed))
    return source


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PredictedLoss]:
    """A source whose model knows that example ``i`` will have loss ``LOSSES[i]``."""

    def predict(past, known, labels):
        return LOSSES[labels]

    def make(**options: Any) -> PredictedLoss:
        source = bound(labels=lambda data: torch.arange(N), **options)
        monkeypatch.setattr(source._run.model, "predict", predict)
        return source

    return make


def trained(source: PredictedLoss, steps: int, b: int = 8) -> list[torch.Tensor]:
    """Draw and observe, and return all that was drawn."""
    drawn = []
    for _ in range(steps):
        batch = source.draw(b)
        source.observe(batch.indices, LOSSES[batch.indices])
        drawn += [batch.indices, batch.weights]
    return drawn


def test_the_warmup_passes_over_everything_with_weight_one():
    source = bound(warmup=6)
    batches = [source.draw(10) for _ in range(6)]
    for start in (0, 3):
        whole = torch.cat([batch.indices for batch in batches[start : start + 3]])
        assert sorted(whole.tolist()) == list(range(N))
    assert all(bool((batch.weights == 1).all()) for batch in batches)


def test_sampling_begins_after_the_warmup():
    source = bound(warmup=2)
    whole = [len(source.draw(N).indices.unique()) == N for _ in range(4)]
    assert whole == [True, True, False, False]


def test_batches_are_int64_positions_and_float32_weights():
    for warmup in (0, 1):
        batch = bound(warmup=warmup).draw(50)  # larger than the dataset
        assert batch.indices.shape == batch.weights.shape == (50,)
        assert (batch.indices.dtype, batch.weights.dtype) == (
            torch.int64,
            torch.float32,
        )
        assert 0 <= int(batch.indices.min()) <= int(batch.indices.max()) < N


@pytest.mark.parametrize(("k", "adaptive"), [(1.0, True), (0.5, False), (-1.0, True)])
def test_the_weights_are_those_of_the_formula(oracle, k: float, adaptive: bool):
    source = oracle(k=k, smoothing=0.7, adaptive=adaptive)
    batch = source.draw(12)  # all are candidates, and all are probes
    smooth = LOSSES.double() + 0.7 * (LOSSES.double().mean() if adaptive else 1)
    probs, scores = (smooth / smooth.sum())[batch.indices], smooth[batch.indices]
    unbiased = 1 / (N * probs)
    power = unbiased**k
    expected = power * (unbiased @ scores) / (power @ scores)
    torch.testing.assert_close(batch.weights, expected.float())


def test_every_example_is_drawn_as_often_as_its_smoothed_loss_says(oracle):
    source, draws, b = oracle(smoothing=0.25, adaptive=False), 400, 50
    counts = torch.zeros(N)
    for _ in range(draws):
        counts += source.draw(b).indices.bincount(minlength=N)
    share = (LOSSES + 0.25) / (LOSSES + 0.25).sum()
    errors = (draws * b * share * (1 - share)).sqrt()
    assert float(((counts - draws * b * share) / errors).abs().max()) < 4


def deviation(source: PredictedLoss, draws: int = 1000, b: int = 10) -> float:
    """Of the mean weighted value from the mean of all, in standard errors."""
    means = []
    for _ in range(draws):
        batch = source.draw(b)
        means.append(float((batch.weights * LOSSES[batch.indices] ** 2).mean()))
    found = torch.tensor(means, dtype=torch.float64)
    error = found.std() / draws**0.5
    return float((found.mean() - LOSSES.double().square().mean()) / error)


@pytest.mark.parametrize("presample_size", [12, N])
def test_a_power_of_one_is_unbiased(oracle, presample_size: int):
    assert abs(deviation(oracle(k=1.0, presample_size=presample_size))) < 3


def test_a_power_of_a_half_is_not(oracle):
    assert deviation(oracle(k=0.5, presample_size=12)) > 8


def test_the_smoothing_bounds_the_weights(oracle):
    source = oracle(k=1.0, smoothing=0.5)
    largest = max(float(source.draw(30).weights.max()) for _ in range(20))
    assert 2 < largest < 3


def test_candidates_do_not_repeat_and_are_all_alike():
    source, counts = bound(1000), torch.zeros(1000)
    for number in range(300):
        generator = torch.Generator().manual_seed(number)
        chosen = source._run.uniform(100, generator)  # by rejection
        assert len(chosen.unique()) == 100
        counts[chosen] += 1
    z = (counts - 30) / (300 * 0.1 * 0.9) ** 0.5
    assert z.abs().max() < 4.5
    assert z.std() == pytest.approx(1, abs=0.1)


def test_all_of_a_small_dataset_are_candidates():
    chosen = bound()._run.uniform(2048, torch.Generator())
    assert sorted(chosen.tolist()) == list(range(N))


def test_the_mean_moves_by_a_tenth(oracle):
    source = oracle()
    source.draw(4)
    source._run.mean = 1.0
    expected = 0.9 + 0.1 * float(LOSSES.mean())
    assert source._run.average() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("log", [False, True])
def test_it_learns_to_draw_what_has_a_high_loss(log: bool):
    source = bound(log=log, learning_rate=1e-2, labels=lambda data: data)
    assert abs(source.metrics()["is/prediction_correlation"]) == 0.0
    trained(source, 250)
    assert source.metrics()["is/prediction_correlation"] > 0.9
    counts = torch.cat([source.draw(50).indices for _ in range(40)]).bincount()
    expected = LOSSES + 0.5 * LOSSES.mean()
    assert torch.corrcoef(torch.stack([counts.float(), expected]))[0, 1] > 0.9


def test_the_class_alone_tells_losses_apart():
    """So that an example never seen gains from others of its class."""
    source = bound(400, labels=lambda data: torch.arange(400) % 2, learning_rate=1e-2)
    for _ in range(100):
        indices = source.draw(16).indices.clamp(max=199)
        source.observe(indices, (indices % 2).float() * 2)
    unseen = source._run.predict(torch.arange(200, 400))
    assert unseen[1::2].min() > unseen[::2].max() + 0.5


def test_a_prediction_is_made_before_the_loss_is_known():
    """The first losses cannot be foretold, however often they repeat later."""
    source = bound()
    source.observe(torch.arange(N), LOSSES)
    assert source.metrics()["is/prediction_correlation"] == 0.0


def test_constant_losses_correlate_with_nothing():
    source = bound()
    for _ in range(5):
        source.observe(source.draw(4).indices, torch.ones(4))
    assert source.metrics() == {"is/prediction_correlation": 0.0}


def test_huge_losses_do_no_harm():
    source = bound()
    source.observe(
        torch.arange(3), torch.tensor([1e300, 0.0, 1e38], dtype=torch.float64)
    )
    trained(source, 3)
    state = source.state_dict()
    assert bool(state["correlation"].isfinite().all())
    assert float(state["histories"]["table"].max()) == 1e6


def test_nothing_observed_changes_nothing():
    source = bound()
    before = source.state_dict()
    source.observe(torch.empty(0, dtype=torch.int64), torch.empty(0))
    torch.testing.assert_close(source.state_dict(), before, rtol=0, atol=0)


def test_it_learns_where_gradients_are_off():
    source = bound()
    before = source.state_dict()["model"]["head.bias"]
    with torch.no_grad():
        source.observe(torch.arange(4), LOSSES[:4])
    assert source.state_dict()["model"]["head.bias"] != before


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("before", [0, 1, 4, 5, 9])
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(before: int, log: bool):
    options: dict[str, Any] = {"warmup": 5, "presample_size": 12, "log": log}
    options |= {"labels": lambda data: data}
    whole = bound(**options)
    trained(whole, before, b=7)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    expected = trained(whole, 8, b=7)
    file.seek(0)
    resumed = PredictedLoss(**options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.bind(loading())
    for mine, theirs in zip(trained(resumed, 8, b=7), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.metrics() == whole.metrics()


def test_a_state_may_come_after_the_binding():
    whole, resumed = bound(), bound()
    trained(whole, 3)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(trained(resumed, 2)[-2], trained(whole, 2)[-2])


def test_a_state_loaded_before_any_binding_is_given_back():
    source, state = PredictedLoss(), bound().state_dict()
    assert source.state_dict() == {}
    source.load_state_dict(state)
    torch.testing.assert_close(source.state_dict(), state)


def test_a_state_is_a_snapshot():
    source = bound()
    trained(source, 2)
    state, again = source.state_dict(), source.state_dict()
    other = bound()
    other.load_state_dict(state)
    trained(source, 2)
    trained(other, 2)
    torch.testing.assert_close(state, again, rtol=0, atol=0)


def test_passes_are_kept_only_while_they_are_needed():
    source = bound(warmup=2)
    assert source.state_dict()["passes"] is not None
    trained(source, 2)
    assert source.state_dict()["passes"] is None


def test_a_second_run_on_the_same_data_goes_on():
    source, other = bound(), bound()
    for each in (source, other):
        trained(each, 3)
    source.bind(loading())
    assert torch.equal(source.draw(8).indices, other.draw(8).indices)


def ranks(examples: int = N, **options: Any) -> list[PredictedLoss]:
    sources = [PredictedLoss(presample_size=20, **options) for _ in range(2)]
    for rank, source in enumerate(sources):
        source.bind(loading(examples, rank=rank, world_size=2))
    return sources


def test_ranks_share_out_the_passes_of_the_warmup():
    first, second = (source.draw(15).indices.tolist() for source in ranks())
    assert sorted(first + second) == list(range(N))


def test_ranks_have_different_candidates_afterwards(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.Tensor] = []

    def predict(past, known, labels):
        asked.append(labels)
        return torch.ones(len(labels))

    options: dict[str, Any] = {"labels": lambda data: torch.arange(N)}
    for source in ranks(warmup=0, adaptive=False, **options):
        monkeypatch.setattr(source._run.model, "predict", predict)
        source.draw(4)
    assert [len(candidates.unique()) for candidates in asked] == [20, 20]
    assert set(asked[0].tolist()) != set(asked[1].tolist())


def test_the_state_is_the_same_on_every_rank():
    sources = ranks(600, warmup=1)  # far more than are probed for the mean
    for _ in range(3):
        drawn = [source.draw(6) for source in sources]
        indices = torch.cat([batch.indices for batch in drawn])
        for source in sources:
            source.observe(indices, LOSSES[indices % N])
    assert not torch.equal(drawn[0].indices, drawn[1].indices)
    first, second = (source.state_dict() for source in sources)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_seed_decides():
    draws = [bound(200, seed, adaptive=False).draw(20).indices for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_global_random_states_are_left_alone():
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    trained(bound(warmup=2, labels=lambda data: data), 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_losses_at_fault_are_refused_and_leave_no_trace(bad: float):
    source = bound()
    before = source.state_dict()
    with pytest.raises(ValueError, match="Scores must be finite and at least 0, got 1"):
        source.observe(torch.arange(2), torch.tensor([1.0, bad]))
    torch.testing.assert_close(source.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"presample_size": 0}, r"`presample_size` must be at least 1, got 0\. 2048"),
        ({"k": 1.5}, r"`k` must be at most 1, got 1\.5\. 1 is unbiased"),
        ({"k": float("nan")}, r"`k` must be at most 1, got nan"),
        ({"smoothing": -0.5}, r"`smoothing` must be at least 0, got -0\.5"),
        ({"slots": 0}, r"`slots` must be at least 1, got 0\. 10 is usual"),
        ({"hidden": 0}, r"`hidden` must be at least 1, got 0\. 32 is usual"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be above 0, got 0\.0"),
        ({"warmup": -1}, r"`warmup` must be at least 0, got -1\. 0 leaves"),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(option: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PredictedLoss(**option)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.zeros(N - 1, dtype=torch.int64), rf"torch.int64 of shape \({N - 1},\)"),
        (torch.zeros(N, 2, dtype=torch.int64), rf"of shape \({N}, 2\)"),
        (torch.zeros(N), "got torch.float32"),
        (torch.arange(N) - 1, "the least -1"),
        (torch.empty(0, dtype=torch.int64), r"of shape \(0,\)\. Return positions"),
    ],
    ids=["short", "matrix", "float", "negative", "empty"],
)
def test_labels_that_are_none_are_refused(labels: torch.Tensor, got: str):
    message = rf"integer of at least 0 for each of {N} examples, got .*{got}|{got}"
    with pytest.raises(ValueError, match=message):
        bound(labels=lambda data: labels)


def test_labels_are_asked_of_the_dataset_and_may_be_small_integers():
    asked: list[Any] = []

    def labels(data: torch.Tensor) -> torch.Tensor:
        asked.append(data)
        return data.to(torch.uint8)

    source = bound(labels=labels)
    assert asked[0] is CLASSES
    assert source.state_dict()["model"]["embedding.weight"].shape == (3, 32)
    assert len(source.draw(4).indices) == 4


def test_a_state_of_another_dataset_is_refused():
    source = PredictedLoss()
    source.load_state_dict(bound().state_dict())
    with pytest.raises(ValueError, match=r"got 10 slots of 30 examples for 10 of 31\."):
        source.bind(loading(N + 1))


def test_a_state_of_another_model_is_refused():
    source = PredictedLoss(hidden=8)
    source.load_state_dict(bound().state_dict())
    with pytest.raises(ValueError, match="same `hidden` and classes, got"):
        source.bind(loading())


def test_a_source_that_is_not_bound_is_refused():
    with pytest.raises(RuntimeError, match="must be bound to a dataset before it draw"):
        PredictedLoss().draw(2)
    with pytest.raises(RuntimeError, match="must be bound to a dataset before it draw"):
        PredictedLoss().observe(torch.arange(2), torch.ones(2))
    assert PredictedLoss().metrics() == {"is/prediction_correlation": 0.0}
