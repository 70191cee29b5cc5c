"""Writing a file of results, with all that tells where its numbers come from."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_is.experiments.docs.results import NAME, Results, write

ROOT = Path(__file__).parents[3]
CODE = ("lightning_is", "scripts", "conf")  # what determines results
PACKAGES = ("torch", "lightning", "numpy")
# What says where data and results lie, and nothing of what was done.
PLACES = ("publish", "out", "output_dir")
OPTIONS = ("--publish", "--out")  # the same, with a value in the next word


@dataclass(frozen=True)
class Finding:
    """What a program has to say.

    Args:
        title: Says what was measured.
        columns: Headings of the table.
        rows: Its cells, as many in a row as there are columns.
        note: Explains the table; may be empty.
        values: Numbers that prose may quote, nested by names; finite.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def publish(
    name: str,
    finding: Finding,
    folder: Path = Path("docs"),
    *,
    figure: Path | None = None,
    more: Mapping[str, Path] | None = None,
    command: str | None = None,
    commits: Sequence[str] = (),
) -> Path:
    """Write what a program found where the documents look for it.

    Commit, versions, machine and date are those of this process. Call it where the
    measurement ends: a change of the code since would be taken for that which made it.

    Args:
        name: Of the file, in small letters, digits and underscores.
        finding: The table and the numbers.
        folder: Has the folders ``results`` and ``figures``.
        figure: A picture to show beside, copied with at most 256 colours.
        more: Further ones, likewise, by what their names end in: ``NAME_END.png``.
        command: That found it; the one that began this process if missing.
        commits: Of the code, if parts were found before; that of now if missing.

    Returns:
        The file that was written.

    Raises:
        ValueError: If the name or the folder cannot be, or the finding is none.
    """
    check_target(name, folder)
    results = Results(
        title=finding.title,
        command=command_line(sys.argv) if command is None else command,
        commit=" ".join(dict.fromkeys(commits)) or commit(),
        versions=versions(),
        machine=machine(),
        date=date.today().isoformat(),
        columns=list(finding.columns),
        rows=[list(row) for row in finding.rows],
        note=finding.note,
        values=dict(finding.values),
    )
    path = folder / "results" / f"{name}.json"
    write(results, path)
    if figure is not None:
        _copy(figure, folder / "figures" / f"{name}.png")
    for end, picture in (more or {}).items():
        _copy(picture, folder / "figures" / f"{name}_{end}.png")
    return path


def check_target(name: str, folder: Path = Path("docs")) -> None:
    """Refuse what cannot be published, before it is measured.

    Args:
        name: Of the file, in small letters, digits and underscores.
        folder: Has the folder ``results``.

    Raises:
        ValueError: If the name or the folder cannot be.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"`publish` must be a name of small letters, digits and underscores, got "
            f"{name!r}. Write publish=compare_mnist, say."
        )
    if not (folder / "results").is_dir():
        raise ValueError(
            "Results are published in docs/results of the project, got no such folder "
            f"in {folder.absolute().parent}. Run the program at the root of a clone."
        )


def command_line(words: Sequence[str]) -> str:
    """Return the command that began a program, without what says where things lie.

    Args:
        words: Its arguments, the path of the program first.

    Example:
        >>> command_line(["/home/me/scripts/compare.py", "seeds=[0,1]", "out=here"])
        "python scripts/compare.py 'seeds=[0,1]'"
        >>> command_line(["scripts/bench.py", "limit", "--publish", "bench_limit"])
        'python scripts/bench.py limit'
    """
    program = Path(words[0])
    kept = [
        word
        for option, word in pairwise(words)
        if not (_is_place(word) or option in OPTIONS)
    ]
    return shlex.join(["python", f"{program.parent.name}/{program.name}", *kept])


def _is_place(word: str) -> bool:
    key, _, value = word.lstrip("+").partition("=")
    own = key == "data.path" and Path(value).expanduser().exists()  # or the hub's name
    return own or word in OPTIONS or key in PLACES or key.startswith("hydra.")


def commit(root: Path = ROOT) -> str:
    """Return the commit of the code, ``-dirty`` if changed since; or ``unknown``.

    Documents and results do not count: they determine nothing.

    Args:
        root: Of the clone that holds the code.
    """
    top, head = _git(root, "rev-parse", "--show-toplevel", "HEAD") or ("", "")
    if not top or Path(top).resolve() != root.resolve():
        return "unknown"  # no clone, or one of something else around this
    changed = _git(root, "status", "--porcelain", "--", *CODE)
    return f"{head}-dirty" if changed else head


def _git(root: Path, *words: str) -> list[str]:
    git = shutil.which("git")
    if git is None:
        return []
    command = [git, "-C", str(root), *words]
    done = subprocess.run(  # noqa: S603  our own words
        command, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines() if done.returncode == 0 else []


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def machine() -> str:
    """Return the number of cores and the name of the processor."""
    cores = os.cpu_count() or 1
    return f"{cores} core{'s' * (cores > 1)}, {_processor()}"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")  # Linux, where Python knows but the architecture
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return " ".join(name.split())


def _copy(figure: Path, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    with Image.open(figure) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
