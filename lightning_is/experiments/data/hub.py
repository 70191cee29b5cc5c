"""Labelled images from the Hugging Face hub, or from a local folder in its layout."""

from dataclasses import replace
from typing import TYPE_CHECKING
from warnings import warn

import torch
from typing_extensions import override

from lightning_is.experiments.data.augment import crop_flip
from lightning_is.experiments.data.columns import (
    check_known,
    check_mixed,
    image_column,
    label_column,
    labels,
)
from lightning_is.experiments.data.conditions import Conditions
from lightning_is.experiments.data.decoding import (
    ImageFormat,
    by_channels,
    decode,
    standardise_channels,
)
from lightning_is.experiments.data.places import data_set, local_folder
from lightning_is.experiments.data.processor import Processor, read_processor
from lightning_is.experiments.data.sizes import check_sizes, kept
from lightning_is.experiments.data.tensors import (
    Batch,
    Loader,
    Splits,
    TensorDataModule,
    TensorSet,
)

if TYPE_CHECKING:  # `datasets` takes three seconds to import; only `load` needs it
    from datasets import Dataset, DatasetDict  # type: ignore[import-untyped]


class HubImages(TensorDataModule):
    """Images and class labels, decoded once into memory as bytes.

    The column of images and that of labels are found by their types. Inputs are
    standardised per channel, by the training images before rare classes are thinned,
    or as a pretrained network was trained. Validation is the tail of the training
    split; ``n_train`` and ``n_test`` keep the first examples of the rest, of the
    classes that are kept.

    Args:
        path: Name on the hub (``ylecun/mnist``, ``uoft-cs/cifar10``) or a local folder,
            with Parquet files or with images, one folder a class in ``train/`` and
            ``test/``.
        batch_size: Examples in a batch.
        n_train: Training examples to keep; all if missing.
        n_val: Examples taken off the end of the training split, half of it at most
            unless ``n_train`` is given.
        n_test: Test examples to keep; all if missing.
        n_classes: Labels must be below; not checked if missing.
        label: Column of labels, needed where a set has several.
        test_split: Name of the test split, another one than ``train``.
        subset: Configuration of a set that has several.
        shuffled: Shuffle the splits, the same way in every run, before they are
            divided: for sets that are sorted by class, as folders of images are.
        image_size: Height and width to bring all images to: the shorter side is
            resized, the middle cut out. They must be alike if missing.
        channels: 1 makes images grey, 3 coloured; they must be alike if missing.
        processor: Checkpoint, by name or folder, to normalise and resize as; training
            images standardise, and Pillow's bicubic filter resizes, if missing.
        augment: Random crop and flip of the training batches.
        conditions: What is done to classes and labels; nothing if missing.
        loader: Workers and memory of the loaders.

    Raises:
        FileNotFoundError: If there is no such folder, set or checkpoint.
        ConnectionError: If the hub cannot be reached.
        ValueError: If splits, sizes, columns, labels or images are not as described.

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
        n_classes: int | None = None,
        label: str | None = None,
        test_split: str = "test",
        subset: str | None = None,
        shuffled: bool = False,
        image_size: int | None = None,
        channels: int | None = None,
        processor: str | None = None,
        augment: bool = False,
        conditions: Conditions | None = None,
        loader: Loader | None = None,
    ) -> None:
        self.conditions = conditions or Conditions()
        super().__init__(batch_size, loader or Loader(), self.conditions)
        self.path, self.subset, self.label = path, subset, label
        self.augment = augment
        self.n_train, self.n_val, self.n_test = n_train, n_val, n_test
        self.test_split, self.processor = test_split, processor
        self.form = ImageFormat(image_size, channels)
        self.n_classes, self.shuffled = n_classes, shuffled
        check_sizes({"n_train": n_train, "n_val": n_val, "n_test": n_test})
        if test_split == "train":
            raise ValueError(
                "`test_split` must be another split than the one to train on, got "
                "'train'. Name another, or divide the files into train and test."
            )

    @override
    def prepare_data(self) -> None:
        if self._splits is None:  # the Trainer asks again before it tests
            # Downloads once a machine; `load` finds it in the cache.
            fetch(self.path, self.subset)

    @override
    def load(self) -> Splits:
        source, processor = self._source(), self._read_processor()
        image = image_column(source["train"])
        label = label_column(source["train"], self.label)
        rows = self._rows(source, label)
        if processor is not None:
            crop, resample = processor.crop, processor.resample
            self.form = replace(self.form, crop=crop, resample=resample)
        x = {name: decode(part, image, name, self.form) for name, part in rows.items()}
        if processor is None:
            scale = standardise_channels(x["train"])
        else:
            scale = by_channels(processor.mean, processor.std, x["train"])
        parts = {
            name: TensorSet(x[name], labels(part, label, name), scale)
            for name, part in rows.items()
        }
        return Splits(parts["train"], parts["val"], {"test": parts["test"]})

    def _source(self) -> "DatasetDict":
        source = fetch(self.path, self.subset)
        missing = {"train", self.test_split} - set(source)
        if missing:
            raise ValueError(
                f"HubImages needs the splits train and {self.test_split}, got "
                f"{sorted(source)} in {self.path!r}. Name what to test on by "
                "`test_split=`, or divide the files into train and test."
            )
        return source

    def _read_processor(self) -> Processor | None:
        """Read what a pretrained network expects of its images, if there is one."""
        found = None if self.processor is None else read_processor(self.processor)
        if found is None and self.processor is not None:
            warn(
                "A pretrained network expects images normalised as it was trained on, "
                f"got {self.processor!r}, which does not say how. The training images "
                "standardise instead; `processor=None` asks for that.",
                stacklevel=2,
            )
        return found

    def _rows(self, source: "DatasetDict", label: str) -> dict[str, "Dataset"]:
        """Choose what to decode: of the classes that are kept, as many as asked for."""
        self.conditions.check(labels(source["train"], label, "train"))
        train, test = (
            self._picked(source, split, label) for split in ("train", self.test_split)
        )
        n_rest = self._rest(len(train))
        return {
            "train": train.select(
                range(kept("n_train", self.n_train, n_rest, "`n_val`, `classes`"))
            ),
            "val": train.select(range(n_rest, len(train))),
            "test": test.select(
                range(kept("n_test", self.n_test, len(test), "`classes`"))
            ),
        }

    def _rest(self, size: int) -> int:
        """Count what validation leaves of the training split."""
        rest = size - self.n_val
        if rest < (self.n_val if self.n_train is None else 1):
            raise ValueError(
                "Validation must leave half of the training split to train on, or "
                f"`n_train` say that fewer are meant, got n_val={self.n_val} of {size} "
                f"examples in {self.path!r}. Lower `n_val`."
            )
        return rest

    def _picked(self, source: "DatasetDict", split: str, label: str) -> "Dataset":
        """Pick the examples of the classes that are kept; shuffle them if asked to."""
        found = labels(source[split], label, split)
        rows = self.conditions.rows(found)
        whole = split == self.test_split and (self.n_test or len(rows)) >= len(rows)
        if not self.shuffled and not whole:
            check_mixed(found[rows], split)
        chosen = self.conditions.classes
        check_known(
            found[rows] if chosen is None else torch.arange(len(chosen)),
            self.n_classes,
            split,
        )
        if self.shuffled:
            generator = torch.Generator().manual_seed(0)
            rows = rows[torch.randperm(len(rows), generator=generator)]
        same = chosen is None and not self.shuffled
        return source[split] if same else source[split].select(rows.tolist())

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        x, y = batch
        learning = self.trainer is not None and self.trainer.training
        return (crop_flip(x), y) if self.augment and learning else (x, y)


def fetch(path: str, subset: str | None = None) -> "DatasetDict":
    """Open a set of images by its name on the hub or its folder, or say what is wrong.

    Args:
        path: The name or the folder.
        subset: Configuration of a set that has several.
    """
    folder = local_folder(path)
    return data_set(
        path if folder is None else str(folder),
        subset,
        "Check the spelling (a name on the hub is `owner/name`, e.g. ylecun/mnist), or "
        "give `path` a local folder with the same Parquet files.",
    )
