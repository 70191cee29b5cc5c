"""The LSTM computes what an LSTM is, begins as it should, and can remember."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.recurrent import PixelLSTM


def by_hand(net, x):
    """The recurrence, step by step."""
    w = dict(net.lstm.named_parameters())
    state = cell = torch.zeros(len(x), net.lstm.hidden_size)
    for step in x.T:
        gates = step[:, None] @ w["weight_ih_l0"].T + w["bias_ih_l0"]
        gates = gates + state @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        into, forget, new, out = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
        state = out.sigmoid() * cell.tanh()
    return net.head(state)


@pytest.mark.parametrize("shape", [(1, 4, 3), (12,), (12, 1)])
def test_the_state_after_the_last_number_is_classified(shape):
    net, x = PixelLSTM(classes=5, hidden=7), torch.randn(3, *shape)
    torch.testing.assert_close(net(x), by_hand(net, x.flatten(1)))


def test_it_begins_with_an_open_forget_gate_and_orthogonal_recurrence():
    net = PixelLSTM(classes=2, hidden=6)
    weights = dict(net.lstm.named_parameters())
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    recurrent = weights["weight_hh_l0"]
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(6))


def test_it_learns_to_remember_the_first_number(kit):
    x = torch.randn(512, 15)
    y = (x[:, 0] > 0).long()
    model = Classifier(PixelLSTM(2, hidden=16), partial(torch.optim.Adam, lr=0.02))
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    kit.trainer(max_epochs=25, gradient_clip_val=1.0).fit(model, loader)
    fresh = torch.randn(500, 15)
    right = model(fresh).argmax(1) == (fresh[:, 0] > 0).long()
    assert right.float().mean() > 0.95
