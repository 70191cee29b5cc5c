"""How many examples are scored at a time, so that an open step fits where others do."""

from typing import final

from lightning.pytorch import LightningModule, Trainer

from lightning_is import host
from lightning_is.settings import Settings
from lightning_is.strategies import ranks_meet


@final
class Chunking:
    """Chooses in how many parts a batch is scored.

    Unless the user says otherwise, a part is no larger than what an ordinary step of
    the fit trains on. Scored without a graph it takes less than that step, whose
    activations all are kept (but where the output of the head outweighs them). Batches
    that closed steps train on whole are scored whole: in parts they would take longer,
    and the fit no less memory.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, settings: Settings
    ) -> None:
        self._trainer, self._settings = trainer, settings
        self._ranks_meet = ranks_meet(trainer, module)

    def ordinary(self, loaded: int) -> int:
        """Return how many examples a closed step trains on, of so many loaded."""
        sampler = host.presample_sampler(self._trainer)
        size = loaded if sampler is None else sampler.batch_size
        subset = self._settings.when_closed == "subset"
        return self._settings.wanted(size) if subset else size

    def parts(self, examples: int) -> int:
        """Return in how many parts to score a batch.

        Where ranks meet in forward passes it follows from the size that the loader
        announces: all ranks make as many passes, whatever their last batches hold.

        Raises:
            RuntimeError: If it must, there is none, and a batch has several parts.
        """
        chunk, whole = self._settings.score_chunk_size, examples
        if self._ranks_meet:
            announced = self._announced()
            fewer = chunk is not None or self.ordinary(whole) < whole
            if announced is None and fewer:
                raise RuntimeError(
                    "Ranks that meet in forward passes (synchronised batch "
                    "normalisation, sharded parameters) must make as many each, got "
                    "batches that are scored in parts and a loader that announces no "
                    "batch size. Give the loader a `batch_size`, or drop "
                    '`score_chunk_size` and `when_closed="subset"`.'
                )
            whole = announced or examples
        return -(-whole // (chunk or self.ordinary(whole)))

    def _announced(self) -> int | None:
        sampler = host.presample_sampler(self._trainer)
        if sampler is not None:
            return sampler.presample_size
        return host.loader_batch_size(self._trainer)
