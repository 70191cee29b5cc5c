"""Labelled images from the Hugging Face hub, or from a local folder in its layout."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from lightning_is.experiments.data.augment import crop_flip
from lightning_is.experiments.data.tensors import (
    Batch,
    Loader,
    Splits,
    Standardise,
    TensorDataModule,
    TensorSet,
)

if TYPE_CHECKING:  # `datasets` takes three seconds to import; only `load` needs it
    from datasets import Dataset, DatasetDict  # type: ignore[import-untyped]


class HubImages(TensorDataModule):
    """Images and class labels, decoded once into memory as bytes.

    The column of images and that of labels are found by their types. Inputs are
    standardised per channel by the training images. Validation is the tail of the
    training split; ``n_train`` and ``n_test`` keep the first examples of the rest.

    Args:
        path: Name on the hub (``ylecun/mnist``, ``uoft-cs/cifar10``) or a local folder.
        batch_size: Examples in a batch.
        n_train: Training examples to keep; all if missing.
        n_val: Examples taken off the end of the training split.
        n_test: Test examples to keep; all if missing.
        label: Column of labels, needed where a set has several.
        augment: Random crop and flip of the training batches.
        loader: Workers and memory of the loaders.

    Raises:
        FileNotFoundError: If there is no such folder or set.
        ConnectionError: If the hub cannot be reached.
        ValueError: If splits, columns or images are not as described.

    Example:
        >>> HubImages("ylecun/mnist", n_train=20_000).batch_size  # nothing is read yet
        128
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 128,
        *,
        n_train: int | None = None,
        n_val: int = 5000,
        n_test: int | None = None,
        label: str | None = None,
        augment: bool = False,
        loader: Loader | None = None,
    ) -> None:
        super().__init__(batch_size, loader or Loader())
        self.path, self.label, self.augment = path, label, augment
        self.n_train, self.n_val, self.n_test = n_train, n_val, n_test
        for name, value, least in (
            ("n_train", n_train, 1),
            ("n_val", n_val, 0),
            ("n_test", n_test, 1),
        ):
            if value is not None and value < least:
                raise ValueError(
                    f"`{name}` must be at least {least}, got {value}. Leave it out to "
                    "keep what there is."
                )

    @override
    def prepare_data(self) -> None:
        fetch(self.path)  # downloads once a machine; `load` then finds it in the cache

    @override
    def load(self) -> Splits:
        source = fetch(self.path)
        missing = {"train", "test"} - set(source)
        if missing:
            raise ValueError(
                f"HubImages needs the splits train and test, got {sorted(source)} in "
                f"{self.path!r}. Choose a set with both."
            )
        train, test = source["train"], source["test"]
        n_rest = max(len(train) - self.n_val, 0)
        rows = {
            "train": train.select(range(min(self.n_train or n_rest, n_rest))),
            "val": train.select(range(n_rest, len(train))),
            "test": test.select(range(min(self.n_test or len(test), len(test)))),
        }
        image, label = image_column(train), label_column(train, self.label)
        x = {name: decode(part, image, name) for name, part in rows.items()}
        scale = standardise_channels(x["train"])
        parts = {
            name: TensorSet(
                x[name], torch.tensor(part[label][:], dtype=torch.int64), scale
            )
            for name, part in rows.items()
        }
        return Splits(parts["train"], parts["val"], {"test": parts["test"]})

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        x, y = batch
        learning = self.trainer is not None and self.trainer.training
        return (crop_flip(x), y) if self.augment and learning else (x, y)


def fetch(path: str) -> "DatasetDict":
    """Open a data set by its name on the hub or its folder, or say what is wrong."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(
            f"`path` must be an existing folder or a name on the hub, got {path!r}, "
            f"and {Path(path).expanduser().resolve()} does not exist. Paths count from "
            f"the directory you stand in: {Path.cwd()}."
        )
    from datasets import load_dataset

    cure = (
        "Check the spelling (a name on the hub is `owner/name`, e.g. ylecun/mnist), or "
        "give `path` a local folder with the same Parquet files."
    )
    try:
        return load_dataset(str(Path(path).expanduser()) if looks_local else path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`path` must be a data set on the hub or a folder that holds one, got "
            f"{path!r}. {cure}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"A data set that is not on this machine needs the network, got {path!r} "
            f"and no answer from the hub. {cure}"
        ) from error


def image_column(data: "Dataset") -> str:
    """Name of the one column of images."""
    from datasets import Image

    return _only(data, Image, "images", "Choose a data set of single images.")


def label_column(data: "Dataset", wanted: str | None) -> str:
    """Name of the column of class labels: the wanted one, or else the only one."""
    from datasets import ClassLabel

    if wanted is not None and wanted not in data.column_names:
        raise ValueError(
            f"`label` must name a column, got {wanted!r}. Columns: {data.column_names}."
        )
    return wanted or _only(data, ClassLabel, "labels", "Choose one with `label=`.")


def _only(data: "Dataset", kind: type, what: str, cure: str) -> str:
    found = [name for name, type_ in data.features.items() if isinstance(type_, kind)]
    if len(found) != 1:
        raise ValueError(
            f"HubImages needs exactly one column of {what} ({kind.__name__}), got "
            f"{len(found)}: {found} among {data.column_names}. {cure}"
        )
    return str(found[0])


def decode(data: "Dataset", column: str, name: str) -> UInt8[Tensor, "N C H W"]:
    """Decode all images into bytes, in channels-last memory format.

    Raises:
        ValueError: If the images differ in size or number of channels.
    """
    import datasets
    from PIL import Image
    from rich.progress import track

    # Decoding the raw bytes here takes half the time of the library's own decoding.
    encoded = data.cast_column(column, datasets.Image(decode=False))
    images: list[np.ndarray] = []
    for cell in track(encoded[column], f"decoding {name} images", transient=True):
        image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
        images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"HubImages needs images of one size and kind, got {len(shapes)}: "
            f"{sorted(shapes)[:3]} in the {name} split. Resize the set beforehand."
        )
    stacked = (
        torch.from_numpy(np.stack(images)) if images else torch.empty(0, 1, 1).byte()
    )
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def standardise_channels(x: UInt8[Tensor, "N C H W"]) -> Standardise:
    """Mean and standard deviation of each channel, without a float copy of the set."""
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for part in torch.split(x, 4096):
        values = part.double()
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = total / max(x[:, 0].numel(), 1)
    std = (square - mean**2).clamp(min=1e-6).sqrt()

    # One value a pixel, in the layout of the images: ten times faster to subtract than
    # one value a channel, which PyTorch broadcasts along the innermost dimension.
    def spread(values: Tensor) -> Tensor:
        return values.float().expand(*x.shape[2:], -1).contiguous().permute(2, 0, 1)

    return Standardise(spread(mean), spread(std))
