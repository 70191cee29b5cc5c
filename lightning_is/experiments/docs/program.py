"""Filling in the README and the pages of ``docs/``."""

from functools import cache
from pathlib import Path

from lightning_is.experiments.docs.markers import filled
from lightning_is.experiments.docs.results import Results, read


def pages(root: Path) -> list[Path]:
    """List the pages whose numbers are written by a program."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def fill(root: Path, *, check: bool = False) -> list[str]:
    """Write the numbers of ``docs/results`` where the pages ask for them.

    Nothing is written unless every page can be.

    Args:
        root: Of the project.
        check: Only compare.

    Returns:
        What differed, one line each, with file and line.

    Raises:
        ValueError: If a marker cannot be filled in, or a file of results is none.
    """
    folder = root / "docs" / "results"

    @cache
    def look_up(name: str) -> Results:
        path = folder / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
            raise LookupError(f"There are: {known or 'none'}.")
        return read(path)

    texts: dict[Path, str] = {}
    differences: list[str] = []
    for page in pages(root):
        where = page.relative_to(root).as_posix()
        text, changes = filled(page.read_text(encoding="utf-8"), where, look_up)
        differences += [f"{where}:{line}: {marker}" for line, marker in changes]
        if changes:
            texts[page] = text
    if not check:
        for page, text in texts.items():
            page.write_text(text, encoding="utf-8")
    return differences
