"""Markers in Markdown: what stands between two comments is written by a program.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, each in a line of
its own; several names put the rows of several results into one table. With ``text`` in
place of ``table``, one of a single column is shown as lines that a program printed. A
number stands between ``<!-- n: NAME.path.to.value:.2f -->`` and ``<!-- / -->``, within
a line; what follows the colon is a format of Python's. Code shows markers as they are.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from lightning_is.experiments.docs.results import Results

LookUp = Callable[[str], Results]
"""Returns the results of a name, or raises a `LookupError` that says what there is."""

_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_CODE = re.compile(
    r"^ {0,3}(```+|~~~+)[^\n]*\n.*?(?:^ {0,3}\1[^\n]*$|\Z)|`[^`\n]+`",
    re.DOTALL | re.MULTILINE,
)
_CLOSES = {"table": "end", "text": "end", "n": "/"}


class MarkerError(ValueError):
    """A marker that cannot be filled in."""


class Change(NamedTuple):
    """A marker whose text is another than its results give.

    Attributes:
        line: Where it begins.
        marker: What it asks for.
    """

    line: int
    marker: str


class _Mark(NamedTuple):
    """A comment that is half of a marker."""

    start: int
    end: int
    kind: str  # table, text, n, end or /
    argument: str


def filled(text: str, where: str, look_up: LookUp) -> tuple[str, list[Change]]:
    """Fill in every marker of a page.

    Args:
        text: The page, in Markdown.
        where: Its name, which begins messages.
        look_up: Finds results.

    Returns:
        The page, and what changed in it.

    Raises:
        MarkerError: If a marker cannot be filled in; its message begins with file and
            line.
    """
    parts: list[str] = []
    changes: list[Change] = []
    done = 0
    for opening, closing in _pairs(text, where):
        place = f"{where}:{_line(text, opening.start)}"
        before = text[opening.end : closing.start]
        after = _RENDERS[opening.kind](text, opening, closing, look_up, place)
        if after != before:
            name = f"{opening.kind}: {opening.argument}"
            changes.append(Change(_line(text, opening.start), name))
        parts += [text[done : opening.end], after]
        done = closing.start
    return "".join([*parts, text[done:]]), changes


def _pairs(text: str, where: str) -> Iterator[tuple[_Mark, _Mark]]:
    """Each beginning of a marker, with its end."""
    opening: _Mark | None = None
    for mark in _marks(text, where):
        if opening is None and mark.kind not in _CLOSES:
            raise _lone(text, where, mark, "no beginning")
        if opening is not None and mark.kind != _CLOSES[opening.kind]:
            got = f"then <!-- {mark.kind} --> in line {_line(text, mark.start)}"
            raise _lone(text, where, opening, got)
        if opening is None:
            opening = mark
        else:
            yield opening, mark
            opening = None
    if opening is not None:
        raise _lone(text, where, opening, "then the end of the page")


def _lone(text: str, where: str, mark: _Mark, got: str) -> MarkerError:
    return MarkerError(
        f"{where}:{_line(text, mark.start)}: A marker must begin and end, <!-- table: "
        "NAME --> and <!-- text: NAME --> by <!-- end -->, <!-- n: NAME.value --> by "
        f"<!-- / -->, got {mark.kind!r} and {got}. Add the other half, or delete it."
    )


def _marks(text: str, where: str) -> Iterator[_Mark]:
    # As long as before, so that positions stay.
    plain = _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    last = 0
    for comment in _COMMENT.finditer(plain):
        last = comment.end()
        kind, colon, argument = " ".join(comment[1].split()).partition(":")
        if kind in _CLOSES if colon else kind in _CLOSES.values():
            yield _Mark(comment.start(), comment.end(), kind, argument.strip())
    if "<!--" in plain[last:]:
        line = _line(text, plain.index("<!--", last))
        raise MarkerError(
            f"{where}:{line}: A comment must end, got <!-- without -->. Add it."
        )


def _table(
    text: str, opening: _Mark, closing: _Mark, look_up: LookUp, place: str
) -> str:
    _check_alone(text, opening, closing, place)
    found = [_looked_up(look_up, name, place) for name in opening.argument.split()]
    columns = {tuple(results.columns) for results in found}
    if len(columns) != 1 or not found[0].columns:
        shown = " and ".join(map(str, sorted(columns))) or "no name"
        raise MarkerError(
            f"{place}: A table needs results with the same columns, and some, got "
            f"{shown}. Give each table its own marker."
        )
    return f"\n\n{markdown(found)}\n\n"


def _text(
    text: str, opening: _Mark, closing: _Mark, look_up: LookUp, place: str
) -> str:
    _check_alone(text, opening, closing, place)
    found = _looked_up(look_up, opening.argument, place)
    if len(found.columns) != 1:
        raise MarkerError(
            f"{place}: A text needs results with one column, its lines, got "
            f"{found.columns}. Show others as a table."
        )
    lines = "\n".join(line for (line,) in found.rows)
    return f"\n\n```text\n{lines}\n```\n\n{origin(found)}\n\n"


def markdown(found: list[Results]) -> str:
    """Write one table with the rows of several results, and where each comes from."""
    rule = ["---", *["---:"] * (len(found[0].columns) - 1)]
    rows = chain.from_iterable(results.rows for results in found)
    lines = [found[0].columns, rule, *rows]
    table = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    notes = dict.fromkeys(results.note for results in found if results.note)
    origins = (origin(results) for results in found)
    return "\n\n".join([table, *notes, "\\\n".join(origins)])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def origin(results: Results) -> str:
    """Say what made results."""
    at = " and ".join(map(_commit, results.commit.split()))
    versions = (f"{name} {number}" for name, number in results.versions.items())
    rest = [results.date, *versions, results.machine]
    return f"{results.title}: `{results.command}` at {at}; {', '.join(rest)}."


def _commit(name: str) -> str:
    commit, dirty, _ = name.partition("-dirty")
    if commit == "unknown":
        return "an unknown commit"
    return f"commit `{commit[:10]}`{' with changes' if dirty else ''}"


def _check_alone(text: str, opening: _Mark, closing: _Mark, place: str) -> None:
    if not (_alone(text, opening) and _alone(text, closing)):
        raise MarkerError(
            f"{place}: The markers of a table or a text must stand in lines of their "
            "own, got something beside them. Break the lines."
        )


def _alone(text: str, mark: _Mark) -> bool:
    before, after = text[: mark.start].rpartition("\n"), text[mark.end :].split("\n")
    return not before[2].strip() and not after[0].strip()


def _number(
    text: str, opening: _Mark, closing: _Mark, look_up: LookUp, place: str
) -> str:
    begins_line = not text[: opening.start].rpartition("\n")[2].strip()
    if begins_line or "\n" in text[opening.end : closing.start]:
        raise MarkerError(
            f"{place}: The marker of a number must stand within one line, and not "
            "begin it, where Markdown takes what follows for HTML, got one that does "
            "not. Break the line elsewhere."
        )
    path, _, spec = opening.argument.partition(":")
    name, _, value = path.strip().partition(".")
    try:
        number = _looked_up(look_up, name, place).value(value)
    except KeyError as error:
        raise MarkerError(
            f"{place}: A marker must name one of the values of its results, got "
            f"{value!r} of {name!r}. There are: {error.args[0]}."
        ) from error
    try:
        return format(number, spec.strip())
    except ValueError as error:
        raise MarkerError(
            f"{place}: The format of a number must be one of Python's, got "
            f"{spec.strip()!r} for {number}: {error}. Write :.2f, :.0% or :d, say."
        ) from error


_RENDERS = {"table": _table, "text": _text, "n": _number}


def _looked_up(look_up: LookUp, name: str, place: str) -> Results:
    try:
        return look_up(name)
    except LookupError as error:
        raise MarkerError(
            f"{place}: A marker must name results that there are, got {name!r}. "
            f"{error.args[0]}"
        ) from error


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
