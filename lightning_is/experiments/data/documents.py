"""Where text comes from: as documents of bytes, in parts to learn and to test on."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lightning_is.experiments.data.columns import is_text, texts
from lightning_is.experiments.data.places import data_set

if TYPE_CHECKING:  # `datasets` takes three seconds to import
    from datasets import DatasetDict  # type: ignore[import-untyped]

Documents: TypeAlias = Sequence[bytes]

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PARAGRAPHS = re.compile(r"\n\s*\n")
SPLITS = ("train", "validation", "test")  # of a set on the hub; others are not read


@dataclass(frozen=True)
class Parts:
    """Documents by what they are for; None if the source leaves that open."""

    train: Documents
    val: Documents | None = None
    test: Documents | None = None


def read(path: str | None, subset: str | None, column: str) -> Parts:
    """Read text from wherever it is.

    Args:
        path: A local file, one document of whatever bytes it has; a name on the hub,
            a document for each row; or None for the topics of Python's ``help``.
        subset: Configuration of a set on the hub that has several.
        column: Of a set on the hub, with the text; rows without any are left out.

    Raises:
        FileNotFoundError: If it is neither.
        ConnectionError: If the hub cannot be reached.
        ImportError: If this Python came without its topics.
        ValueError: If a set on the hub has no such column of text, or no training
            split.
    """
    if path is None:
        return Parts(python_topics())
    file = local_file(path)
    return Parts([file.read_bytes()]) if file else from_hub(path, subset, column)


def prepare(path: str | None, subset: str | None) -> None:
    """Download what `read` would read from the hub; what is local needs nothing.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a set.
        ConnectionError: If the hub cannot be reached.
    """
    if path is not None and local_file(path) is None:
        fetch(path, subset)


def local_file(path: str) -> Path | None:
    """Return the file that is meant; None for a name on the hub.

    Raises:
        FileNotFoundError: If it is neither.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if HUB_NAME.fullmatch(path):
        return None
    raise FileNotFoundError(
        f"`path` must be an existing text file or a name on the hub, got {path!r}, and "
        f"{file.resolve()} is no file. Paths count from the directory you stand in: "
        f"{Path.cwd()}."
    )


def python_topics() -> Documents:
    """Return what Python's ``help`` knows of the language: English, in all Pythons.

    Topics repeat one another, as the page on compound statements has all of them. Only
    the first of equal paragraphs is kept, or parts cut from this text would share them.
    The text differs a little from one version of Python to the next.

    Raises:
        ImportError: If this Python came without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "The default text is that of Python's `help`, got a Python without the "
            "module `pydoc_data`. Give `path` a text file of yours, or install the "
            "whole of Python's standard library."
        ) from error
    return [text.encode() for text in without_repeats(topics.values())]


def without_repeats(texts: Iterable[str]) -> list[str]:
    r"""Leave out every paragraph that came before, however its lines are broken.

    Args:
        texts: Of paragraphs with blank lines between them.

    Returns:
        As many texts, but for those of which nothing is left.

    Example:
        >>> without_repeats(["one two\n\nthree", "one\n two\n\nfour", "four"])
        ['one two\n\nthree', 'four']
    """
    seen: set[str] = set()
    kept = []
    for text in texts:
        paragraphs = {" ".join(p.split()): p for p in PARAGRAPHS.split(text)}
        new = [p for key, p in paragraphs.items() if key and key not in seen]
        seen.update(paragraphs)
        kept.append("\n\n".join(new))
    return [text for text in kept if text]


def from_hub(path: str, subset: str | None, column: str) -> Parts:
    """Read a set of the Hugging Face hub, with the splits that it has."""
    found = fetch(path, subset)
    used = {name: found[name] for name in SPLITS if name in found}
    if "train" not in used or not all(is_text(part, column) for part in used.values()):
        has = {name: dict(part.features) for name, part in found.items()}
        raise ValueError(
            f"A set of texts needs a split `train`, and text in the column {column!r} "
            f"of every split, got {has} in {path!r}. Name the column of the text: "
            "`column=`."
        )
    rows = {
        name: [text.encode() for text in texts(part, column)]
        for name, part in used.items()
    }
    return Parts(rows["train"], rows.get("validation"), rows.get("test"))


def fetch(path: str, subset: str | None) -> "DatasetDict":
    """Open a set of texts of the hub, or say what is wrong."""
    return data_set(
        path,
        subset,
        "Check the spelling (`owner/name`, and `subset` for a set that has several), "
        "or give `path` a local text file.",
    )


def split(documents: Documents, share: float) -> tuple[Documents, Documents]:
    """Cut a row of documents in two, the first with a share of the bytes.

    One document at most is cut itself; no byte is in both.

    Example:
        >>> split([b"abcd", b"efgh"], 0.75)
        ([b'abcd', b'ef'], [b'gh'])
    """
    left = round(share * sum(len(document) for document in documents))
    head, tail = [], []
    for document in documents:
        head.append(document[:left])
        tail.append(document[left:])
        left = max(left - len(document), 0)
    return [d for d in head if d], [d for d in tail if d]
