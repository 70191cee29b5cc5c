"""The data module that loads presamples while they are wanted, or what matters."""

from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from typing_extensions import override

from lightning_is.data.batch_sampler import PresampleBatchSampler
from lightning_is.data.loader import rebuilt
from lightning_is.data.pass_source import PassSource
from lightning_is.data.presample_loader import PresampleLoader
from lightning_is.sampling.subset import ImportanceSubset

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
    """Wrap a data module so that it loads what `ImportanceSamplingCallback` can use.

    With ``presample_size`` it emits presamples while the gate is open. The training
    loader keeps its dataset, sampler, collation and workers. It yields its own batches
    of ``b`` while the gate is closed and presamples of ``B`` while it is open,
    ``N // b`` times an epoch either way: while open, the data is passed over several
    times within an epoch. Workers prefetch, so a change of the gate shows a few batches
    later.

    With ``keep`` it loads a share of the data in every pass instead, by the scores that
    training left behind: the first of two stages (`ImportanceSubset`), of which the
    callback is the second. For the first stage alone, or another source, give the
    callback a ``source``.

    Every other hook is the wrapped data module's, and absent where that does not define
    it.

    Args:
        datamodule: The data module to wrap, or a training loader alone.
        presample_size: Examples ``B`` of a presample, at least the loader's batch size
            and at most the dataset's; None with ``keep``.
        score_every: Batches to draw from one scored presample, without replacement
            across them; ``score_every * b`` are at most ``B``. Later ones are drawn by
            scores a few steps old, which costs precision and no bias.
        keep: Share of the examples to load in a pass, in ``(0, 1]``, or ``"auto"``.

    Attributes:
        source: Chooses what to load, with ``keep``; it learns from one fit to the next.
        is_served: Whether a callback listens to the source; it sets that.

    Raises:
        TypeError: If ``datamodule`` is neither, or its training loader is not one
            `torch.utils.data.DataLoader` over a map-style dataset.
        ValueError: If not exactly one of ``presample_size`` and ``keep`` is given, or
            it is out of range; for a size that shows once the loader is asked for.

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
        presample_size: int | None = None,
        *,
        score_every: int = 1,
        keep: float | Literal["auto"] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(datamodule, (LightningDataModule, DataLoader)):
            raise TypeError(
                "`datamodule` must be a LightningDataModule or a DataLoader, got "
                f"{type(datamodule).__name__}. Wrap your dataset in one of them."
            )
        if (presample_size is None) == (keep is None):
            raise ValueError(
                "Either presamples are loaded or the share that matters, got "
                f"presample_size={presample_size} and keep={keep}. Pass one of them: "
                "`keep=0.6` loads six of ten examples in a pass."
            )
        whole = isinstance(presample_size, int | None)
        if not whole or (presample_size is not None and presample_size < 1):
            raise ValueError(
                "`presample_size` must be a whole number of at least 1, got "
                f"{presample_size!r}. The paper presamples 3 to 5 times the batch size."
            )
        self.datamodule = datamodule
        if score_every != 1 and presample_size is None:
            raise ValueError(
                "`score_every` is of presamples, got it with `keep`. Drop one of them."
            )
        self.presample_size, self.score_every = presample_size, score_every
        self.source = None if keep is None else PassSource(ImportanceSubset(keep))
        self.is_served = False
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
        """Return the wrapped training loader; with presamples in it, if they are asked.

        Raises:
            TypeError: If it is not one DataLoader over a map-style dataset with
                automatic batching and an ordinary batch sampler.
            ValueError: If ``presample_size`` is below its batch size or above the
                number of its examples.
            RuntimeError: If ``keep`` was asked for and no callback would serve it.
        """
        inner = self.datamodule
        loader = inner if isinstance(inner, DataLoader) else inner.train_dataloader()
        if self.presample_size is None:
            self._refuse_deafness()
            return loader
        # Made here, inside the hook, where Lightning records the arguments by which
        # it rebuilds the batch sampler around a distributed sampler.
        sampler, batch_size = plain_parts(loader)
        batches = PresampleBatchSampler(
            sampler,
            batch_size=batch_size,
            drop_last=loader.drop_last,
            presample_size=self.presample_size,
            score_every=self.score_every,
        )
        return rebuilt(loader, batches, PresampleLoader)

    def _refuse_deafness(self) -> None:
        if self.trainer is not None and not self.is_served:
            raise RuntimeError(
                "What is kept goes by the scores of an ImportanceSamplingCallback, got "
                "a Trainer without one. Add Trainer(callbacks=["
                "ImportanceSamplingCallback()])."
            )


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
