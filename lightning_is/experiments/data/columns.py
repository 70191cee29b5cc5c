"""The columns of a data set from the hub, found by their types."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    """Name of the column of class labels: the wanted one, or else the only one.

    Raises:
        ValueError: If there is none such, or what is wanted holds no whole numbers.
    """
    from datasets import ClassLabel

    if wanted is None:
        return _only(data, ClassLabel, "labels", "Choose one with `label=`.")
    if wanted not in data.column_names:
        raise ValueError(
            f"`label` must name a column, got {wanted!r}. Columns: {data.column_names}."
        )
    kind = data.features[wanted]
    if not isinstance(kind, ClassLabel) and not _is_value(kind, ("int", "uint")):
        raise ValueError(
            "`label` must name a column of whole numbers (ClassLabel or integers), got "
            f"{wanted!r} of the type {kind}. Name another of {data.column_names}, or "
            "number the classes."
        )
    return wanted


def labels(data: "Dataset", column: str, split: str) -> Int64[Tensor, " N"]:
    """Return all labels of a part.

    Raises:
        ValueError: If an example has none.
    """
    found = data[column][:]
    missing = sum(label is None for label in found)
    if missing:
        raise ValueError(
            f"Every example needs a label, got {missing} of {len(found)} without one "
            f"in the column {column!r} of the {split} split. Choose a labelled split "
            "or another column (`label=`), or remove them."
        )
    return torch.tensor(found, dtype=torch.int64)


def is_text(data: "Dataset", column: str) -> bool:
    """Tell whether there is such a column, and of text."""
    kind = data.features.get(column)
    return _is_value(kind, ("string", "large_string"))


def texts(data: "Dataset", column: str) -> Iterator[str]:
    """Return a column of text row by row, without those that hold none.

    Never more than a few of them are in memory.
    """
    for some in data.select_columns(column).iter(batch_size=10_000):
        yield from (text for text in some[column] if text and text.strip())


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

    So it is where every class lies in one piece, in whatever order, or where labels
    change from one example to the next less than a tenth as often as by chance.

    Raises:
        ValueError: If it is sorted like that.
    """
    counts = torch.unique(found, return_counts=True)[1].double()
    classes, changes = len(counts), int((found.diff() != 0).sum())
    if classes < 2:
        return
    by_chance = len(found) * (1 - float((counts / len(found)).square().sum()))
    in_pieces = changes < classes < len(found)
    if in_pieces or changes < 0.1 * by_chance:
        raise ValueError(
            "The first and the last examples of a split must be of all classes, got "
            f"the {split} split sorted by them: its {len(found)} labels of {classes} "
            f"classes change {changes} times. Set `shuffled=True`."
        )


def _is_value(kind: Any, names: tuple[str, ...]) -> bool:
    """Tell whether a column holds plain values of a type so called."""
    from datasets import Value

    return isinstance(kind, Value) and str(kind.dtype).startswith(names)


def _only(data: "Dataset", kind: type, what: str, cure: str) -> str:
    found = [name for name, type_ in data.features.items() if isinstance(type_, kind)]
    if len(found) != 1:
        raise ValueError(
            f"HubImages needs exactly one column of {what} ({kind.__name__}), got "
            f"{len(found)}: {found} among {data.column_names}. {cure}"
        )
    return str(found[0])
