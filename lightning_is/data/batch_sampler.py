"""A batch sampler that hands out presamples while sampling is on."""

from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import BatchSampler, DistributedSampler, Sampler

_PASS_STRIDE = 1_000_003  # keeps the shuffles of extra passes apart from later epochs


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

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        drawn: list[int] = []  # the last presample
        places = 0  # batches in the place of which more is drawn from it
        for _ in range(len(self)):
            if places:
                places -= 1
                yield drawn[:1]
                continue
            if self.is_open:
                places = self.score_every - 1
            size = self.open_size if self.is_open else self.batch_size
            drawn = list(islice(stream, size))
            yield drawn

    def _stream(self) -> Iterator[int]:
        """Pass over the sampler again and again, shuffled anew each time."""
        while True:
            yield from self.sampler
            if isinstance(self.sampler, DistributedSampler):
                # It repeats its order until told otherwise.
                self.sampler.set_epoch(self.sampler.epoch + _PASS_STRIDE)
