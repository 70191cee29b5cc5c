"""Gradients and scores of single examples, one after the other and by formula."""

import torch
from torch.nn import functional


def single_gradients(net, x, y):
    """The gradient of each example, one after the other."""
    rows = []
    for i in range(len(x)):
        loss = functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(loss, list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).double())
    return torch.stack(rows)


def scores_of(net, x, y):
    """Every score, by its formula."""
    z = net(x).detach()
    bound = (z.softmax(1) - functional.one_hot(y, z.shape[1])).norm(dim=1)
    return {
        "uniform": torch.ones(len(x)),
        "loss": functional.cross_entropy(z, y, reduction="none"),
        "upper_bound": bound,
        "gradient_norm": single_gradients(net, x, y).norm(dim=1),
    }
