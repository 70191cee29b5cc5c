"""Scikit-learn's handwritten digits: small, bundled, nothing to download."""

import torch
from typing_extensions import override

from lightning_is.experiments.data.conditions import Conditions
from lightning_is.experiments.data.tensors import (
    Loader,
    Splits,
    Standardise,
    TensorDataModule,
    TensorSet,
)


class Digits(TensorDataModule):
    """1797 grey images of 8 x 8 pixels in 10 classes, split 1297 / 200 / 300.

    The split is stratified and the same in every run. Inputs are standardised by all
    1297 training images, whatever the conditions leave of them.

    Args:
        batch_size: Examples in a batch.
        conditions: What is done to classes and labels; nothing if missing.
        loader: Workers and memory of the loaders.

    Example:
        >>> x, y = next(iter(Digits(batch_size=128).train_dataloader()))
        >>> x.shape, y.shape
        (torch.Size([128, 1, 8, 8]), torch.Size([128]))
    """

    def __init__(
        self,
        batch_size: int = 128,
        *,
        conditions: Conditions | None = None,
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader(), conditions)

    @override
    def load(self) -> Splits:
        # Imported here: scikit-learn takes a second that other data need not wait.
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        from sklearn.model_selection import (  # type: ignore[import-untyped]
            train_test_split,
        )

        pixels, labels = load_digits(return_X_y=True)
        rest, test = train_test_split(
            range(len(labels)), test_size=300, stratify=labels, random_state=0
        )
        train, val = train_test_split(
            rest, test_size=200, stratify=labels[rest], random_state=0
        )
        x = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
        y = torch.as_tensor(labels, dtype=torch.int64)
        x = Standardise(x[train].mean(), x[train].std())(x)
        parts = [TensorSet(x[rows], y[rows]) for rows in (train, val, test)]
        return Splits(parts[0], parts[1], {"test": parts[2]})
