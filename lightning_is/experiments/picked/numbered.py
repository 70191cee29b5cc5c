"""Batches that know which examples they hold, from the loader to the step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int64, Shaped
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_is.data.loader import IndexedLoader
from lightning_is.experiments.data import Splits, TensorDataModule, TensorSet

_HOOK = "on_after_batch_transfer"


class NumberedBatch(NamedTuple):
    """A batch with the positions of its examples in the training set.

    Whatever picks examples from a batch picks all its parts, so these stay right.

    Attributes:
        x: Inputs.
        y: Labels.
        places: Positions.
    """

    x: Shaped[Tensor, "B ..."]
    y: Int64[Tensor, " B"]
    places: Int64[Tensor, " B"]


@dataclass(frozen=True)
class NumberedSet(TensorSet):
    """Serves the examples of a set with their positions."""

    @override
    def __getitem__(self, index: int) -> NumberedBatch:  # type: ignore[override]
        x, y, _ = self.__getitems__([index])
        return NumberedBatch(x[0], y[0], torch.tensor(index))

    @override
    def __getitems__(  # type: ignore[override]  # one part more than a plain batch
        self, indices: Sequence[int]
    ) -> NumberedBatch:
        x, y = super().__getitems__(indices)
        return NumberedBatch(x, y, torch.as_tensor(indices))


@final
class NumberedData(TensorDataModule):
    """Serves the training batches of a data module with the positions in them.

    The same batches in the same order, transformed as they would be. Validation and
    tests are the module's own.

    Args:
        data: The module.
        heard: Is told the positions of every training batch that arrives from the
            loader; not of those that are only scored afresh, between two steps.

    Raises:
        TypeError: If the training examples do not lie in memory.
    """

    def __init__(self, data: TensorDataModule, heard: Callable[[Tensor], None]) -> None:
        super().__init__(data.batch_size, data.loader)
        self.data, self.heard = data, heard

    @override
    def load(self) -> Splits:
        return self.data.splits

    @override
    def prepare_data(self) -> None:
        self.data.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)

    @override
    def train_dataloader(self) -> "DataLoader[Any]":
        loader = self.data.train_dataloader()
        return DataLoader(
            numbered(loader.dataset),
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            # As of any set that returns batches: typed for lists of examples.
            collate_fn=_whole,  # type: ignore[arg-type]
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.persistent_workers,
            generator=loader.generator,
        )

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do what the module, or the network if that does nothing, does to a batch."""
        assert self.trainer is not None  # noqa: S101  it calls this
        own = is_overridden(_HOOK, self.data)
        owner = self.data if own else self.trainer.lightning_module
        if not isinstance(batch, NumberedBatch):
            return owner.on_after_batch_transfer(batch, dataloader_idx)
        if self._is_loaded(batch):
            self.heard(batch.places)
        x, y = owner.on_after_batch_transfer((batch.x, batch.y), dataloader_idx)
        return NumberedBatch(x, y, batch.places)

    def _is_loaded(self, batch: NumberedBatch) -> bool:
        """Whether a batch is the one that the loader yielded last."""
        assert self.trainer is not None  # noqa: S101  as above
        loader = self.trainer.train_dataloader
        if not isinstance(loader, IndexedLoader):
            return True  # without a source nothing is scored afresh
        arrived = loader.arrived
        return arrived is not None and torch.equal(arrived[0], batch.places.cpu())


def numbered(data: Any) -> NumberedSet:
    """Return a set that serves positions as well.

    Raises:
        TypeError: If its examples do not lie in memory.
    """
    if type(data) is not TensorSet:
        raise TypeError(
            "Examples are counted where they lie in memory, in a TensorSet, got a "
            f"{type(data).__name__}. Derive the data from TensorDataModule."
        )
    return NumberedSet(data.x, data.y, data.transform)


def _whole(batch: NumberedBatch) -> NumberedBatch:
    """Collate nothing: the data set returned a batch already."""
    return batch
