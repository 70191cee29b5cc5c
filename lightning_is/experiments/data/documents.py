"""Where text comes from: as documents of bytes, in parts to learn and to test on."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Documents: TypeAlias = Sequence[bytes]

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PARAGRAPHS = re.compile(r"\n\s*\n")


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
        column: Of a set on the hub, with the text.

    Raises:
        FileNotFoundError: If it is neither.
        ConnectionError: If the hub cannot be reached.
        ImportError: If this Python came without its topics.
        ValueError: If a set on the hub has no such column, or no training split.
    """
    if path is None:
        return Parts(python_topics())
    if Path(path).expanduser().is_file():
        return Parts([Path(path).expanduser().read_bytes()])
    if HUB_NAME.fullmatch(path):
        return from_hub(path, subset, column)
    raise FileNotFoundError(
        f"`path` must be an existing text file or a name on the hub, got {path!r}, and "
        f"{Path(path).expanduser().resolve()} is no file. Paths count from the "
        f"directory you stand in: {Path.cwd()}."
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
    from datasets import load_dataset  # type: ignore[import-untyped]

    cure = (
        "Check the spelling (`owner/name`, and `subset` for a set that has several), "
        "or give `path` a local text file."
    )
    try:
        found = load_dataset(path, subset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`path` must be a text file or a data set on the hub, got {path!r}, which "
            f"is neither. {cure}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"A data set that is not on this machine needs the network, got {path!r} "
            f"and no answer from the hub. {cure}"
        ) from error
    if "train" not in found or column not in found["train"].column_names:
        has = {name: part.column_names for name, part in found.items()}
        raise ValueError(
            f"A set of texts needs a split `train` with a column {column!r}, got {has} "
            f"in {path!r}. Name the column of the text: `column=`."
        )
    rows = {
        name: [text.encode() for text in part[column][:] if text.strip()]
        for name, part in found.items()
        if name in ("train", "validation", "test")
    }
    return Parts(rows["train"], rows.get("validation"), rows.get("test"))


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
