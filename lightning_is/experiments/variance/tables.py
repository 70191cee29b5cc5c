"""The tables of a measured run: for readers, and for programs."""

import csv
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from lightning_is.experiments.variance.draws import ORACLE, SCORES, SELECTIONS, UNIFORM
from lightning_is.experiments.variance.record import (
    Measurement,
    Ratio,
    pooled_errors,
    pooled_points,
)

COLUMNS = (
    "steps",
    "loss",
    "drawn by",
    "multinomial",
    "expected",
    "systematic",
    "distance, multinomial",
    "distance, systematic",
    "squared error",
)


def cells(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """Make the rows of the table, as ``COLUMNS``: one for each step and score."""
    rows = []
    for found in measurements:
        first = str(found.step), brief(found.loss)
        for score in SCORES:
            rows.append((*first, *_of_score(found, score)))
            first = "", ""  # said once
    return rows


def _of_score(found: Measurement, score: str) -> tuple[str, ...]:
    multinomial, systematic = SELECTIONS
    return (
        score.replace("_", " "),
        ranged(found.variance(multinomial, score)),
        brief(found.expected(multinomial, score)),
        ranged(found.variance(systematic, score)),
        brief(found.distance(multinomial, score).mean),
        brief(found.distance(systematic, score).mean),
        brief(found.errors[score]),
    )


def brief(value: float) -> str:
    """Write a number in two digits; a dash where there is none.

    Example:
        >>> brief(0.0412), brief(1.3e-5), brief(117.2), brief(float("nan"))
        ('0.041', '1.3e-05', '117', '-')
    """
    if isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def ranged(ratio: Ratio) -> str:
    """Write a mean and its range.

    Example:
        >>> ranged(Ratio(0.5, 0.25, 0.75))
        '0.5 (0.25..0.75)'
    """
    if isnan(ratio.mean):
        return "-"
    return f"{brief(ratio.mean)} ({brief(ratio.low)}..{brief(ratio.high)})"


def note(batch_size: int, examples: int, *, repeats: int) -> str:
    """Say what the columns are."""
    return (
        f"multinomial, systematic: variance of the gradient of {batch_size} drawn of "
        f"{examples} examples about that of them all, in the exact one of uniform "
        f"draws, with replacement and without; mean and range of {repeats} draws; "
        "expected: the former in closed form; distance: mean norm of the difference in "
        "that of the uniform draws made, the paper's measure; loss: mean over the "
        "examples, in nats; squared error: of the probabilities from those by the "
        "gradient norm, summed over the examples"
    )


def verdict(measurements: Sequence[Measurement]) -> str:
    """Say how far the two cheap scores are from the gradient norm, in all.

    Example:
        >>> verdict([])
        'Squared errors of all steps together, 0 points: loss 0, upper bound 0.'
    """
    errors, points = pooled_errors(measurements), pooled_points(measurements)
    named = [
        f"{name.replace('_', ' ')} {brief(errors[name])}"
        for name in SCORES
        if name != ORACLE
    ]
    found = ", ".join(named)
    return f"Squared errors of all steps together, {points:,} points: {found}."


def print_table(
    measurements: Sequence[Measurement], *, title: str, explained: str
) -> None:
    """Print the table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS, title=title, caption=explained, box=SIMPLE_HEAD)
    table.pad_edge = table.show_edge = False
    for column, name in zip(table.columns, COLUMNS, strict=True):
        column.justify, column.no_wrap = "right", name in ("multinomial", "systematic")
    table.columns[2].justify = "left"
    for number, row in enumerate(cells(measurements)):
        table.add_row(*row, end_section=number % len(SCORES) == len(SCORES) - 1)
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file is as wide as it takes
    console.print(table)
    console.print(verdict(measurements), highlight=False)


def write_markdown(
    measurements: Sequence[Measurement], *, title: str, explained: str, path: Path
) -> None:
    """Write the table as Markdown."""
    rule = ["---:", "---:", "---", *["---:"] * (len(COLUMNS) - 3)]
    lines = [COLUMNS, rule, *cells(measurements)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts = [f"# {title}", body, explained, verdict(measurements)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_variances(measurements: Sequence[Measurement], path: Path) -> None:
    """Write one line for each step and kind of draw, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        edges = [
            f"{what}_{edge}"
            for what in ("variance", "distance")
            for edge in ("mean", "low", "high")
        ]
        table.writerow(
            [
                "step",
                "loss",
                "selection",
                "score",
                *edges,
                "expected_variance",
                "squared_error",
                "tau",
            ]
        )
        for found in measurements:
            for row in found.rows:
                of = row.selection, row.score
                ratios = found.variance(*of), found.distance(*of)
                numbers = [edge for ratio in ratios for edge in vars(ratio).values()]
                about = (
                    ("", "")
                    if row.score == UNIFORM
                    else (found.errors[row.score], found.taus[row.score])
                )
                table.writerow(
                    [found.step, found.loss, *of, *numbers, found.expected(*of), *about]
                )


def write_probabilities(
    measurements: Sequence[Measurement], rows: Int[Tensor, " B"], *, path: Path
) -> None:
    """Write the points of Figure 2, as CSV.

    Args:
        measurements: Hold the probabilities.
        rows: Where each example stands in the training set.
        path: Of the file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "example", *SCORES])
        for found in measurements:
            columns = [found.probabilities[name].tolist() for name in SCORES]
            for row, *chances in zip(rows.tolist(), *columns, strict=True):
                table.writerow([found.step, row, *(f"{p:.6g}" for p in chances)])
