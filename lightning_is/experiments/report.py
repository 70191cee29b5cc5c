"""What a run leaves behind: a table, a figure and its numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isfinite, isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning_is.experiments.curves import Point

if TYPE_CHECKING:  # half a second to import, and needed only once the run is over
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, TAU, OPEN = "#20639b", "#c8553d", "#f3d9a4"  # told apart in grey and by anyone
FORMATS = {"steps": "{:.0f}", "seconds": "{:.1f} s", "open_share": "{:.0%}"}
TITLES = {
    "steps": "optimizer steps",
    "seconds": "time of training and validation",
    "tau": "tau at the end",
    "open_share": "share of steps with the gate open",
    "train/loss": "loss on the training set at the end",
}


def print_table(results: Mapping[str, float], title: str) -> None:
    """Print the results of a run, one line each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.items():
        shown = FORMATS.get(name, "{:.2%}" if name.endswith("acc") else "{:.4g}")
        table.add_row(
            TITLES.get(name, name), "-" if isnan(value) else shown.format(value)
        )
    Console().print(table)


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write the results as JSON; what does not exist (NaN) becomes ``null``."""
    path.write_text(json.dumps(nulls(dict(results)), indent=2) + "\n")


def nulls(value: Any) -> Any:
    """Replace what is no number (NaN, infinite) by None, which JSON knows as null.

    Args:
        value: Plain; looked through where it is a dictionary, a list or a tuple.

    Example:
        >>> nulls({"tau": float("nan"), "steps": [1.0, float("inf")]})
        {'tau': None, 'steps': [1.0, None]}
    """
    if isinstance(value, dict):
        return {name: nulls(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [nulls(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def blank_figure(size: tuple[float, float]) -> "Figure":
    """Make an empty figure for a file, whatever display the machine has or lacks.

    Args:
        size: Width and height, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(points: Sequence[Point], title: str, path: Path) -> None:
    """Draw loss and tau against time, with the time of an open gate shaded.

    Args:
        points: The curves.
        title: Says which run it was.
        path: Where the picture goes; its suffix chooses the format.
    """
    sampled = [p for p in points if not isnan(p.tau)]
    figure = blank_figure((8.0, 5.5 if sampled else 3.5))
    axes = figure.subplots(2 if sampled else 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(axes[0], points)
    if sampled:
        _draw_smoothed(axes[1], sampled, [p.tau for p in sampled], TAU)
        axes[1].set_ylabel("tau, a ratio\n(1: all examples alike)")
    for axis in axes:
        _shade(axis, points, explained=axis is axes[0])
        axis.set_xlim(left=0)
        axis.grid(visible=True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="best", frameon=False, fontsize="small")
    axes[-1].set_xlabel("time since training began [s]")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_loss(axis: "Axes", points: Sequence[Point]) -> None:
    losses = [p.loss for p in points]
    _draw_smoothed(axis, points, losses, LOSS)
    if any(loss > 0 for loss in losses):  # else a logarithmic axis has nothing to show
        axis.set_yscale("log")
    axis.set_ylabel("training loss [nats]")


def _draw_smoothed(
    axis: "Axes", points: Sequence[Point], values: Sequence[float], colour: str
) -> None:
    seconds = [p.seconds for p in points]
    marker = "o" if len(values) < 3 else None  # a line through one point is invisible
    axis.plot(
        *(seconds, values),
        color=colour,
        alpha=0.3,
        linewidth=1,
        marker=marker,
        label="logged",
    )
    axis.plot(seconds, smoothed(values), color=colour, label="smoothed")


def _shade(axis: "Axes", points: Sequence[Point], *, explained: bool) -> None:
    label = "gate open: importance sampling" if explained else "_"
    for start, end in open_spans(points):
        axis.axvspan(start, end, color=OPEN, alpha=0.6, linewidth=0, label=label)
        label = "_"  # a leading underscore keeps further spans out of the legend


def open_spans(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Spans of time, in seconds, in which the gate was open.

    Each point speaks for the time since the point before.

    Example:
        >>> row = [Point(i, float(i), 1.0, 1.0, i in (2, 3)) for i in range(1, 6)]
        >>> open_spans(row)
        [(1.0, 3.0)]
    """
    ends = [point.seconds for point in points]
    starts = [0.0, *ends][:-1]
    spans = zip(starts, ends, (point.is_open for point in points), strict=True)
    groups = [(key, list(group)) for key, group in groupby(spans, key=lambda s: s[2])]
    return [(group[0][0], group[-1][1]) for is_open, group in groups if is_open]


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours, a twentieth of the curve in all.

    Example:
        >>> smoothed([0.0, 3.0, 0.0])
        [1.5, 1.0, 1.5]
    """
    reach = max(len(values) // 40, 1)
    return [
        fmean(values[max(i - reach, 0) : i + reach + 1]) for i in range(len(values))
    ]
