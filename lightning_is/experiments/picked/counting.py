"""Counting how often each example is loaded and trained on, from outside of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_is.experiments.curves import samplings
from lightning_is.experiments.picked.numbered import NumberedBatch
from lightning_is.scoring import Scored, Scorer
from lightning_is.scoring.scorer import Reading, Step
from lightning_is.scoring.tap import HeadTap
from lightning_is.shadow import Shadow

_STATE = ("loaded", "trained", "drawn", "scored", "sums")


@final
class Overheard:
    """Keeps what a scorer says of numbered batches until it is collected.

    The scorer stays the object that it is, and is refused where it would be.

    Args:
        scorer: Scores for the callback that samples; it is listened to from now on.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._passes: list[tuple[Tensor, Tensor]] = []
        self._read: Tensor | None = None
        self._scoring = Shadow(scorer, "score", self._score)
        self._observing = Shadow(scorer, "observing", self._observe)

    def _score(self, step: Step, tap: HeadTap, examples: int) -> Scored:
        found: Scored = self._scoring.original(step, tap, examples)
        if isinstance(step.batch, NumberedBatch):
            self._passes.append((step.batch.places, found.scores.detach()))
        return found

    @contextmanager
    def _observe(self, tap: HeadTap) -> Iterator[Reading]:
        with self._observing.original(tap) as read:

            def overheard(examples: int) -> Float[Tensor, " n"] | None:
                self._read = read(examples)
                return self._read

            yield overheard

    def collect(self, trained: Int64[Tensor, " b"]) -> list[tuple[Tensor, Tensor]]:
        """Return positions and scores since the last time, the oldest first.

        Args:
            trained: Positions of the examples of the step that ended.
        """
        found, self._passes = self._passes, []
        if self._read is not None and len(self._read) == len(trained):
            found.append((trained, self._read.detach()))
        self._read = None
        return found


@final
class PickCounter(Callback):
    """Counts; the run and its module know nothing of it.

    For one process, whose batches are numbered: the module's step gets them without
    their numbers. It must come after the callback that samples. Counts are part of
    checkpoints, and go on from those of the one that a run is resumed from.

    Args:
        examples: Number ``N`` of training examples.
        overheard: The scorer of the callback that samples.

    Attributes:
        loaded: How often each example arrived from the loader.
        trained: How often it was trained on.
        drawn: How often in a step on a draw from what was loaded.
        scored: In how many steps its score was computed.
        sums: Of its scores over these steps.

    Raises:
        RuntimeError: At the start of the fit, if there are several processes.
        ValueError: If a checkpoint has no counts, or those of other data.
    """

    def __init__(self, examples: int, overheard: Overheard) -> None:
        self.loaded: Int64[Tensor, " N"] = torch.zeros(examples, dtype=torch.int64)
        self.trained, self.drawn, self.scored = (self.loaded.clone() for _ in range(3))
        self.sums: Float64[Tensor, " N"] = torch.zeros(examples, dtype=torch.float64)
        self._last = torch.zeros(examples, dtype=torch.float64)  # of the step in hand
        self._overheard = overheard
        self._stepping: Shadow | None = None

    @property
    def scores(self) -> Float64[Tensor, " N"]:
        """Mean score of each example over these steps; NaN where there were none."""
        return self.sums / self.scored

    def hear(self, index: Int64[Tensor, " B"]) -> None:
        """Take note of what was loaded."""
        _add(self.loaded, index)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise RuntimeError(
                "Examples are counted by one process, got a Trainer with "
                f"{trainer.world_size}. Set trainer.devices=1."
            )
        if stage == "fit":
            self._stepping = Shadow(pl_module, "training_step", self._step)

    def _step(self, batch: NumberedBatch, batch_idx: int) -> Any:
        """Run the user's step on a batch such as it knows."""
        assert self._stepping is not None  # noqa: S101  or nobody would call this
        return self._stepping.original((batch.x, batch.y), batch_idx)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > 0 and not self.trained.any():
            _refuse_checkpoint("no counts", len(self.trained))

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: NumberedBatch,
        batch_idx: int,
    ) -> None:
        _add(self.trained, batch.places)
        if any(sampling.is_sampling for sampling in samplings(trainer)):
            _add(self.drawn, batch.places)
        self._take_in(self._overheard.collect(batch.places))

    def _take_in(self, noted: list[tuple[Tensor, Tensor]]) -> None:
        """Count an example that was scored several times in a step once, at last."""
        seen = torch.zeros(len(self.scored), dtype=torch.bool)
        for index, scores in noted:
            known = torch.isfinite(scores)
            places = index[known].cpu()
            self._last[places] = scores[known].double().cpu()
            seen[places] = True
        self.sums += torch.where(seen, self._last, 0.0)
        self.scored += seen

    @override
    def state_dict(self) -> dict[str, Any]:
        return {name: vars(self)[name].clone() for name in _STATE}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        size, stored = len(self.loaded), len(state_dict["loaded"])
        if stored != size:
            _refuse_checkpoint(f"those of {stored}", size)
        for name in _STATE:
            vars(self)[name].copy_(state_dict[name])

    @override
    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        self._leave()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._stepping is not None:
            self._stepping.undo()
        self._stepping = None


def _refuse_checkpoint(got: str, examples: int) -> None:
    raise ValueError(
        f"A counted run goes on from counts of its {examples} examples, got a "
        f"checkpoint with {got}. Resume what scripts/picked.py left of the same data "
        "by callbacks=checkpoint."
    )


def _add(counts: Int64[Tensor, " N"], index: Int64[Tensor, " n"]) -> None:
    """Count examples, those that are there twice twice."""
    places = index.cpu()
    counts.index_add_(0, places, torch.ones_like(places))
