"""The auxiliary model: its layers, what it may see, and that it learns."""

import math

import pytest
import torch
from torch import nn

from lightning_is.data.auxiliary import Correlation, LossHistories, LossModel


def rows(n: int = 5, slots: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, slots, generator=generator), torch.arange(n) % slots + 1


def tensors(losses: list[float]) -> torch.Tensor:
    return torch.tensor(losses)


def test_the_layers_are_those_of_the_authors_program():
    model = LossModel(classes=7)
    assert isinstance(model.recurrent, nn.LSTM)
    assert (model.recurrent.num_layers, model.recurrent.hidden_size) == (2, 32)
    assert model.recurrent.input_size == 1
    assert not model.recurrent.bidirectional
    assert isinstance(model.embedding, nn.Embedding)
    assert tuple(model.embedding.weight.shape) == (7, 32)
    assert (model.head.in_features, model.head.out_features) == (64, 1)


def test_without_classes_there_is_no_embedding():
    model = LossModel()
    assert model.embedding is None
    assert model.head.in_features == 32


def test_an_example_is_read_loss_by_loss_up_to_its_last():
    """Against the two layers as two modules, run over each row alone."""
    model, (past, known) = LossModel(classes=3, hidden=8), rows()
    labels = torch.tensor([0, 1, 2, 0, 1])
    layers = [nn.LSTM(1, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)]
    for number, layer in enumerate(layers):
        for name, values in layer.named_parameters():
            kept = getattr(model.recurrent, name.replace("_l0", f"_l{number}"))
            values.data.copy_(kept)
    for row in range(5):
        losses = past[row, : known[row]].view(1, -1, 1)
        sequence, _ = layers[0](losses)
        _, (last, _) = layers[1](sequence)
        joined = torch.cat([last[0, 0], model.embedding.weight[labels[row]]])
        expected = model.head(joined)[0]
        torch.testing.assert_close(model(past, known, labels)[row], expected)


def test_empty_slots_do_not_matter():
    model, (past, known) = LossModel(), rows()
    empty = torch.arange(4) >= known[:, None]
    other = torch.where(empty, 1e3, past)
    assert torch.equal(model(past, known), model(other, known))
    longer = torch.cat([past, torch.full((5, 3), 9.0)], dim=1)
    assert torch.equal(model(past, known), model(longer, known))


def test_every_filled_slot_matters():
    model, (past, known) = LossModel(), rows()
    for slot in range(4):
        other = past.clone()
        other[:, slot] += 1
        assert torch.equal(model(past, known) != model(other, known), known > slot)


def test_the_class_matters():
    model, (past, known) = LossModel(classes=2), rows()
    first, second = (model(past, known, torch.full((5,), c)) for c in (0, 1))
    assert bool((first != second).all())


def test_predictions_are_floored_and_capped():
    model, (past, known) = LossModel(), rows(1)
    for bias, expected in ((-5.0, 1e-6), (1e9, 1e6)):
        model.head.weight.data.zero_()
        model.head.bias.data.fill_(bias)
        assert model.predict(past, known).item() == pytest.approx(expected)


def test_predictions_of_logarithms_are_exponentials():
    model, (past, known) = LossModel(log=True), rows()
    with torch.no_grad():
        torch.testing.assert_close(model.predict(past, known), model(past, known).exp())
    losses = tensors([0.0, 1.0, math.e])
    expected = tensors([math.log(1e-6), 0.0, 1.0])
    torch.testing.assert_close(model.target(losses), expected)


def test_losses_and_their_targets_agree_where_they_are_neither_tiny_nor_huge():
    losses = tensors([1e-6, 0.3, 17.0, 1e6])
    for log in (False, True):
        model = LossModel(log=log)
        torch.testing.assert_close(model.loss(model.target(losses)), losses)


def test_predicting_keeps_no_gradient():
    assert not LossModel().predict(*rows()).requires_grad


def test_equal_seeds_give_equal_models_and_others_others():
    first, second, third = (LossModel(3, seed=s) for s in (4, 4, 5))
    same = [torch.equal(a, b) for a, b in zip(*params(first, second), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(*params(first, third), strict=True)]
    assert all(same)
    assert not any(other)


def params(*models: LossModel) -> list[list[torch.Tensor]]:
    return [list(model.parameters()) for model in models]


def test_making_a_model_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    LossModel(classes=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_size_is_refused():
    state = dict(LossModel(hidden=8).state_dict())
    with pytest.raises(
        ValueError, match=r"same `hidden` and classes, got \(1, 8\) instead of \(1, 4\)"
    ):
        LossModel(hidden=4).restore(state)


def test_a_state_with_classes_is_refused_by_a_model_without():
    state = dict(LossModel(3, hidden=4).state_dict())
    with pytest.raises(ValueError, match=r"got \(3, 4\) instead of None for `embeddi"):
        LossModel(hidden=4).restore(state)


@pytest.mark.parametrize("log", [False, True])
def test_it_learns_to_predict_losses_that_stay(log: bool):
    generator = torch.Generator().manual_seed(0)
    losses = 3 * torch.rand(512, generator=generator) ** 2 + 0.01
    histories, model = LossHistories(512), LossModel(log=log)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(250):
        chosen = torch.randint(512, (64,), generator=generator)
        guess = model(*histories.read(chosen))
        error = (guess - model.target(losses[chosen])).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        histories.observe(chosen, losses[chosen])
    predicted = model.predict(*histories.read(torch.arange(512)))
    assert torch.corrcoef(torch.stack([predicted, losses]))[0, 1] > 0.9


def test_new_examples_have_the_initial_loss_alone():
    past, known = LossHistories(3, slots=4, initial=2.5).read(torch.arange(3))
    assert torch.equal(past, torch.tensor([[2.5, 0, 0, 0]] * 3))
    assert known.tolist() == [1, 1, 1]


def test_losses_are_appended_and_the_oldest_lost_as_in_a_list():
    generator = torch.Generator().manual_seed(0)
    histories, lists = LossHistories(6, slots=3), [[1.0] for _ in range(6)]
    for _ in range(12):
        chosen = torch.randperm(6, generator=generator)[:3]
        losses = torch.rand(3, generator=generator)
        histories.observe(chosen, losses)
        for index, loss in zip(chosen.tolist(), losses.tolist(), strict=True):
            lists[index] = [*lists[index], loss][-3:]
        past, known = histories.read(torch.arange(6))
        kept = [row[:n].tolist() for row, n in zip(past, known, strict=True)]
        assert kept == lists


def test_an_example_that_repeats_is_appended_once_by_the_mean():
    histories = LossHistories(3, slots=3)
    histories.observe(torch.tensor([2, 0, 2]), tensors([1.0, 5.0, 4.0]))
    past, known = histories.read(torch.arange(3))
    assert past.tolist() == [[1, 5, 0], [1, 0, 0], [1, 2.5, 0]]
    assert known.tolist() == [2, 1, 2]


def test_one_slot_keeps_the_last_loss():
    histories = LossHistories(2, slots=1)
    histories.observe(torch.tensor([1]), tensors([0.25]))
    past, known = histories.read(torch.arange(2))
    assert (past.tolist(), known.tolist()) == ([[1.0], [0.25]], [1, 1])


def test_what_was_read_does_not_change():
    histories = LossHistories(1)
    past, _ = histories.read(torch.tensor([0]))
    histories.observe(torch.tensor([0]), tensors([9.0]))
    assert 9.0 not in past


def test_histories_continue_from_their_state():
    first, second = LossHistories(4, slots=2), LossHistories(4, slots=2)
    first.observe(torch.tensor([1, 3]), tensors([2.0, 3.0]))
    second.load_state_dict(first.state_dict())
    first.observe(torch.tensor([0]), tensors([7.0]))  # of no concern to the second
    past, known = second.read(torch.arange(4))
    assert past.tolist() == [[1, 0], [1, 2], [1, 0], [1, 3]]
    assert known.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(("examples", "slots"), [(5, 2), (4, 3)])
def test_histories_of_another_size_are_refused(examples: int, slots: int):
    state = LossHistories(4, slots=2).state_dict()
    message = rf"got 2 slots of 4 examples for {slots} of {examples}\. Resume"
    with pytest.raises(ValueError, match=message):
        LossHistories(examples, slots).load_state_dict(state)


def test_histories_without_slots_are_refused():
    with pytest.raises(ValueError, match=r"`slots` must be at least 1, got 0\. 10"):
        LossHistories(4, slots=0)


def test_the_correlation_of_a_batch_is_pearsons():
    x, correlation = torch.rand(2, 50), Correlation()
    x[1] -= x[0]
    correlation.observe(x[0], x[1])
    assert correlation.value == pytest.approx(torch.corrcoef(x)[0, 1].item(), abs=1e-5)


def test_the_correlation_forgets():
    correlation, x = Correlation(), torch.rand(50)
    correlation.observe(x, -x)
    assert correlation.value == pytest.approx(-1)
    for _ in range(60):
        correlation.observe(x, x)
    assert correlation.value > 0.95


def test_the_correlation_spans_batches():
    """Each is constant, yet together they are not."""
    correlation = Correlation()
    for value in (1.0, 2.0, 3.0):
        correlation.observe(tensors([value]), tensors([value**2]))
    assert correlation.value > 0.9


@pytest.mark.parametrize("pair", [(0.0, 0.0), (0.1, 3.0), (math.nan, 1.0)])
def test_nothing_correlates_with_a_constant(pair: tuple[float, float]):
    correlation = Correlation()
    assert correlation.value == 0.0
    for _ in range(5):
        correlation.observe(torch.full((7,), pair[0]), pair[1] * torch.rand(7))
        assert correlation.value == 0.0
