"""A batch sampler that hands out presamples while sampling is on."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_PASS_STRIDE = 1_000_003  # keeps the shuffles of extra passes apart from later epochs
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class PresampleBatchSampler(BatchSampler):
    """Yield ``b`` indices while closed and ``B`` while open, ``N // b`` times an epoch.

    The number of batches never changes, so schedules and progress bars stay as they
    were; while open, the sampler is passed over several times within an epoch. Setting
    `is_open` takes effect at the next batch drawn, which worker processes prefetch; so
    does `open_size`, for presamples smaller than ``B``. With ``score_every``, each
    presample is followed by batches of one index, in the place of which further draws
    from the presample will be trained on.

    Args:
        sampler: Yields the indices of one pass, shuffled anew each time.
        batch_size: Indices ``b`` of a batch while closed.
        drop_last: Accepted for the sake of those who rebuild batch samplers; an epoch
            has ``N // b`` full batches either way.
        presample_size: Indices ``B`` of a batch while open; it must be given.
        score_every: Batches that a presample is for, at least 1.

    Raises:
        ValueError: If there is no ``presample_size``, it is less than ``score_every *
            batch_size``, or the sampler has fewer indices.

    Example:
        >>> batches = PresampleBatchSampler(range(8), 2, True, presample_size=4)
        >>> batches.is_open = True
        >>> list(batches)
        [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        batch_size: int,
        drop_last: bool,
        presample_size: int | None = None,
        score_every: int = 1,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        if presample_size is None:
            raise ValueError(
                "`presample_size` must be given, got none, as where Lightning rebuilds "
                "a loader for several processes that was made outside its hooks. Pass "
                "it the data module: trainer.fit(model, datamodule="
                "OversamplingDataModule(...))."
            )
        if presample_size < batch_size:
            raise ValueError(
                f"`presample_size` must be at least the batch size, got "
                f"{presample_size} for batches of {batch_size}. The paper presamples "
                "3 to 5 times the batch size."
            )
        if score_every < 1 or score_every * batch_size > presample_size:
            raise ValueError(
                "`score_every` batches are drawn from a presample without repeats, got "
                f"score_every={score_every} for batches of {batch_size} from "
                f"{presample_size}. Presample more, or score more often."
            )
        if score_every > 1 and batch_size == 1:
            raise ValueError(
                "`score_every` needs batches of at least 2, got batch_size=1. Leave it "
                "at 1."
            )
        available = len(sampler)  # type: ignore[arg-type]
        if available < presample_size:
            raise ValueError(
                f"The dataset must hold at least one presample, got {available} "
                f"examples for `presample_size={presample_size}`. Presample fewer, or "
                "check that the dataset is not empty."
            )
        self.presample_size = self.open_size = presample_size
        self.score_every, self.is_open = score_every, False
        self.epoch = _Epoch()  # of the iterator last made
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch = self._begun()
        while epoch.drawn < len(self):
            if epoch.ahead == len(epoch.under_way):
                epoch.under_way.append(self._draw(epoch))
            batch = epoch.under_way[epoch.ahead]
            epoch.ahead += 1
            epoch.drawn += 1
            yield batch.indices

    def _begun(self) -> "_Epoch":
        """Begin an epoch, or go on with one where a checkpoint left it."""
        state, self._resumed = self._resumed, None
        return _Epoch() if state is None else self._continued(state)

    def _draw(self, epoch: "_Epoch") -> "_Batch":
        if epoch.places:
            epoch.places -= 1
            return _Batch(epoch.presample[:1], is_place=True)
        if self.is_open:
            epoch.places = self.score_every - 1
        size = self.open_size if self.is_open else self.batch_size
        while len(epoch.order) - epoch.taken < size:
            self._pass_over(epoch)
        epoch.presample = epoch.order[epoch.taken : epoch.taken + size]
        epoch.taken += size
        return _Batch(epoch.presample)

    def _pass_over(self, epoch: "_Epoch") -> None:
        """Add a pass over the sampler, shuffled anew, to the order of an epoch."""
        if epoch.passes and isinstance(self.sampler, DistributedSampler):
            # It repeats its order until told otherwise.
            self.sampler.set_epoch(self.sampler.epoch + _PASS_STRIDE)
        epoch.order = [*epoch.order[epoch.taken :], *self.sampler]
        epoch.taken = 0
        epoch.passes += 1

    def arrive(self) -> None:
        """Take note that the first batch under way has arrived."""
        epoch = self.epoch
        batch = epoch.under_way.popleft()
        epoch.ahead -= 1
        if not batch.is_place:
            epoch.arrived = batch.indices

    def state_dict(self) -> dict[str, Any]:
        """Return how far into the epoch this is, in tensors and plain types.

        What was drawn and has not arrived counts as not yet passed over. Of several
        processes each has its own order, and a checkpoint holds one: it is dropped.
        """
        epoch, alone = self.epoch, not isinstance(self.sampler, DistributedSampler)
        number = (epoch.drawn - epoch.ahead) % max(len(self), 1)
        state: dict[str, Any] = {
            "number": number,
            "is_open": self.is_open,
            "open_size": self.open_size,
            "score_every": self.score_every,
        }
        if alone and number:
            state["order"] = torch.tensor(epoch.order[epoch.taken :], dtype=torch.int64)
            state["under_way"] = [list(batch) for batch in epoch.under_way]
            state["arrived"], state["presample"] = epoch.arrived, epoch.presample
            state["places"] = epoch.places
        generator = self._generator()
        if generator is not None:
            state["generator"] = generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next iterator go on where another one was."""
        self.is_open, self.open_size = state["is_open"], int(state["open_size"])
        self.score_every = int(state["score_every"])
        self._resumed = state if state["number"] else None
        self._set_generator(state)  # at the end of an epoch all that there is

    def _continued(self, state: dict[str, Any]) -> "_Epoch":
        # Only now: making the iterator took a number of the generator, too.
        self._set_generator(state)
        epoch = _Epoch(drawn=int(state["number"]))
        if "order" not in state:
            return epoch
        epoch.order = state["order"].tolist()
        epoch.under_way.extend(_Batch(*batch) for batch in state["under_way"])
        epoch.arrived, epoch.presample = state["arrived"], state["presample"]
        epoch.places = int(state["places"])
        if not epoch.under_way and epoch.places:
            epoch.under_way.append(self._draw(epoch))
        if epoch.under_way and epoch.under_way[0].is_place:
            # What is left of a presample is drawn from it: it is loaded again.
            epoch.under_way[0] = _Batch(epoch.arrived, is_place=True)
            epoch.loads_again = True
        return epoch

    def _generator(self) -> torch.Generator | None:
        known = isinstance(self.sampler, _SHUFFLING)
        generator = self.sampler.generator if known else None  # type: ignore[union-attr]
        return generator if isinstance(generator, torch.Generator) else None

    def _set_generator(self, state: dict[str, Any]) -> None:
        generator = self._generator()
        if generator is not None and "generator" in state:
            generator.set_state(state["generator"].cpu())


class _Batch(NamedTuple):
    """Indices of a batch, and whether it stands in for more of a presample."""

    indices: list[int]
    is_place: bool = False


@dataclass
class _Epoch:
    """How far an iterator is.

    Attributes:
        drawn: Batches yielded, those that a checkpoint left behind included.
        order: Indices in the order of the passes.
        taken: Of them, by batches.
        passes: Begun.
        under_way: Batches drawn that have not arrived.
        ahead: Of them, by this iterator.
        presample: The last one drawn.
        arrived: The last one that arrived.
        places: Batches still to be drawn in the place of more from it.
        loads_again: Whether its first batch is a presample that was loaded before.
    """

    drawn: int = 0
    order: list[int] = field(default_factory=list)
    taken: int = 0
    passes: int = 0
    under_way: "deque[_Batch]" = field(default_factory=deque)
    ahead: int = 0
    presample: list[int] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    places: int = 0
    loads_again: bool = False
