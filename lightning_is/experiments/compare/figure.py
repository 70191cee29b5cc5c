"""The figure of a comparison: training loss, test error and tau against time."""

from collections.abc import Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from lightning_is.experiments.compare.budget import Point
from lightning_is.experiments.compare.run import Result
from lightning_is.experiments.report import blank_figure

if TYPE_CHECKING:  # half a second to import, and needed only once the runs are over
    from matplotlib.axes import Axes

# Paul Tol's muted colours, told apart by anyone; black is the baseline's.
COLOURS = (
    *("#CC6677", "#332288", "#117733", "#DDAA33"),
    *("#44AA99", "#882255", "#88CCEE", "#999933", "#AA4499"),
)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
PANELS = {  # what is drawn, of those that any run has
    "train_loss": "training loss [nats]",
    "test_error": "test error [%]",
    "tau": "tau: equivalent increase of the batch",
}
GRID = 200  # times at which seeds are averaged


def draw(
    results: Sequence[Result],
    order: Sequence[str],
    title: str,
    path: Path,
    *,
    baseline: str = "uniform",
    unit: str = "",
) -> None:
    """Draw mean and range over seeds of every arm.

    Args:
        results: Of all arms and seeds with one budget, at least one.
        order: Of the arms in the legend; those without results are left out.
        title: Says what was compared.
        path: Where the picture goes; its suffix chooses the format.
        baseline: The arm drawn in black.
        unit: What the budget is of; time, unless it says something else.
    """
    by_arm = {name: [run for run in results if run.arm == name] for name in order}
    shown = [name for name, runs in by_arm.items() if runs]
    panels = [panel for panel in PANELS if any(map(partial(_has, panel), results))]
    figure = blank_figure((2.0 + 5.0 * len(panels), 4.8))
    axes = figure.subplots(1, len(panels), sharex=True)
    for axis, panel in zip(axes, panels, strict=True):
        for name in shown:
            if any(map(partial(_has, panel), by_arm[name])):
                _draw_arm(axis, by_arm[name], panel, style(name, shown, baseline))
        axis.set_ylabel(PANELS[panel])
        axis.set_xlabel(unit or "time spent [s]")
        dress(axis)
    axes[0].set_xlim(0, max(run.end.spent for run in results))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        *(handles, labels),
        loc="outside right upper",
        frameon=False,
        handlelength=3.5,
        title="lowest loss first",
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def style(name: str, arms: Sequence[str], baseline: str = "uniform") -> dict[str, Any]:
    """Colour and dashes of an arm among others, whatever their order.

    Example:
        >>> style("uniform", ["trim", "uniform"])["color"]
        'black'
    """
    if name == baseline:
        return {"color": "black", "linewidth": 2.6, "linestyle": "-"}
    names = sorted(set(arms) - {baseline})
    row, column = divmod(names.index(name), len(COLOURS))
    dashes = DASHES[row % len(DASHES)]
    return {"color": COLOURS[column], "linewidth": 1.7, "linestyle": dashes}


def _has(field: str, run: Result) -> bool:
    return any(isfinite(vars(point)[field]) for point in run.points)


def on_grid(
    runs: Sequence[Result], field: str, times: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "S T"]:
    """One quantity of every run at the same times, interpolated.

    Where a run had not said anything yet it is what it said first: tau is the mean of
    what was logged before. Where it says nothing any more, it is NaN.
    """
    return np.stack([_interpolated(run.points, field, times) for run in runs])


def _interpolated(
    points: Sequence[Point], field: str, times: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, " T"]:
    said = [(p.spent, vars(p)[field]) for p in points if isfinite(vars(p)[field])]
    if not said:
        return np.full(times.shape, np.nan)
    spent, values = zip(*said, strict=True)
    curve: Float64[np.ndarray, " T"] = np.interp(times, spent, values, right=np.nan)
    return curve


def _draw_arm(
    axis: "Axes", runs: Sequence[Result], field: str, look: dict[str, Any]
) -> None:
    # Up to where every seed has something to say.
    last = min(run.end.spent for run in runs)
    times = np.linspace(0.0, last, GRID)
    values = on_grid(runs, field, times) * (100 if field == "test_error" else 1)
    axis.plot(times, values.mean(0), label=runs[0].arm, **look)
    if len(runs) > 1:
        low, high = values.min(0), values.max(0)
        axis.fill_between(
            times, low, high, color=look["color"], alpha=0.12, linewidth=0
        )


def dress(axis: "Axes") -> None:
    """Make a logarithmic axis with some numbers to read it by, whatever its range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    axis.set_yscale("log")
    # A range of less than a decade has but one power of ten to go by.
    low, high = axis.get_ylim()
    if high < 300 * low:
        few = MaxNLocator(6) if high < 4 * low else LogLocator(subs=(1, 2, 5))
        axis.yaxis.set_major_locator(few)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axis.grid(visible=True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
