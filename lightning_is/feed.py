"""The feed: between a source that chooses what to load and the fit that trains on it.

It puts the source behind the user's own loader, by shadowing the strategy's public
`process_dataloader`, and carries the scores of what was trained on back to it.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data.distributed import DistributedSampler
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_is import host
from lightning_is.data.loader import IndexedLoader, indexed, rebuilt
from lightning_is.data.source import IndexSource, Loading
from lightning_is.datamodule import plain_parts
from lightning_is.monitor import Readback
from lightning_is.sampling.numerics import check_scores
from lightning_is.sampling.passes import Pass
from lightning_is.scoring.context import random_states_kept
from lightning_is.shadow import Shadow
from lightning_is.state import State

_ORDINARY = (RandomSampler, SequentialSampler, DistributedSampler)

ScoreBatch = Callable[[Any], Tensor]
"""Scores a batch that is still on the host."""


@final
class Feed:
    """Loads what a source chooses, and tells it how that was scored.

    Args:
        trainer: Runs the fit.
        source: Chooses.
        state: Has the seed of the source's draws.
        progress: Returns the share of the run that is over.
        forgives: Whether scores that are not finite are left out.
    """

    def __init__(
        self,
        trainer: Trainer,
        source: IndexSource,
        state: State,
        progress: Callable[[], float],
        *,
        forgives: bool = False,
    ) -> None:
        self._forgives = forgives
        self._trainer, self.source, self._state = trainer, source, state
        self._progress = progress
        self._user_loader: DataLoader[Any] | None = None
        self._made: IndexedLoader | None = None
        # Apart from one another, as no float holds every index.
        self._indices, self._scores = Readback(), Readback()
        self.score: ScoreBatch | None = None
        self._processing = Shadow(trainer.strategy, "process_dataloader", self._process)

    def close(self) -> None:
        """Leave the strategy as it was found."""
        self._processing.undo()
        if self._made is not None:
            self._made.release()

    def _process(self, loader: Any) -> Any:
        """Put the source behind the training loader; leave others as they are."""
        loader = self._processing.original(loader)
        if not self._trainer.training:
            return loader
        if self._trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            raise ValueError(
                "A source chooses from the whole dataset, got `overfit_batches`. Pass "
                "a Subset of the dataset instead."
            )
        if isinstance(getattr(loader, "dataset", None), IterableDataset):
            raise TypeError(
                "A source chooses examples by their position, got an IterableDataset, "
                "which has none. Use a map-style dataset, or trim: "
                "ImportanceSamplingCallback(batch_size=...)."
            )
        sampler, batch_size = plain_parts(loader)
        # Not of a class derived from them: Lightning's wrapper of others is one.
        whole = type(sampler) in _ORDINARY and _covers(sampler, loader.dataset)
        if not whole:
            raise TypeError(
                "A source of examples takes the place of the loader's sampler, got a "
                f"{type(sampler).__name__} with a choice of its own, which would be "
                "lost. Use `shuffle=True`, and a Subset of the dataset to leave "
                "examples out."
            )
        self._user_loader = loader
        self.source.bind(
            Loading(
                dataset=loader.dataset,
                examples=len(loader.dataset),
                seed=self._state.draws.seed,
                progress=self._progress,
                rescore=self._rescore,
                rank=self._trainer.global_rank,
                world_size=self._trainer.world_size,
            )
        )
        # Who accepts examples one by one asks for more batches than an epoch has.
        endless = self._state.acceptance is not None
        made = indexed(loader, self.source, batch_size, len(loader), endless=endless)
        # Of a checkpoint, or of the loader that this one replaces.
        before = self._state.under_way if self._made is None else self._made.under_way
        made.under_way.extend(Pass(*drawn) for drawn in before)
        if self._made is not None:
            self._made.release()
        self._made = made
        return made

    def arrived(self) -> tuple[Tensor, Tensor]:
        """Return index and weight of the batch last loaded, on the host.

        Raises:
            RuntimeError: If the batch did not come from the feed's loader.
        """
        made = self._made
        arrived = None if made is None else made.arrived
        if arrived is None or self._trainer.train_dataloader is not made:
            raise RuntimeError(
                "Batches must come from the training loader alone while a source "
                "chooses the examples, got one from elsewhere. Return one DataLoader "
                "from `train_dataloader`."
            )
        return arrived

    def more(self) -> Any:
        """Load one more batch, within the same step."""
        assert self._made is not None  # noqa: S101  a batch of it is in hand
        return self._made.more()

    def send(self, index: Tensor, scores: Tensor) -> None:
        """Send the scores of examples on their way to the source; each rank, each step.

        Args:
            index: Their positions in the dataset, of shape ``(n,)``, on the host.
            scores: Unweighted, of shape ``(n,)``, on the device.
        """
        if self._trainer.world_size > 1:
            trainer, device = self._trainer, self._trainer.strategy.root_device
            index = index.to(device, non_blocking=True)
            index = host.gathered(trainer, index).flatten()
            scores = host.gathered(trainer, scores.detach().float()).flatten()
        self._indices.push(index)
        self._scores.push(scores)

    def settle(self) -> None:
        """Hand over what was sent, once it has arrived."""
        index, scores = self._indices.pop(), self._scores.pop()
        if index is None or scores is None:
            return
        if self._forgives or host.scales_gradients(self._trainer):
            seen = torch.isfinite(scores)  # a step that overflowed tells nothing
            index, scores = index[seen], scores[seen]
        self.source.observe(index, scores)

    def _rescore(self, positions: Tensor) -> Tensor:
        """Score the examples at some positions afresh; infinite where that fails."""
        scores = self._shared_scores(positions)
        if not self._forgives:
            check_scores(scores)  # or an infinite one would pass for one never seen
            return scores
        overflowed = ~torch.isfinite(scores)
        return torch.where(overflowed, torch.inf, scores)

    def _shared_scores(self, positions: Tensor) -> Tensor:
        """Score the examples at some positions; ranks share the work."""
        self.settle()  # or an older score would come to lie over a fresh one
        trainer, user, score = self._trainer, self._user_loader, self.score
        assert user is not None and score is not None  # noqa: S101, PT018  the fit is on
        world, size = trainer.world_size, plain_parts(user)[1]
        rounds = -(-len(positions) // world)
        # Batches are full, and as many on every rank: the last one begins again.
        turns = torch.arange(-(-rounds // size) * size) * world + trainer.global_rank
        ours = positions[turns % len(positions)].tolist()
        loader = rebuilt(user, BatchSampler(ours, size, drop_last=True))
        loader.generator = torch.Generator()  # the base seed of its workers
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
        with random_states_kept(trainer.strategy.root_device):
            batches = tqdm(loader, "scores afresh", leave=False, disable=not shown)
            scores = torch.cat([score(batch).float() for batch in batches])[:rounds]
        if world == 1:
            return scores.cpu()
        gathered = host.gathered(trainer, scores).cpu()  # (world, rounds)
        return gathered.T.flatten()[: len(positions)]

    def under_way(self) -> list[tuple[Tensor, Tensor]]:
        """List what was drawn and not yet trained on, on this one process.

        With several, each has its own, and a checkpoint holds one: they are dropped.
        """
        if self._made is None or self._trainer.world_size > 1:
            return []
        return [(it.indices, it.weights) for it in self._made.under_way]


def _covers(sampler: Any, dataset: Any) -> bool:
    """Whether a sampler yields every example of a dataset once."""
    if isinstance(sampler, DistributedSampler):
        return len(sampler.dataset) == len(dataset)  # type: ignore[arg-type]
    return len(sampler) == len(dataset) and not getattr(sampler, "replacement", False)
