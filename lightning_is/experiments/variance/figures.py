"""The figures: variance along a run, and probabilities against the best ones."""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_is.experiments.report import blank_figure
from lightning_is.experiments.variance.draws import ORACLE, SCORES, SELECTIONS, UNIFORM
from lightning_is.experiments.variance.record import Measurement

if TYPE_CHECKING:  # half a second to import, and needed only once the run is over
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Paul Tol's muted colours, told apart by anyone; black is the baseline's.
LOOKS = {
    UNIFORM: ("black", "-", "o"),
    "loss": ("#CC6677", (0, (5, 1.5)), "s"),
    "upper_bound": ("#332288", "-", "o"),
    ORACLE: ("#117733", (0, (1, 1.2)), "^"),
}
UNIFORMLY = {
    "multinomial": "uniform, with replacement",
    "systematic": "uniform, without replacement",
}
EXPECTED = "expected, in closed form"
FAINT = 1e-6  # of the largest probability: the least that a figure shows
APART = 0.05  # between the lines of a panel, in the logarithm of the step


def draw_variance(
    measurements: Sequence[Measurement], *, title: str, path: Path
) -> None:
    """Draw the variance of each kind of draw against the step: Figure 1.

    Args:
        measurements: At least one.
        title: Says what was drawn from what.
        path: Where the picture goes; its suffix chooses the format.
    """
    figure = blank_figure((10.0, 4.6))
    panels = figure.subplots(1, len(SELECTIONS), squeeze=False)[0]
    for axis, selection in zip(panels, SELECTIONS, strict=True):
        for place, score in enumerate(LOOKS):
            # Side by side, or whiskers would hide one another.
            shift = exp((place - 1.5) * APART)
            _draw_line(axis, measurements, score=score, of=selection, shift=shift)
        _dress_variance(axis, measurements, selection)
    panels[0].set_ylabel("variance of the gradient / uniform")
    panels[0].plot([], [], color="grey", marker="_", linestyle="", label=EXPECTED)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(LOOKS) + 1,
        frameon=False,
        handlelength=3,
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_line(
    axis: "Axes",
    measurements: Sequence[Measurement],
    *,
    score: str,
    of: str,
    shift: float,
) -> None:
    colour, dashes, marker = LOOKS[score]
    steps = [shift * found.step for found in measurements]
    ratios = [found.variance(of, score) for found in measurements]
    means = [ratio.mean for ratio in ratios]
    below = [ratio.mean - ratio.low for ratio in ratios]
    above = [ratio.high - ratio.mean for ratio in ratios]
    axis.errorbar(
        *(steps, means, (below, above)),
        color=colour,
        linestyle=dashes,
        marker=marker,
        markersize=4.5,
        elinewidth=0.8,
        label=score.replace("_", " "),
    )
    expected = [found.expected(of, score) for found in measurements]
    axis.plot(
        *(steps, expected),
        color=colour,
        linestyle="",
        marker="_",
        markersize=11,
        markeredgewidth=1.8,
    )


def _dress_variance(
    axis: "Axes", measurements: Sequence[Measurement], selection: str
) -> None:
    steps = [found.step for found in measurements]
    if min(steps) > 0:
        axis.set_xscale("log")
    else:  # the start has a place of its own
        axis.set_xscale("symlog", linthresh=1)
    axis.set_yscale("log")
    _write_ticks(axis.yaxis, axis.get_ylim())
    if min(steps) > 0:
        _write_ticks(axis.xaxis, axis.get_xlim())
    axis.set_title(f"{selection} draws; 1 is {UNIFORMLY[selection]}", fontsize="medium")
    axis.set_xlabel("optimizer steps")
    axis.grid(visible=True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _write_ticks(axis: "Axis", limits: tuple[float, float]) -> None:
    """Write plain numbers where there are few powers of ten to go by."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if limits[1] < 300 * limits[0]:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_probabilities(
    measurements: Sequence[Measurement], *, title: str, path: Path
) -> None:
    """Draw probabilities against those by the gradient norm: Figure 2.

    Early, midway and at the end, a row for each score. A score that followed the norm
    would put all points on the diagonal. What is too small to be shown lies on the
    edge.

    Args:
        measurements: At least one.
        title: Says what was drawn from what.
        path: Where the picture goes; its suffix chooses the format.
    """
    last = len(measurements) - 1
    shown = [measurements[place] for place in sorted({0, (last + 1) // 2, last})]
    names = [name for name in SCORES if name != ORACLE]
    figure = blank_figure((3.4 * len(shown) + 0.6, 3.3 * len(names)))
    panels = figure.subplots(len(names), len(shown), squeeze=False)
    for name, row in zip(names, panels, strict=True):
        for found, axis in zip(shown, row, strict=True):
            _scatter(axis, found, name)
        row[0].set_ylabel(f"probability by {name.replace('_', ' ')}")
    for found, top, bottom in zip(shown, panels[0], panels[-1], strict=True):
        top.set_title(f"after {found.step} steps", fontsize="medium")
        bottom.set_xlabel("probability by gradient norm")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _scatter(axis: "Axes", found: Measurement, name: str) -> None:
    colour, _, marker = LOOKS[name]
    largest = max(float(p.max()) for p in found.probabilities.values())
    least = min(float(p.min()) for p in found.probabilities.values())
    low, high = max(FAINT * largest, 0.7 * least), 1.5 * largest
    best = found.probabilities[ORACLE].clamp(min=low)
    ours = found.probabilities[name].clamp(min=low)
    edges = low / 1.2, high
    axis.plot(edges, edges, color="black", linewidth=0.8, zorder=1)
    axis.scatter(
        *(best.numpy(), ours.numpy()),
        color=colour,
        marker=marker,
        s=9,
        alpha=0.35,
        linewidth=0,
        label=f"sum of squared errors {found.errors[name]:.2g}",
    )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(edges)
    axis.set_ylim(edges)
    _write_ticks(axis.xaxis, edges)
    _write_ticks(axis.yaxis, edges)
    axis.set_aspect("equal")
    axis.grid(visible=True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize="small", handletextpad=0.1)
