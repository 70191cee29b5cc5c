"""The data module that loads presamples only while they are wanted."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from typing_extensions import override

from lightning_is.data.batch_sampler import PresampleBatchSampler
from lightning_is.data.loader import rebuilt

_HOOKS = (
    "prepare_data",
    "setup",
    "teardown",
    "on_exception",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "state_dict",
    "load_state_dict",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class OversamplingDataModule(LightningDataModule):
    """Wrap a data module so that it emits presamples while the gate is open.

    The training loader keeps its dataset, sampler, collation and workers. It yields its
    own batches of ``b`` while the gate of `ImportanceSamplingCallback` is closed and
    presamples of ``B`` while it is open, ``N // b`` times an epoch either way: while
    open, the data is passed over several times within an epoch. Workers prefetch, so a
    change of the gate shows a few batches later. Every other hook is the wrapped data
    module's, and absent where that does not define it.

    Args:
        datamodule: The data module to wrap, or a training loader alone.
        presample_size: Examples ``B`` of a presample, at least the loader's batch size
            and at most the dataset's.

    Raises:
        TypeError: If ``datamodule`` is neither, or its training loader is not one
            `torch.utils.data.DataLoader` over a map-style dataset.
        ValueError: If ``presample_size`` is below 1; once the loader is asked for, if
            it is out of range.

    Example:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.arange(8.0))
        >>> module = OversamplingDataModule(DataLoader(data, batch_size=2), 4)
        >>> loader = module.train_dataloader()
        >>> [len(x) for (x,) in loader]
        [2, 2, 2, 2]
        >>> loader.batch_sampler.is_open = True
        >>> [len(x) for (x,) in loader]
        [4, 4, 4, 4]
    """

    def __init__(
        self,
        datamodule: "LightningDataModule | DataLoader[Any]",
        presample_size: int,
    ) -> None:
        super().__init__()
        if not isinstance(datamodule, (LightningDataModule, DataLoader)):
            raise TypeError(
                "`datamodule` must be a LightningDataModule or a DataLoader, got "
                f"{type(datamodule).__name__}. Wrap your dataset in one of them."
            )
        if presample_size < 1:
            raise ValueError(
                f"`presample_size` must be at least 1, got {presample_size}. The paper "
                "presamples 3 to 5 times the batch size."
            )
        self.datamodule = datamodule
        self.presample_size = presample_size
        if isinstance(datamodule, LightningDataModule):
            self._forward_hooks(datamodule)

    def _forward_hooks(self, inner: LightningDataModule) -> None:
        """Take over the hooks that ``inner`` defines, and only those.

        A hook defined here but not there would hide the module's own.
        """
        for name in _HOOKS:
            if is_overridden(name, inner):
                vars(self)[name] = getattr(inner, name)
        self.prepare_data_per_node = inner.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            inner.allow_zero_length_dataloader_with_multiple_devices
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the Trainer is the wrapped data module's as well."""
        super().__setattr__(name, value)
        inner = vars(self).get("datamodule")
        if name == "trainer" and isinstance(inner, LightningDataModule):
            inner.trainer = value

    def __getattr__(self, name: str) -> Any:
        """Look up what this class does not know in the wrapped data module."""
        if name.startswith("__") or "datamodule" not in vars(self):
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    @override
    def train_dataloader(self) -> "DataLoader[Any]":
        """Return the wrapped training loader with presamples in it.

        Raises:
            TypeError: If it is not one DataLoader over a map-style dataset with
                automatic batching and an ordinary batch sampler.
            ValueError: If ``presample_size`` is below its batch size or above the
                number of its examples.
        """
        inner = self.datamodule
        loader = inner if isinstance(inner, DataLoader) else inner.train_dataloader()
        # Made here, inside the hook, where Lightning records the arguments by which
        # it rebuilds the batch sampler around a distributed sampler.
        sampler, batch_size = plain_parts(loader)
        batches = PresampleBatchSampler(
            sampler,
            batch_size=batch_size,
            drop_last=loader.drop_last,
            presample_size=self.presample_size,
        )
        return rebuilt(loader, batches)


def plain_parts(loader: Any) -> tuple[Sampler[int] | Iterable[int], int]:
    """Return sampler and batch size; refuse loaders that have none of their own."""
    if type(loader) is not DataLoader:
        raise TypeError(
            "The training loader must be one torch.utils.data.DataLoader, got a "
            f"{type(loader).__name__}. Presample from one loader, or use "
            "ImportanceSamplingCallback alone with larger batches."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "Presamples need a dataset with indices, got an IterableDataset. Load "
            "larger batches and use ImportanceSamplingCallback alone: it trims them."
        )
    if type(loader.batch_sampler) is not BatchSampler:
        raise TypeError(
            "The training loader must batch by itself, got "
            f"{type(loader.batch_sampler).__name__} as its batch sampler. Give "
            "`batch_size` and `sampler` to the DataLoader instead."
        )
    batches: BatchSampler = loader.batch_sampler
    return batches.sampler, batches.batch_size
