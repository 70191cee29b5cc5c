"""Before the first step: find the head, and refuse what would be silently wrong."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_is.runner import NoLossError
from lightning_is.scoring.context import is_norm, random_states_kept
from lightning_is.scoring.discovery import (
    bypassing_parameters,
    changed_tensors,
    find_heads,
    kept_tensors,
    traced_outputs,
)
from lightning_is.scoring.layout import alike, head_inputs, moved_as
from lightning_is.scoring.scorer import LossKind, Scorer, Step
from lightning_is.scoring.tap import HeadTap, rows_per_example
from lightning_is.scoring.upper_bound import UpperBound, refuse_silence


@dataclass(frozen=True)
class Trial:
    """A few examples to try things on.

    Attributes:
        module: Whose step is tried.
        step: Runs the step on a part of the batch; returns its loss.
        losses: What the examples are scored by: the same, or the user's own losses.
        context: Opens a context that leaves no trace; takes ``as_training``.
        take: Takes the examples of a batch at some positions.
        batch: The batch that parts are taken of.
        device: Where positions are made.
        examples: Examples in a part.
        parts: How many disjoint parts there are, 1 or 2.
        sharded: Whether the module's parameters are shared out among ranks.
    """

    module: nn.Module
    step: Callable[[Any], Tensor]
    losses: Callable[[Any], Tensor]
    context: Callable[..., AbstractContextManager[None]]
    take: Callable[[Any, Tensor], Any]
    batch: Any
    device: torch.device
    examples: int
    parts: int
    sharded: bool

    def run(self, number: int = 0, order: Tensor | None = None) -> Tensor:
        """Compute the loss of a part, without a trace; reordered if asked."""
        with self.context():
            return self.step(self._take(number, order)).mean()

    def run_as_training(self, number: int = 0) -> Tensor:
        """Compute the loss of a part as in training, where it may have more terms."""
        # Batch normalisation cannot train on one example.
        with self.context(as_training=self.examples > 1):
            return self.step(self._take(number)).mean()

    def _take(self, number: int, order: Tensor | None = None) -> Any:
        if order is None:
            order = torch.arange(self.examples, device=self.device)
        return self.take(self.batch, order + number * self.examples)

    def scores(
        self, tap: HeadTap, scorer: Scorer, order: Tensor | None = None
    ) -> Tensor:
        """Score a part, or the examples of it at some positions.

        Its loss is brought to the host, where scorers can afford to check themselves.
        """
        batch = self._take(0, order)
        examples = self.examples if order is None else len(order)
        step = Step(lambda b: self.losses(b).cpu(), batch, self.module, self.take)
        with self.context():
            return scorer.score(step, tap, examples).scores

    def refuse_hidden_state(self) -> None:
        """Refuse a step that carries tensors from batch to batch."""
        batch = self._take(0)
        with torch.no_grad(), self.context():
            before = kept_tensors(self.module)
            losses = []
            for _ in range(2):
                with random_states_kept(self.device):
                    losses.append(self.step(batch).mean())
                changed = changed_tensors(before, self.module)
                if not changed:
                    return
        if not alike(losses[0], losses[1], rtol=1e-5, atol=0):
            raise RuntimeError(
                "Each batch must be computed on its own, got a step whose loss depends "
                f"on the tensors it kept from the last one: {', '.join(changed)}. "
                "Reset that state at the start of `training_step`, or train without "
                "importance sampling."
            )

    def find_heads(self, given: Sequence[nn.Module] | None) -> list[nn.Module]:
        """Find the heads of a network nobody described; check several given ones."""
        if given is not None and len(given) == 1:
            return list(given)
        with torch.enable_grad(), traced_outputs(self.module, given) as owners:
            found = find_heads(self.run_as_training(), owners)
        if given is not None and len(found) < len(given):
            raise RuntimeError(
                "Several heads must lie side by side, got some that feed one another "
                "or do not reach the loss. Pass `head=` with the last module before "
                "the loss on each path alone."
            )
        return found

    def refuse_bypass(self, tap: HeadTap) -> None:
        """Refuse parameters whose gradient would escape the weights."""
        steps = tuple(partial(self.run_as_training, n) for n in range(self.parts))
        names = bypassing_parameters(self.module, tap, steps, sharded=self.sharded)
        if names:
            heads = ", ".join(type(head).__name__ for head in tap.heads)
            raise RuntimeError(
                "Every parameter must reach the loss through the head "
                f"({heads}), or its gradient escapes the weights, got "
                f"{', '.join(names[:5])} beside it. Pass `head=` with the module (or "
                "the list of modules side by side) whose outputs alone determine the "
                "loss; tie weights through a module, `head.weight = embedding.weight`."
            )

    def settle_layout(self, tap: HeadTap, scorer: Scorer) -> None:
        """Learn which calls of the head count, and which rows belong to an example."""
        order = torch.arange(self.examples, device=self.device).flip(0)
        probing = tap.probing(examples=self.examples)
        with torch.enable_grad(), probing as probes, head_inputs(tap) as plain:
            self.run()
        refuse_silence(bool(probes))
        tap.live = tuple(tap.seen)
        rows = [self.examples * rows_per_example(p, self.examples) for p in probes]
        if rows == [self.examples]:
            return
        if rows != [self.examples] * len(rows):
            with torch.no_grad(), tap.probing(), head_inputs(tap) as flipped:
                self.run(order=order)
            fits = [s for s in (False, True) if moved_as(plain, flipped, order, s)]
            tap.stacked = self._only(fits, f"{rows} rows")
        if scorer == UpperBound():
            return
        fits = []
        for stacked in (tap.stacked, not tap.stacked):
            tap.stacked = stacked
            if self._reorders(tap, scorer, order):
                fits.append(stacked)
        known = not torch.allclose(*torch.aminmax(self.scores(tap, scorer)), rtol=1e-4)
        tap.stacked = (
            fits[0] if known and len(fits) == 2 else self._only(fits, "losses")
        )

    def _only(self, fits: list[bool], what: str) -> bool:
        """Return the one layout that fits."""
        if len(fits) == 1:
            return fits[0]
        problem = "do not follow" if not fits else "do not tell"
        raise RuntimeError(
            "Rows of the head must belong to examples, one after the other or one "
            f"batch after the other, got {what} for {self.examples} examples that "
            f"{problem} their order. Pass `head=` with a module that is batch-first, "
            "or `per_sample_loss=` to score by."
        )

    def _reorders(self, tap: HeadTap, scorer: Scorer, order: Tensor) -> bool:
        scores, reordered = self.scores(tap, scorer), self.scores(tap, scorer, order)
        return alike(reordered, scores[order], rtol=1e-3, atol=1e-6)

    def loss_kind(self, tap: HeadTap) -> LossKind:
        """Tell a mean over the examples from a sum; warn if the loss couples them.

        Scores must not depend on who else is in the batch, but for the factor of a sum.
        Where a step draws random numbers nothing can be said.
        """
        with self.context():
            coupled = any(m.training for m in self.module.modules() if is_norm(m))
        if self.examples < 4 or coupled:
            return "unknown"
        half = torch.arange(self.examples // 2, device=self.device)
        whole, again = self._free_scores(tap), self._free_scores(tap, skip=7)
        beside, alone = whole[half], self._free_scores(tap, half)
        seen = alone > 1e-3 * alone.max()
        if not torch.equal(whole, again) or not bool(seen.any()):
            return "unknown"
        ratio = (beside[seen] / alone[seen]).median()
        is_coupled = (beside - ratio * alone).abs().max() > 0.05 * beside.max()
        if is_coupled:
            warnings.warn(
                "The loss couples the examples of a batch: the gradient of one changes "
                "with the others, as in contrastive losses or normalisation without "
                "running statistics. A drawn batch is then no unbiased estimate.",
                stacklevel=2,
            )
        if (ratio / (self.examples / len(half)) - 1).abs() < 1e-3:
            return "coupled sum" if is_coupled else "sum"
        return "coupled" if is_coupled else "mean"

    def _free_scores(
        self, tap: HeadTap, order: Tensor | None = None, *, skip: int = 0
    ) -> Tensor:
        """Score a part by the upper bound of the step's own loss."""
        batch = self._take(0, order)
        examples = self.examples if order is None else len(order)
        with self.context():
            torch.rand(skip)  # moves the random stream, which the context restores
            scored = UpperBound().score(lambda: self.step(batch), tap, examples)
        return scored.scores.nan_to_num(0, 0, 0)  # nothing is known of those


def prepare(
    trial: Trial, heads: Sequence[nn.Module] | None, scorer: Scorer
) -> tuple[HeadTap, LossKind] | None:
    """Put a tap on the head, and refuse what would be silently wrong.

    Args:
        trial: A few examples to try things on.
        heads: The heads, or None to find them.
        scorer: Must be able to score them.

    Returns:
        The attached tap and what kind of loss it is; None if there was none.

    Raises:
        RuntimeError: If no head separates loss and network, or the step keeps state.
        ValueError: If the scorer cannot score this step.
    """
    tap = None
    try:
        # Before anything runs: what compiles on its first call must see the hooks.
        tap = HeadTap(trial.find_heads(heads))
        tap.attach()
        trial.refuse_hidden_state()
        trial.settle_layout(tap, scorer)
        trial.refuse_bypass(tap)
        trial.scores(tap, scorer)
        return tap, trial.loss_kind(tap)
    except Exception as problem:
        if tap is not None:
            tap.detach()
        if isinstance(problem, NoLossError):
            return None
        raise
