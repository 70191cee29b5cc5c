"""What a comparison leaves behind: its tables, on the screen and as Markdown."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from lightning_is.experiments.compare.table import Row, cells, columns, failed


def headings(rows: Sequence[Row], title: str) -> list[tuple[str, list[Row]]]:
    """Split the rows by budget, each with its heading."""
    parts = [(key, [*part]) for key, part in groupby(rows, key=lambda row: row.share)]
    if len(parts) == 1:
        return [(title, parts[0][1])]
    return [(f"{title}, {100 * share:g}% of it", part) for share, part in parts]


def print_rows(rows: Sequence[Row], title: str, note: str) -> None:
    """Print a table for each budget."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 190  # a file is as wide as it takes
    for heading, part in headings(rows, title):
        names = columns(part)
        table = Table(*names, title=escape(heading), box=SIMPLE_HEAD)
        table.pad_edge = table.show_edge = False
        table.columns[0].min_width = max(len(row.arm) for row in part)
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for row in part:
            table.add_row(*(escape(cell) for cell in cells(row, names)))
        console.print(table)
    console.print(note, style="italic", markup=False, highlight=False)
    for line in failed(rows):
        console.print(line, style="red", markup=False, highlight=False)


def write_markdown(rows: Sequence[Row], title: str, note: str, path: Path) -> None:
    """Write a table for each budget, as Markdown."""
    parts = []
    for heading, part in headings(rows, title):
        names = columns(part)
        lines = [names, ["---", *["---:"] * (len(names) - 1)]]
        lines += [cells(row, names) for row in part]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"# {heading}", body]
    path.write_text("\n\n".join([*parts, note, *failed(rows)]) + "\n", encoding="utf-8")
