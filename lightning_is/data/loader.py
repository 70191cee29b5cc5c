"""A loader whose examples are chosen by a source, and that tells which they are."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset
from typing_extensions import override

from lightning_is.data.batch import SampledBatch
from lightning_is.data.source import IndexSource
from lightning_is.sampling.passes import Pass

Keys = tuple[list[int], list[float]]  # plain lists: cheap to send to a worker


@final
class IndexBatchSampler(BatchSampler):
    """Yield what a source draws, and remember what is still under way.

    Workers fetch ahead, so a source draws some batches before they are used. Those that
    were drawn but never arrived are yielded again by the next iterator, and saved.

    Args:
        source: Draws batches; bound.
        batch_size: Examples in each.
        length: Batches of an epoch.
        endless: Go on after ``length`` batches, for who asks for more.
    """

    def __init__(
        self, source: IndexSource, batch_size: int, length: int, *, endless: bool
    ) -> None:
        super().__init__(range(1), batch_size, drop_last=True)
        self.source, self.length, self.endless = source, length, endless
        self.under_way: deque[Pass] = deque()
        self.ahead = 0  # of those under way: fetched by the current iterator
        self.begin = 0  # batches of the epoch that the next iterator leaves out

    @override
    def __len__(self) -> int:
        return self.length

    @override
    def __iter__(self) -> Iterator[Any]:
        self.ahead, number = 0, self.begin
        while self.endless or number < self.length:
            if self.ahead == len(self.under_way):
                self.under_way.append(self.source.draw(self.batch_size))
            drawn = self.under_way[self.ahead]
            self.ahead += 1
            number += 1
            yield drawn.indices.tolist(), drawn.weights.tolist()

    def arrive(self) -> None:
        """Take note that the first batch under way has arrived."""
        self.under_way.popleft()
        self.ahead -= 1


@dataclass
class _Fetched:
    """Examples of a batch, not yet collated."""

    examples: Any
    keys: Keys


class IndexedDataset(Dataset[Any]):
    """Fetches a batch of examples with their positions and weights.

    Args:
        dataset: Map-style; fetched through its ``__getitems__`` where it has one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        """Look up what this class does not know in the dataset, as workers may."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Keys) -> _Fetched:
        whole = getattr(self.dataset, "__getitems__", None)  # PyTorch's own protocol
        indices = keys[0]
        if whole is not None:
            return _Fetched(whole(indices), keys)
        return _Fetched([self.dataset[index] for index in indices], keys)


@dataclass(frozen=True)
class IndexedCollate:
    """Collates as the user's loader does, and adds positions and weights.

    Args:
        collate: The user's.
    """

    collate: Callable[[Any], Any]

    def __call__(self, fetched: _Fetched) -> SampledBatch:
        """Return the user's batch with its index and weight."""
        indices, weights = fetched.keys
        return SampledBatch(
            self.collate(fetched.examples),
            torch.tensor(indices, dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float32),
        )


class IndexedLoader(DataLoader[Any]):
    """Yields the user's own batches; which examples they hold is kept beside.

    Attributes:
        arrived: Index and weight of the batch last yielded.
    """

    arrived: tuple[Tensor, Tensor] | None = None
    _stream: Generator[Any, None, None] | None = None
    _begin = 0  # batches of an epoch that the next iterator leaves out
    _fetched = 0  # batches of the current epoch

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.release()
        self._stream = stream = self._plain()
        return stream

    @property
    def under_way(self) -> "deque[Pass]":
        """What was drawn and has not arrived yet."""
        return _index_batches(self).under_way

    def more(self) -> Any:
        """Return the next batch of the current iterator."""
        assert self._stream is not None  # noqa: S101  a batch of it is in hand
        return next(self._stream)

    def release(self) -> None:
        """End the current iterator, and with it its workers.

        It and the loader hold each other. Left to the garbage collector, the queues of
        the workers would go before the iterator can tell these to stop: PyTorch then
        waits five seconds for each.
        """
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def state_dict(self) -> dict[str, Any]:
        """Return how far into the epoch this is; the source's state is not its own."""
        return {"fetched": self._fetched % len(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next iterator within an epoch, which ends where it would have."""
        self._begin = int(state_dict["fetched"])

    def _plain(self) -> Generator[Any, None, None]:
        batches = _index_batches(self)
        batches.begin = self._fetched = self._begin
        self._begin = 0
        # Begun only now: workers would fetch ahead before the fit can score.
        for sampled in super().__iter__():
            batches.arrive()
            self._fetched += 1
            self.arrived = (sampled.index, sampled.weight)
            yield sampled.data


def _index_batches(loader: IndexedLoader) -> IndexBatchSampler:
    batches = loader.batch_sampler
    assert isinstance(batches, IndexBatchSampler)  # noqa: S101  `indexed` made it so
    return batches


def rebuilt(
    loader: "DataLoader[Any]",
    batches: BatchSampler,
    kind: type[DataLoader[Any]] = DataLoader,
    *,
    dataset: Any = None,
    collate: Callable[[Any], Any] | None = None,
) -> "DataLoader[Any]":
    """Make a loader like another, but for what is given.

    Args:
        loader: Gives workers, memory pinning and all other settings.
        batches: The batch sampler.
        kind: Class of the new loader.
        dataset: Instead of the loader's own.
        collate: Instead of the loader's own.
    """
    return kind(
        loader.dataset if dataset is None else dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn if collate is None else collate,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def indexed(
    loader: "DataLoader[Any]",
    source: IndexSource,
    batch_size: int,
    length: int,
    *,
    endless: bool = False,
) -> IndexedLoader:
    """Make a loader like another whose examples a source chooses.

    Args:
        loader: The user's.
        source: Bound to its dataset.
        batch_size: Examples of each batch, always full.
        length: Batches of an epoch.
        endless: Let `IndexedLoader.more` go on past the end of an epoch.
    """
    made = rebuilt(
        loader,
        IndexBatchSampler(source, batch_size, length, endless=endless),
        IndexedLoader,
        dataset=IndexedDataset(loader.dataset),
        collate=IndexedCollate(loader.collate_fn),
    )
    assert isinstance(made, IndexedLoader)  # noqa: S101  for the type checker
    return made
