"""The picture of what was picked: the most and the least often, and how unevenly."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lightning_is.experiments.data import TensorSet
from lightning_is.experiments.picked.counting import PickCounter
from lightning_is.experiments.picked.ranking import ends, top_share
from lightning_is.experiments.report import blank_figure

if TYPE_CHECKING:  # half a second to import, and needed only once the run is over
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ROWS, COLUMNS = 4, 6  # of images, on each side
BARS = 60  # of the histogram, at most
HEADINGS = (  # many may be trained on as often as one another
    "trained on most often, then highest score: label, times",
    "trained on least often, then lowest score: label, times",
)
MARKS = (0.01, 0.1, 0.25)  # shares of the examples to name
LINE, EVEN = "#20639b", "#8a8a8a"


def draw(
    counter: PickCounter,
    data: TensorSet,
    *,
    names: Sequence[str] | None,
    title: str,
    path: Path,
) -> None:
    """Write the picture that `figure_of` makes.

    Args:
        counter: Has the counts.
        data: The training images, as they are stored.
        names: Of the classes; their numbers if missing.
        title: Says which run it was.
        path: Where the picture goes; its suffix chooses the format.
    """
    figure = figure_of(counter, data, names=names)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def figure_of(
    counter: PickCounter, data: TensorSet, *, names: Sequence[str] | None
) -> "Figure":
    """Draw images with their labels and counts, the counts of all, and their shares.

    Those trained on most often are on the left, those least often on the right, both
    of the images that were loaded.

    Args:
        counter: Has the counts.
        data: The training images, as they are stored.
        names: Of the classes, as many as there are; their numbers if missing.
    """
    figure = blank_figure((11.0, 7.6))
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.75, 1))[:, 0]
    loaded, trained = counter.loaded, counter.trained
    sides = ends(trained, counter.scores, loaded=loaded, at_most=ROWS * COLUMNS)
    parts = upper.subfigures(1, 2, wspace=0.04).ravel()
    for part, heading, places in zip(parts, HEADINGS, sides, strict=True):
        part.suptitle(heading, fontsize="medium")
        labels = data.y[places].tolist()
        shown = labels if names is None else [names[label] for label in labels]
        rows = zip(shown, trained[places].tolist(), strict=True)
        titles = [f"{label}, {count}\u00d7" for label, count in rows]
        _draw_images(part, as_pictures(data.x[places], data.x), titles)
    counts, shares = lower.subplots(1, 2)
    _draw_counts(counts, trained[loaded > 0])
    _draw_shares(shares, trained)
    return figure


def _draw_images(
    figure: "SubFigure",
    pictures: Float[np.ndarray, "k H W ..."],
    titles: Sequence[str],
) -> None:
    axes = figure.subplots(ROWS, COLUMNS).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=8, pad=2)


def as_pictures(
    some: Shaped[Tensor, "k C H W"], all_of_them: Shaped[Tensor, "N C H W"]
) -> Float[np.ndarray, "k H W ..."]:
    """Bring stored images to what is drawn: from 0 to 1, colours last, or no colours.

    Args:
        some: To draw; bytes, or numbers of any range.
        all_of_them: Whose range is that of the pictures, unless they are bytes.
    """
    low, high = (0.0, 255.0) if some.dtype == torch.uint8 else all_of_them.aminmax()
    scaled = (some.double() - low) / max(float(high - low), 1e-9)
    last = scaled.permute(0, 2, 3, 1)
    return (last[..., 0] if last.shape[-1] == 1 else last).numpy()


def _draw_counts(axis: "Axes", counts: Int64[Tensor, " N"]) -> None:
    most = int(counts.max())
    width = -(-(most + 1) // BARS)  # whole counts in each bar
    edges = [edge - 0.5 for edge in range(0, most + width + 1, width)]
    axis.hist(counts.numpy(), bins=edges, color=LINE, log=True)
    axis.axvline(float(counts.double().mean()), color=EVEN, linestyle="--")
    axis.set_xlabel("times trained on")
    axis.set_ylim(bottom=0.8)
    axis.set_ylabel("examples that were loaded")
    _dress(axis, "dashed: the mean, where whole epochs have them all")


def _draw_shares(axis: "Axes", counts: Int64[Tensor, " N"]) -> None:
    ordered = counts.sort(descending=True).values.double()
    share = np.arange(len(counts) + 1) / len(counts)
    taken = np.concatenate([[0.0], (ordered.cumsum(0) / ordered.sum()).numpy()])
    axis.plot(100 * share, 100 * taken, color=LINE)
    axis.plot([0, 100], [0, 100], color=EVEN, linestyle="--")
    for mark in MARKS:
        found = top_share(counts, mark)
        axis.plot(100 * mark, 100 * found, "o", color=LINE)
        axis.annotate(
            f"{mark:.0%} take {found:.0%}",
            (100 * mark, 100 * found),
            xytext=(8, -5),
            textcoords="offset points",
            fontsize="small",
            bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.8},
        )
    axis.set_xlabel("examples [%], most often trained on first")
    axis.set_ylabel("of all trainings [%]")
    _dress(axis, "dashed: whole epochs (chance alone lies above)")


def _dress(axis: "Axes", explanation: str) -> None:
    axis.set_title(explanation, fontsize="small", loc="left")
    axis.grid(visible=True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
