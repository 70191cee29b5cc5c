"""Text, byte by byte: sequences of one length, the last of each document padded."""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from typing_extensions import override

from lightning_is.experiments.data.documents import Documents, prepare, read, split
from lightning_is.experiments.data.sizes import check_sizes, kept
from lightning_is.experiments.data.tensors import (
    Loader,
    Splits,
    TensorDataModule,
    TensorSet,
)
from lightning_is.experiments.token_losses import PADDING


class Text(TensorDataModule):
    """Predict each byte of a text from those before it in its sequence.

    A token is a byte: 256 of them write every text in every language, so there is
    nothing to download, to learn beforehand or to leave out. Each document is cut into
    sequences of ``length`` predictions, every byte but the first predicted once. The
    last sequence of a document is shorter and padded: its labels end with ``-100``,
    which losses ignore, and no token before can see its padding.

    Where the source has no splits of its own, the parts are contiguous: training comes
    first, then validation, then test. Documents are cut after that, so no sequence
    reaches from one part into another. The sequences that are kept lie in memory, at
    nine bytes a byte; the whole text does only while they are made, as it is.

    Args:
        path: A local text file (one document, of any encoding), a name on the hub (a
            document a row), or None for the topics of Python's own ``help``: 0.4
            megabytes of English that every Python has.
        batch_size: Sequences in a batch.
        length: Predictions in a sequence, at least 1.
        n_train: Training sequences to keep, the first ones; all if missing.
        n_val: Validation sequences to keep, the first ones; all if missing.
        n_test: Test sequences to keep, the first ones; all if missing.
        val_share: Share of the text to validate on, if its source does not say.
        test_share: Share of the text to test on, if its source does not say.
        subset: Configuration of a set on the hub that has several.
        column: Of a set on the hub, with the text; rows without any are left out.
        loader: Workers and memory of the loaders.

    Raises:
        FileNotFoundError: If there is no such file or set.
        ConnectionError: If the hub cannot be reached.
        ImportError: If Python's topics are asked for and missing.
        ValueError: If a number is out of range, or the set is not as described.

    Example:
        >>> x, labels = next(iter(Text(batch_size=4, length=16).train_dataloader()))
        >>> x.shape, labels.shape
        (torch.Size([4, 16]), torch.Size([4, 16]))
    """

    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 32,
        *,
        length: int = 128,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        subset: str | None = None,
        column: str = "text",
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader())
        if length < 1:
            raise ValueError(
                f"`length` must be at least 1, got {length}. 128 is a good start."
            )
        check_sizes({"n_train": n_train, "n_val": n_val, "n_test": n_test})
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ValueError(
                "`val_share` and `test_share` must be above 0 and leave something to "
                f"train on, got {val_share} and {test_share}. Take 0.1 each."
            )
        self.path, self.length = path, length
        self.n_train, self.n_val, self.n_test = n_train, n_val, n_test
        self.val_share, self.test_share = val_share, test_share
        self.subset, self.column = subset, column

    @override
    def prepare_data(self) -> None:
        if self._splits is None:  # the Trainer asks again before it tests
            prepare(self.path, self.subset)  # `load` then finds it in the cache

    @override
    def load(self) -> Splits:
        found = read(self.path, self.subset, self.column)
        train, val, test = found.train, found.val, found.test
        if test is None:
            train, test = split(train, 1 - self.test_share)
        if val is None:
            rest = 1.0 if found.test is not None else 1 - self.test_share
            train, val = split(train, 1 - self.val_share / rest)
        return Splits(
            self._set(train, "n_train", self.n_train),
            self._set(val, "n_val", self.n_val),
            {"test": self._set(test, "n_test", self.n_test)},
        )

    def _set(self, documents: Documents, name: str, size: int | None) -> TensorSet:
        there = sum(_rows(document, self.length) for document in documents)
        most = kept(name, size, there, "`val_share`, `test_share`")
        return TensorSet(*sequences(documents, self.length, most), tokens)


def tokens(x: UInt8[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Turn stored bytes into numbers that an embedding takes."""
    return x.long()


def sequences(
    documents: Documents, length: int, most: int | None = None
) -> tuple[UInt8[Tensor, "N T"], Int64[Tensor, "N T"]]:
    r"""Cut documents into sequences of inputs and what comes next.

    Args:
        documents: Each is cut by itself; one of a single byte has nothing to predict.
        length: Predictions in a sequence, ``T``.
        most: Sequences to make, the first ones; all if None.

    Returns:
        Inputs, padded with 0, and labels, padded with -100.

    Example:
        >>> x, labels = sequences([b"abcd"], length=2)
        >>> [bytes(row) for row in x.tolist()], labels.tolist()
        ([b'ab', b'c\x00'], [[98, 99], [100, -100]])
    """
    rows = sum(_rows(document, length) for document in documents)
    total = rows if most is None else min(rows, most)
    x = torch.zeros(total, length, dtype=torch.uint8)
    labels = torch.full((total, length), PADDING)
    flat, flat_labels = x.view(-1), labels.view(-1)  # of the same memory
    start = 0
    for document in documents:
        if start >= len(flat):
            break
        room = _rows(document, length) * length
        if room == 0:
            continue
        count = min(len(document) - 1, len(flat) - start)
        stored = torch.frombuffer(bytearray(document[: count + 1]), dtype=torch.uint8)
        flat[start : start + count] = stored[:-1]
        flat_labels[start : start + count] = stored[1:]
        start += room
    return x, labels


def _rows(document: bytes, length: int) -> int:
    """Count the sequences of a document, the last of them padded."""
    return -(-max(len(document) - 1, 0) // length)
