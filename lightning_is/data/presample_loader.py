"""A loader of presamples that goes on in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any, final

from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_is.data.batch_sampler import PresampleBatchSampler


@final
class PresampleLoader(DataLoader[Any]):
    """Tells a `PresampleBatchSampler` what arrived, and carries its state.

    Lightning saves the state of loaders that have one, and gives it back before it asks
    for their first batch.
    """

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Begun at once, so that workers fetch ahead.
        return _counted(super().__iter__(), self._batches)

    @property
    def _batches(self) -> PresampleBatchSampler:
        batches = self.batch_sampler
        assert isinstance(batches, PresampleBatchSampler)  # noqa: S101  made with one
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return how far into the epoch this is."""
        return self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next iterator where another one was."""
        self._batches.load_state_dict(state_dict)


def _counted(stream: Iterator[Any], batches: PresampleBatchSampler) -> Iterator[Any]:
    for batch in stream:
        batches.arrive()
        yield batch
