"""The queue: accepted examples wait here until they fill a batch."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_is.data.batch import batch_size, join, leaves, take, with_leaves
from lightning_is.drawing import Drawer
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.scoring.tap import HeadTap
from lightning_is.step import Step

_MOST_BATCHES = 64  # to score for one to train on


@final
class Queue:
    """Fills batches with examples accepted one by one, as Selective-Backprop does.

    Every step trains on a full batch: one batch after the other is loaded and scored
    until enough were accepted, and those left over begin the next. How many were
    accepted must be known on the host, so here the device is waited for. With several
    processes each has its own examples waiting, and a checkpoint keeps none of them.

    Args:
        drawer: Scores.
        acceptance: Accepts.
        more: Loads and moves one more batch.
    """

    def __init__(
        self,
        drawer: Drawer,
        acceptance: LossPercentile,
        more: Callable[[], Any],
    ) -> None:
        self._drawer, self._acceptance, self._more = drawer, acceptance, more
        self._waiting: list[list[Any]] = []  # leaves of accepted examples

    def fill(self, step: Step, tap: HeadTap, batch: Any, wanted: int) -> Any:
        """Return a batch of ``wanted`` accepted examples, this batch scored first.

        Args:
            step: Takes in scores and loss of everything that was scored.
            tap: On the head.
            batch: On the device.
            wanted: Examples to train on.

        Raises:
            ValueError: If examples of different batches differ in shape.
        """
        losses: list[Tensor] = []
        step.index = step.weights = None  # of the first batch, all loaded uniformly
        while True:
            size = batch_size(batch)
            scored = self._drawer.scoring.run(tap, batch, size, update_statistics=True)
            if scored is None:  # nothing will be trained on
                step.examples = size
                return batch
            losses.append(scored.scores)
            if self._drawer.must_skip(scored.scores):
                step.drawn_from, step.examples = torch.cat(losses), size
                step.is_scored = True
                return batch
            stuck = len(losses) == _MOST_BATCHES
            self._accept(batch, scored.scores, everyone=stuck)
            if self._count() >= wanted:
                break
            batch = self._more()
        step.scores = torch.cat(losses)
        step.loss = step.scores.mean()
        step.is_sampled, step.examples = True, wanted
        return with_leaves(batch, self._take(wanted, leaves(batch)))

    def _accept(self, batch: Any, losses: Tensor, *, everyone: bool) -> None:
        accepted = self._acceptance.accept(losses, self._drawer.generator())
        if everyone:
            rank_zero_warn(
                f"Of {_MOST_BATCHES} batches too few examples were accepted to fill "
                "one, as where all losses are equal. All of the last are trained on. "
                "Set a `floor`, or end the selection earlier."
            )
            accepted = torch.ones_like(accepted)
        places = accepted.nonzero()[:, 0]
        if len(places):
            self._waiting.append(leaves(take(batch, places)))

    def _count(self) -> int:
        return sum(len(part[0]) for part in self._waiting)

    def _take(self, wanted: int, like: list[Any]) -> list[Any]:
        whole = join([_like(like, part) for part in self._waiting])
        rest = [rows[wanted:] for rows in whole]
        self._waiting = [rest] if len(rest[0]) else []
        return _like(like, [rows[:wanted] for rows in whole])

    def state_dict(self) -> list[Any]:
        """Return the waiting examples: their tensors, and lists of plain values."""
        if not self._waiting:
            return []
        return [_plain(rows) for rows in join(self._waiting)]

    def load_state_dict(self, state: list[Any]) -> None:
        """Continue with the examples that waited when a checkpoint was written."""
        self._waiting = [state] if state else []


def _like(like: list[Any], rows: list[Any]) -> list[Any]:
    """Bring what a checkpoint held to the kind and device of what is loaded now."""
    return [_alike(a, b) for a, b in zip(like, rows, strict=True)]


def _alike(like: Any, rows: Any) -> Any:
    if isinstance(like, np.ndarray):
        return np.asarray(rows)
    return rows.to(like.device) if isinstance(like, Tensor) else type(like)(rows)


def _plain(rows: Any) -> Any:
    if isinstance(rows, np.ndarray):
        numbers = rows.dtype.kind in "biufc"
        return torch.from_numpy(rows.copy()) if numbers else rows.tolist()
    if isinstance(rows, Tensor):
        return rows.cpu()
    return [row.item() if isinstance(row, np.generic) else row for row in rows]
