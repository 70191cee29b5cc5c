"""Before the first step: find the head, and refuse what would be silently wrong."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_is.scoring.context import random_states_kept
from lightning_is.scoring.discovery import (
    bypassing_parameters,
    find_heads,
    tensor_attributes,
    traced_outputs,
)
from lightning_is.scoring.scorer import Scorer
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring.upper_bound import UpperBound, refuse_silence


class NoLossError(Exception):
    """The user's step returned None: nothing to score."""


@dataclass(frozen=True)
class Trial:
    """A few examples to try things on.

    Attributes:
        module: Whose step is tried.
        loss: Runs the step on a part of the batch; returns its loss.
        context: Opens a context that leaves no trace.
        part: Takes the examples at some positions of the batch.
        device: Where positions are made.
        examples: Examples in a part.
        parts: How many disjoint parts there are, 1 or 2.
    """

    module: nn.Module
    loss: Callable[[Any], Tensor]
    context: Callable[[], AbstractContextManager[None]]
    part: Callable[[Tensor], Any]
    device: torch.device
    examples: int
    parts: int

    def run(self, number: int = 0, order: Tensor | None = None) -> Tensor:
        """Compute the loss of a part, without a trace; reordered if asked."""
        with self.context():
            return self.loss(self._take(number, order)).mean()

    def _take(self, number: int, order: Tensor | None = None) -> Any:
        if order is None:
            order = torch.arange(self.examples, device=self.device)
        return self.part(order + number * self.examples)

    def refuse_hidden_state(self) -> None:
        """Refuse a step that carries tensors from batch to batch."""
        batch = self._take(0)
        before = tensor_attributes(self.module)
        with torch.no_grad(), self.context():
            losses = []
            for _ in range(2):
                with random_states_kept(self.device):
                    losses.append(self.loss(batch).mean())
                after = tensor_attributes(self.module)
                changed = [n for n, kept in after.items() if kept != before.get(n)]
                if not changed:
                    return
        if not torch.allclose(losses[0], losses[1], rtol=1e-5, atol=0):
            raise RuntimeError(
                "Each batch must be computed on its own, got a step whose loss depends "
                f"on the tensors it kept from the last one: {', '.join(changed)}. "
                "Reset that state at the start of `training_step`, or train without "
                "importance sampling."
            )

    def find_heads(self) -> list[nn.Module]:
        """Find the heads of a network nobody described."""
        with torch.enable_grad(), traced_outputs(self.module) as owners:
            return find_heads(self.run(), owners)

    def refuse_bypass(self, tap: HeadTap) -> None:
        """Refuse parameters whose gradient would escape the weights."""
        steps = tuple(lambda i=i: self.run(i) for i in range(self.parts))
        names = bypassing_parameters(self.module, tap, steps)
        if names:
            heads = ", ".join(type(head).__name__ for head in tap.heads)
            raise RuntimeError(
                "Every parameter must reach the loss through the head "
                f"({heads}), or its gradient escapes the weights, got "
                f"{', '.join(names[:5])} beside it. Pass `head=` with the module (or "
                "the list of modules) whose outputs alone determine the loss; tie "
                "weights through a module, `head.weight = embedding.weight`."
            )

    def settle_layout(self, tap: HeadTap, scorer: Scorer) -> None:
        """Learn how rows belong to examples, where there are more rows or heads.

        Reordering the examples must reorder their scores; under the wrong layout it
        mixes them.
        """
        with torch.no_grad(), tap.probing() as probes:
            self.run()
        refuse_silence(probes)
        rows = [int(probe.shape[0]) for probe in probes if probe.ndim]
        if rows == [self.examples]:
            return
        order = torch.arange(self.examples, device=self.device).flip(0)
        for tap.stacked in (False, True):
            if all(self._reorders(tap, by, order) for by in (UpperBound(), scorer)):
                return
        raise RuntimeError(
            "Rows of the head must belong to examples, one after the other or one "
            f"batch after the other, got {rows} rows for {self.examples} "
            "examples whose scores change with their order. Pass `head=` with a module "
            "that is batch-first."
        )

    def _reorders(self, tap: HeadTap, scorer: Scorer, order: Tensor) -> bool:
        scores, reordered = self.scores(tap, scorer), self.scores(tap, scorer, order)
        return torch.allclose(reordered, scores[order], rtol=1e-3, atol=1e-6)

    def scores(
        self, tap: HeadTap, scorer: Scorer, order: Tensor | None = None
    ) -> Tensor:
        """Score a part.

        Its loss is brought to the host, where scorers can afford to check themselves.
        """
        batch = self._take(0, order)
        with self.context():
            return scorer.score(
                lambda: self.loss(batch).cpu(), tap, self.examples
            ).scores


def prepare(
    trial: Trial, heads: list[nn.Module] | None, scorer: Scorer
) -> HeadTap | None:
    """Put a tap on the head, and refuse what would be silently wrong.

    Args:
        trial: A few examples to try things on.
        heads: The heads, or None to find them.
        scorer: Must be able to score them.

    Returns:
        The attached tap; None if the step returned no loss this time.

    Raises:
        RuntimeError: If no head separates the loss from the network, or the step
            carries state from batch to batch.
        ValueError: If the scorer cannot score this step.
    """
    tap = None
    try:
        # Before anything runs: what compiles on its first call must see the hooks.
        tap = HeadTap(trial.find_heads() if heads is None else heads)
        tap.attach()
        trial.refuse_hidden_state()
        trial.settle_layout(tap, scorer)
        trial.refuse_bypass(tap)
        trial.scores(tap, scorer)
    except Exception as problem:
        if tap is not None:
            tap.detach()
        if isinstance(problem, NoLossError):
            return None
        raise
    return tap
