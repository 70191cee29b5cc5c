"""What a fresh scorer is: scores for the batch at hand, from the user's own step."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_is.scoring.tap import HeadTap

LossKind = Literal["mean", "sum", "coupled", "coupled sum", "unknown"]
"""How a loss is made of its examples; coupled: of each by what the others are."""


@dataclass(frozen=True)
class Step:
    """The user's step, ready to run on a batch. Calling it runs it on the whole batch.

    Attributes:
        run: Returns the mean loss of a batch, or one loss per example.
        batch: What to score, on the device.
        module: Whose parameters are trained.
        take: Picks the examples of a batch at some positions.
    """

    run: Callable[[Any], Tensor]
    batch: Any
    module: nn.Module
    take: Callable[[Any, Tensor], Any]

    def __call__(self) -> Tensor:
        """Return the mean loss of the batch, or one loss per example."""
        return self.run(self.batch)


Reading = Callable[[int], Float[Tensor, " n"] | None]
"""Returns the scores of the ``n`` examples just trained on, if there are any."""


class Scored(NamedTuple):
    """What a scoring pass found.

    Attributes:
        scores: One per example, at least 0.
        loss: Mean loss of the batch, unweighted.
    """

    scores: Float[Tensor, " n"]
    loss: Float[Tensor, ""]

    def check(self, examples: int, device: torch.device) -> "Scored":
        """Refuse scores that are not one per example; return what is fine.

        Raises:
            ValueError: If there are others.
        """
        shape, place = tuple(self.scores.shape), self.scores.device
        if shape == (examples,) and place == device:
            return self
        raise ValueError(
            f"A scorer must return one score per example, of shape ({examples},) on "
            f"{device}, got shape {shape} on {place}. Reduce all dimensions but the "
            "first, and leave the scores where the module is."
        )


@runtime_checkable
class Scorer(Protocol):
    """Scores examples by how much a training step would learn from them."""

    def score(self, step: Step, tap: HeadTap, examples: int) -> Scored:
        """Score a batch by running ``step`` on it, or on parts of it.

        Args:
            step: Runs the user's step, in a context that leaves no trace.
            tap: On the head of the module.
            examples: The number of examples in the batch.
        """
        ...

    def observing(self, tap: HeadTap) -> AbstractContextManager[Reading]:
        """Watch an ordinary training step, whose scores then come for free.

        Yields:
            A function to call after the backward pass.
        """
        ...
