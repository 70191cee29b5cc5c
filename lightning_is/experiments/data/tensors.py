"""Data sets that lie in memory, and the data module that serves them.

Shapes: ``N`` examples in the set, ``B`` in a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64, Shaped
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

Batch: TypeAlias = tuple[Tensor, Tensor]  # inputs and labels, each with B rows


@dataclass(frozen=True)
class Standardise:
    """Turns stored values into float inputs: ``(x - mean) / std``.

    Args:
        mean: Broadcastable to a batch of inputs, in the unit of the stored values.
        std: Likewise; positive.

    Example:
        >>> pixels = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> Standardise(torch.tensor(128.0), torch.tensor(64.0))(pixels)
        tensor([[-2.0000,  0.0000,  1.9844]])
    """

    mean: Float[Tensor, "..."]
    std: Float[Tensor, "..."]

    def __call__(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Standardise a batch."""
        return (x.float() - self.mean) / self.std


@dataclass(frozen=True)
class TensorSet(Dataset[Batch]):
    """Labelled tensors, fetched a whole batch at a time.

    PyTorch's loader hands all indices of a batch to ``__getitems__``, which is one
    indexing operation here. Use it with ``collate_fn=whole_batch``.

    Args:
        x: Inputs, one row an example.
        y: Class labels, one an example; of sequences one row of them.
        transform: Applied to whole batches of inputs as they are fetched, so that
            ``x`` may stay in a compact type.

    Example:
        >>> data = TensorSet(torch.arange(4.0).reshape(4, 1), torch.arange(4))
        >>> next(iter(DataLoader(data, batch_size=2, collate_fn=whole_batch)))
        (tensor([[0.],
                [1.]]), tensor([0, 1]))
    """

    x: Shaped[Tensor, "N ..."]
    y: Int64[Tensor, "N ..."]
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices)
        x = self.x[rows]  # keeps the memory format of x, which index_select does not
        return (x if self.transform is None else self.transform(x)), self.y[rows]


def labels_of(data: TensorSet) -> Int64[Tensor, " N"]:
    """Return the class labels of a set, for who must know them before loading.

    Raises:
        ValueError: If an example has more than one.
    """
    if data.y.ndim > 1:
        raise ValueError(
            "This method goes by the class of every example, got examples with "
            f"{data.y.shape[1:].numel()} labels each. Choose another method."
        )
    return data.y


def whole_batch(batch: Batch) -> Batch:
    """Collate nothing: the data set returned a batch already."""
    return batch


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    Args:
        train: Examples to learn from.
        val: Examples to choose settings by.
        tests: Named parts to report on, each by itself.
    """

    train: TensorSet
    val: TensorSet
    tests: Mapping[str, TensorSet]


@dataclass(frozen=True)
class Loader:
    """How batches reach the trainer. The sets lie in memory, so workers seldom help.

    Args:
        num_workers: Processes that fetch ahead; 0 fetches in the main process.
        pin_memory: Page-locked batches, for a faster copy to a GPU.
        persistent_workers: Keep the workers from one epoch to the next.
    """

    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False


class TensorDataModule(LightningDataModule, ABC):
    """Serves the splits that a subclass loads; a subclass writes only ``load``.

    Training batches are shuffled and full (the last, short one is dropped); every
    other loader keeps the order and all examples.

    Args:
        batch_size: Examples in a batch.
        loader: Workers and memory of the loaders.
        conditions: Changes the parts once they are loaded, as `Conditions` do.
    """

    def __init__(
        self,
        batch_size: int,
        loader: Loader,
        conditions: Callable[[Splits], Splits] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.loader, self._changed = loader, conditions
        self._splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Read the data into memory. Called once in each process."""

    @property
    def splits(self) -> Splits:
        """The data in memory, loaded at the first use.

        Raises:
            ValueError: If a part is empty, or too small for one training batch.
        """
        if self._splits is None:
            loaded = self.load()
            changed = loaded if self._changed is None else self._changed(loaded)
            self._splits = _checked(changed, self.batch_size)
        return self._splits

    @override
    def setup(self, stage: str) -> None:
        _ = self.splits  # decode before the first batch is timed

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        return self._serve(self.splits.train, train=True)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        return self._serve(self.splits.val)

    @override
    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return [self._serve(part) for part in self.splits.tests.values()]

    def ordered_train_dataloader(self) -> DataLoader[Batch]:
        """All training examples, each once and in order, to measure by."""
        return self._serve(self.splits.train)

    def _serve(self, data: TensorSet, *, train: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=train,
            drop_last=train,
            # Typed for lists of examples; `__getitems__` returns a batch, as it may.
            collate_fn=whole_batch,  # type: ignore[arg-type]
            num_workers=self.loader.num_workers,
            pin_memory=self.loader.pin_memory,
            persistent_workers=self.loader.persistent_workers,
        )


def _checked(splits: Splits, batch_size: int) -> Splits:
    parts = {"train": splits.train, "val": splits.val, **splits.tests}
    empty = [name for name, part in parts.items() if len(part) == 0]
    if empty:
        raise ValueError(
            "Every part of a data set needs at least one example, got none in "
            f"{', '.join(empty)}. Sizes: { {k: len(v) for k, v in parts.items()} }. "
            "Ask for more examples, or look at where the data comes from."
        )
    if len(splits.train) < batch_size:
        raise ValueError(
            "The training set must fill at least one batch, got "
            f"{len(splits.train)} examples for batch_size={batch_size}. Lower "
            "`batch_size` or add examples."
        )
    return splits
