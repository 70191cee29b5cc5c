"""Text, byte by byte: sequences of one length, the last of each document padded."""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from typing_extensions import override

from lightning_is.experiments.data.documents import Documents, Parts, read, split
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
    reaches from one part into another. All of it lies in memory, at nine bytes a byte.

    Args:
        path: A local text file (one document, of any encoding), a name on the hub (a
            document a row), or None for the topics of Python's own ``help``: 0.4
            megabytes of English that every Python has.
        batch_size: Sequences in a batch.
        length: Predictions in a sequence, at least 1.
        n_train: Training sequences to keep, the first ones; all if missing.
        val_share: Share of the text to validate on, if its source does not say.
        test_share: Share of the text to test on, if its source does not say.
        subset: Configuration of a set on the hub that has several.
        column: Of a set on the hub, with the text.
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
        val_share: float = 0.1,
        test_share: float = 0.1,
        subset: str | None = None,
        column: str = "text",
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader())
        if length < 1 or (n_train is not None and n_train < 1):
            raise ValueError(
                "`length` and `n_train` must be at least 1, got "
                f"length={length} and n_train={n_train}. A length of 128 is a good "
                "start; leave `n_train` out to keep what there is."
            )
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ValueError(
                "`val_share` and `test_share` must be above 0 and leave something to "
                f"train on, got {val_share} and {test_share}. Take 0.1 each."
            )
        self.path, self.length, self.n_train = path, length, n_train
        self.val_share, self.test_share = val_share, test_share
        self.subset, self.column = subset, column

    @override
    def prepare_data(self) -> None:
        self._read()  # downloads once a machine; `load` then finds it in the cache

    @override
    def load(self) -> Splits:
        found = self._read()
        train, val, test = found.train, found.val, found.test
        if test is None:
            train, test = split(train, 1 - self.test_share)
        if val is None:
            rest = 1.0 if found.test is not None else 1 - self.test_share
            train, val = split(train, 1 - self.val_share / rest)
        return Splits(
            self._set(train, self.n_train),
            self._set(val),
            {"test": self._set(test)},
        )

    def _read(self) -> Parts:
        return read(self.path, self.subset, self.column)

    def _set(self, documents: Documents, most: int | None = None) -> TensorSet:
        x, labels = sequences(documents, self.length)
        return TensorSet(x[:most], labels[:most], tokens)


def tokens(x: UInt8[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Turn stored bytes into numbers that an embedding takes."""
    return x.long()


def sequences(
    documents: Documents, length: int
) -> tuple[UInt8[Tensor, "N T"], Int64[Tensor, "N T"]]:
    r"""Cut documents into sequences of inputs and what comes next.

    Args:
        documents: Each is cut by itself; one of a single byte has nothing to predict.
        length: Predictions in a sequence, ``T``.

    Returns:
        Inputs, padded with 0, and labels, padded with -100.

    Example:
        >>> x, labels = sequences([b"abcd"], length=2)
        >>> [bytes(row) for row in x.tolist()], labels.tolist()
        ([b'ab', b'c\x00'], [[98, 99], [100, -100]])
    """
    inputs = [torch.empty(0, length, dtype=torch.uint8)]
    labels = [torch.empty(0, length, dtype=torch.int64)]
    for document in documents:
        count = len(document) - 1
        rows = -(-count // length)
        if rows < 1:
            continue
        stored = torch.frombuffer(bytearray(document), dtype=torch.uint8)
        x = torch.zeros(rows * length, dtype=torch.uint8)
        y = torch.full((rows * length,), PADDING)
        x[:count], y[:count] = stored[:-1], stored[1:].long()
        inputs.append(x.view(rows, length))
        labels.append(y.view(rows, length))
    return torch.cat(inputs), torch.cat(labels)
