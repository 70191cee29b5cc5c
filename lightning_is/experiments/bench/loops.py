"""Loops that nobody would call a library: what the arithmetic alone costs.

They do what the Trainer's steps do, over the same loader, and nothing else: no hooks,
no logs, no moving to a device, no look at the data, no gate, no state to resume from,
and they know that the loss is cross-entropy and where the logits are.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lightning_is.experiments.bench.networks import BATCH, Problem, optimizer
from lightning_is.experiments.bench.turns import Arm, Turn

UNIFORM_SHARE = 0.05


class Loop:
    """A network, its optimizer, and the parts of a step.

    Args:
        problem: Makes the network.
        size: Examples ``b`` that an open step trains on.
    """

    def __init__(self, problem: Problem, size: int) -> None:
        self.net, self.size = problem.net(), size
        self.optimizer = optimizer(self.net)
        self._norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on a batch."""
        self._descend(functional.cross_entropy(self.net(x), y))

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> Float[Tensor, " B"]:
        """Return the norms of the loss gradients at the logits.

        Batch normalisation takes its statistics from here, as the callback's does.
        """
        self.net.eval()
        for norm in self._norms:
            norm.train()
        slopes: Tensor = self.net(x).softmax(1)
        slopes[torch.arange(len(y), device=y.device), y] -= 1
        self.net.train()
        norms: Tensor = torch.linalg.vector_norm(slopes, dim=1)
        return norms

    def open_step(self, x: Tensor, y: Tensor) -> None:
        """Score a batch, draw from it, train on what was drawn, weighted."""
        drawn, weights = draw(self.score(x, y), self.size)
        for norm in self._norms:
            norm.track_running_stats = False
        losses = functional.cross_entropy(
            self.net(x[drawn]), y[drawn], reduction="none"
        )
        self._descend((weights * losses).mean())
        for norm in self._norms:
            norm.track_running_stats = True

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def draw(
    scores: Float[Tensor, " B"], size: int
) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
    """Draw systematically by scores mixed with 5 % of uniform; weight without bias."""
    count, wide = len(scores), scores.double()
    probs = (1 - UNIFORM_SHARE) * wide / wide.sum() + UNIFORM_SHARE / count
    ordered = probs.sort().values
    scales = torch.arange(size - count + 1, size + 1) / ordered.cumsum(0)
    capped = int((scales * ordered > 1).sum())  # included for certain
    inclusion = (scales[count - 1 - capped] * probs).clamp(max=1.0)
    order = torch.randperm(count)
    edges = inclusion[order].cumsum(0)
    points = (torch.rand(1, dtype=torch.float64) + torch.arange(size)) / size
    drawn = order[torch.searchsorted(edges, points * edges[-1], right=True)]
    return drawn, (size / (count * inclusion[drawn])).float()


def loop(problem: Problem, blocks: int, steps: int, size: int | None = None) -> Arm:
    """Return a program that trains by hand, on parts of ``size`` if that is given."""

    def run(turn: Turn) -> None:
        mine = Loop(problem, size or BATCH)
        step = mine.step if size is None else mine.open_step
        loader = problem.loader(steps * BATCH)
        for _ in range(blocks):
            turn.begin()
            for x, y in loader:
                step(x, y)
            turn.end()

    return run


def repeated(
    run: Callable[[Tensor, Tensor], object],
    batches: Sequence[tuple[Tensor, Tensor]],
    blocks: int,
) -> Arm:
    """Return a program that does one thing to batches that are there already."""

    def repeat(turn: Turn) -> None:
        for _ in range(blocks):
            turn.begin()
            for x, y in batches:
                run(x, y)
            turn.end()

    return repeat


def ready(problem: Problem, steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of a block, cut to a size."""
    batches = islice(problem.loader(steps * BATCH), steps)
    return [(x[:size].clone(), y[:size].clone()) for x, y in batches]
