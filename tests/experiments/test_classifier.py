"""The plain classifier reports what it should and ends its schedule with the run."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is.experiments import schedules
from lightning_is.experiments.classifier import Classifier

SGD = partial(torch.optim.SGD, lr=0.5)


@pytest.fixture
def data():
    return torch.randn(10, 4), torch.arange(10) % 3


def loader(data, batch_size=4):
    return DataLoader(TensorDataset(*data), batch_size=batch_size)


def test_reported_numbers_are_those_of_the_whole_part_despite_a_short_batch(kit, data):
    model = Classifier(nn.Linear(4, 3), SGD, label_smoothing=0.3)
    [row] = kit.trainer().validate(model, loader(data), verbose=False)
    logits = model(data[0])
    loss = functional.cross_entropy(logits, data[1]).item()
    accuracy = (logits.argmax(dim=1) == data[1]).float().mean().item()
    assert row == pytest.approx({"val/loss": loss, "val/acc": accuracy})


def test_label_smoothing_acts_on_the_training_loss(data):
    class Quiet(Classifier):
        def log(self, *_, **__):
            pass

    net = nn.Linear(4, 3)
    for smoothing in (0.0, 0.3):
        step = Quiet(net, SGD, label_smoothing=smoothing).training_step(data, 0)
        expected = functional.cross_entropy(
            net(data[0]), data[1], label_smoothing=smoothing
        )
        torch.testing.assert_close(step, expected)


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
def test_the_learning_rate_falls_at_every_step_and_ends_at_zero(kit, data, schedule):
    model = Classifier(nn.Linear(4, 3), SGD, scheduler=schedule)
    trainer = kit.trainer(max_epochs=4)
    rates = []
    model.on_train_batch_end = lambda *_: rates.append(
        trainer.optimizers[0].param_groups[0]["lr"]
    )
    trainer.fit(model, loader(data))
    assert len(rates) == 12
    assert all(a > b for a, b in zip([0.5, *rates], rates, strict=False))
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_half_way_through_the_run_half_the_learning_rate_is_left():
    for schedule in (schedules.linear, schedules.cosine):
        optimizer = SGD([torch.zeros(1, requires_grad=True)])
        plan = schedule(optimizer, 8)
        for _ in range(4):
            optimizer.step()
            plan.step()
        assert plan.get_last_lr() == pytest.approx([0.25])


def test_a_schedule_without_an_end_is_refused(kit, data):
    model = Classifier(nn.Linear(4, 3), SGD, scheduler=schedules.linear)
    endless = kit.trainer(max_epochs=-1, max_time="00:00:01:00")
    with pytest.raises(ValueError, match="Set `max_epochs` or `max_steps`"):
        endless.fit(model, loader(data))


def test_channels_last_reaches_network_and_input():
    seen = []
    convolution = nn.Conv2d(3, 4, 3)
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Classifier(nn.Sequential(convolution, nn.Flatten()), SGD, channels_last=True)(
        torch.zeros(2, 3, 5, 5)
    )
    for tensor in (seen[0], convolution.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
