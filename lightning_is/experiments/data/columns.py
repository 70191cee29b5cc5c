"""The columns of a data set from the hub, found by their types."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

if TYPE_CHECKING:  # `datasets` takes three seconds to import
    from datasets import Dataset  # type: ignore[import-untyped]


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


def labels(data: "Dataset", column: str) -> Int64[Tensor, " N"]:
    """Return all labels of a part."""
    return torch.tensor(data[column][:], dtype=torch.int64)


def check_known(found: Int64[Tensor, " N"], n_classes: int | None, split: str) -> None:
    """Refuse labels that a network with ``n_classes`` outputs cannot name.

    Raises:
        ValueError: If there are any.
    """
    low, high = (int(found.min()), int(found.max())) if len(found) else (0, 0)
    if low < 0 or (n_classes is not None and high >= n_classes):
        most = "on" if n_classes is None else f"to {n_classes - 1}"
        raise ValueError(
            f"Labels must be numbers from 0 {most}, got {low} to {high} in the {split} "
            "split (-1 stands for no label). Set `n_classes` (`inputs.classes` on the "
            "command line) to how many classes there are, or choose a labelled split."
        )


def check_mixed(found: Int64[Tensor, " N"], split: str) -> None:
    """Refuse a split whose head and tail are of different classes.

    Raises:
        ValueError: If it is sorted by class.
    """
    steps = found.diff()
    if bool((steps >= 0).all() and (steps == 0).any() and (steps > 0).any()):
        raise ValueError(
            "The first and the last examples of a split must be of all classes, got "
            f"the {split} split sorted by them. Set `shuffled=True`."
        )


def _only(data: "Dataset", kind: type, what: str, cure: str) -> str:
    found = [name for name, type_ in data.features.items() if isinstance(type_, kind)]
    if len(found) != 1:
        raise ValueError(
            f"HubImages needs exactly one column of {what} ({kind.__name__}), got "
            f"{len(found)}: {found} among {data.column_names}. {cure}"
        )
    return str(found[0])
