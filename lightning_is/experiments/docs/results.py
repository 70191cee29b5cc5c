"""A file of results: what a program found, small enough to be committed.

``docs/results/NAME.json`` holds a table, the numbers that prose may quote, and where
both come from.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

NAME = re.compile(r"[a-z0-9_]+")  # of a file
KEY = re.compile(r"[A-Za-z0-9_-]+")  # of a number, between the dots of its path
# That a command sets: other units would be other numbers in prose than in the command.
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?s?")


@dataclass(frozen=True)
class Results:
    """What a program found, and how.

    Args:
        title: Says what was measured.
        command: That found it, typed at the root of the project.
        commit: Of the code, ``-dirty`` if it was changed, or ``unknown``; several, with
            spaces between, if it was made by parts.
        versions: Of what the code rests on, by name.
        machine: Number of cores and processor.
        date: As ``YYYY-MM-DD``.
        columns: Headings of the table.
        rows: Its cells, as many in a row as there are columns.
        note: Explains the table; may be empty.
        values: Numbers, nested by names; a path with dots leads to each.
    """

    title: str
    command: str
    commit: str
    versions: dict[str, str]
    machine: str
    date: str
    columns: list[str]
    rows: list[list[str]]
    note: str
    values: dict[str, Any]

    def value(self, path: str) -> int | float:
        """Return the number at a path with dots.

        Raises:
            KeyError: If there is none; its message lists the paths that there are.
        """
        set_to = {f"setting.{name}": one for name, one in settings(self.command)}
        known = flat(self.values) | set_to
        if path not in known:
            raise KeyError(", ".join(known) or "none")
        return known[path]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, int | float]:
    """Return all numbers by their paths.

    Example:
        >>> flat({"trim": {"loss": 0.5, "steps": 3}})
        {'trim.loss': 0.5, 'trim.steps': 3}
    """
    found: dict[str, int | float] = {}
    for key, value in values.items():
        path = f"{before}{key}"
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{path}.") if inner else {path: value}
    return found


def settings(command: str) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers that a command sets, seconds without their unit.

    Lists and other units are left out.

    Example:
        >>> dict(settings("python x.py +n=2 lr=1e-3 budget=30s shares=[1] size=4k"))
        {'n': 2, 'lr': 0.001, 'budget': 30}
    """
    for word in shlex.split(command):
        name, _, text = word.partition("=")
        if NUMBER.fullmatch(text):
            digits = text.removesuffix("s")
            whole = digits.lstrip("-").isdigit()
            yield name.lstrip("+"), int(digits) if whole else float(digits)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that exist, as ``values`` of results must.

    Example:
        >>> finite({"loss": 0.5, "uniform": float("nan")})
        {'loss': 0.5}
    """
    return {name: value for name, value in values.items() if isfinite(value)}


def read(path: Path) -> Results:
    """Read a file of results.

    Raises:
        ValueError: If it does not hold what it should; the message names the place.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: Results must be JSON, got {error.msg.lower()}. "
            "Have the program write them anew."
        ) from error
    check(plain, str(path))
    return Results(**plain)


def write(results: Results, path: Path) -> None:
    """Write a file of results, whole or not at all.

    Raises:
        ValueError: If it would not be read again.
    """
    plain = asdict(results)
    check(plain, str(path))
    partial = path.with_suffix(".partial")
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def check(plain: Any, where: str) -> None:
    """Refuse what is no file of results.

    Args:
        plain: As read from JSON.
        where: Begins the message.

    Raises:
        ValueError: If something is missing, unknown or of another kind.
    """
    wanted = [field.name for field in fields(Results)]
    got = list(plain) if isinstance(plain, dict) else type(plain).__name__
    if not isinstance(plain, dict) or set(plain) != set(wanted):
        _refuse(where, f"have the keys {', '.join(wanted)}", got, "name each once")
    for name in ("title", "command", "commit", "machine", "date", "note"):
        if not _is_line(plain[name]):
            _refuse(where, f"have a line of text as `{name}`", plain[name], "quote it")
    _check_date(plain["date"], where)
    _check_command(plain["command"], where)
    versions = plain["versions"]
    if not isinstance(versions, dict) or not all(map(_is_line, versions.values())):
        cure = 'write {"torch": "2.6.0"}'
        _refuse(where, "name `versions` by their packages", versions, cure)
    _check_table(plain["columns"], plain["rows"], where)
    _check_values(plain["values"], where, "values")


def _check_date(text: str, where: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError:
        _refuse(where, "have a `date`", text, "write 2026-01-31")


def _check_command(text: str, where: str) -> None:
    try:
        shlex.split(text)
    except ValueError:
        _refuse(where, "have a `command` for a shell", text, "close its quotes")


def _check_table(columns: Any, rows: Any, where: str) -> None:
    if not _is_row(columns):
        _refuse(where, "have `columns` of text", columns, "list the headings")
    if not isinstance(rows, list):
        _refuse(where, "have a list of `rows`", rows, "list them")
    for number, row in enumerate(rows):
        if not _is_row(row) or len(row) != len(columns):
            rule = f"have {len(columns)} cells of text in each of the `rows`"
            _refuse(f"{where}: row {number}", rule, row, "format the numbers")


def _check_values(values: Any, where: str, path: str) -> None:
    if isinstance(values, dict):
        for key, value in values.items():
            if not KEY.fullmatch(key):
                _refuse(where, f"name `{path}` by letters and digits", key, "rename it")
            _check_values(value, where, f"{path}.{key}")
        return
    number = isinstance(values, (int, float)) and not isinstance(values, bool)
    if path == "values" or not number or not isfinite(values):
        _refuse(where, f"have finite numbers in `{path}`", values, "leave out others")


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and all(map(_is_line, row))


def _is_line(text: Any) -> bool:
    return isinstance(text, str) and "\n" not in text


def _refuse(where: str, rule: str, got: Any, cure: str) -> None:
    cure = cure[0].upper() + cure[1:]
    raise ValueError(f"{where}: Results must {rule}, got {got!r}. {cure}.")
