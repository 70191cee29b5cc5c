"""Problems where sampling cannot help: what the callback costs there, left as it is."""

from functools import partial
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import Epochs, Plain, shut, trainer
from lightning_is.experiments.bench.networks import BATCH, CLASSES, Problem
from lightning_is.experiments.bench.turns import Turn, interleaved, paired, spread
from lightning_is.experiments.models import MLP, SmallCNN

EXAMPLES = 16_384
LONG = Effort(rounds=30, steps=32)  # gates look again and again, and measure


def frozen() -> nn.Module:
    """Make an MLP whose head alone is trained: its forward pass is all that costs."""
    net = MLP(784, CLASSES, hidden=(1024, 1024))
    net.layers[:-1].requires_grad_(False)
    return net


def decoded(x: Tensor) -> Tensor:
    """Return the inputs, after more work than a step is, as that of an image codec."""
    for _ in range(60):
        x = x.exp().log()
    return x


PROBLEMS = {
    # Labels of chance, too many to learn by heart: every example is as hard.
    "flat scores": Problem(
        lambda: SmallCNN(1, CLASSES), channels_last=True, has_rule=False
    ),
    "loader-bound": Problem(lambda: MLP(784, CLASSES, hidden=(64,)), transform=decoded),
    "frozen backbone": Problem(frozen),
}


def closed(name: str, effort: Effort) -> list[Row]:
    """Compare fits without the callback, with it shut, and as it comes.

    As it comes, its gate measures what steps cost and tries what might pay.

    Args:
        name: Of `PROBLEMS`.
        effort: How often.

    Returns:
        A row: medians of paired ratios of blocks, ratios of all blocks together, trials
        included, and the loss on the training set at the end.
    """
    problem, ends = PROBLEMS[name], dict[str, dict[str, float]]()
    sampling: dict[str, Callback | None] = {
        "plain": None,
        "shut": shut(),
        "default": ImportanceSamplingCallback(),
    }
    arms = {
        arm: partial(_train, problem, effort, callback, ends.setdefault(arm, {}))
        for arm, callback in sampling.items()
    }
    times = interleaved(arms, effort.warm_up)
    plain = times["plain"]
    row: dict[str, Any] = {"problem": name}
    row["plain ms"] = 1e3 * median(plain) / effort.steps
    for arm in ("shut", "default"):
        row |= spread(f"{arm} / plain", paired(times[arm], plain))
        row[f"{arm} / plain in all"] = sum(times[arm]) / sum(plain)
    row["drawn steps"] = ends["default"]["drawn"]
    losses = {arm: end["loss"] for arm, end in ends.items()}
    row |= {"plain loss": losses["plain"], "default loss": losses["default"]}
    row["default / plain loss"] = losses["default"] / losses["plain"]
    return [row]


def _train(
    problem: Problem,
    effort: Effort,
    sampling: Callback | None,
    end: dict[str, float],
    turn: Turn,
) -> None:
    """Train; note the loss at the end, and how many steps were on drawn batches."""
    epochs, extra = Epochs(turn, BATCH), [] if sampling is None else [sampling]
    module = Plain(problem.net())
    loader = problem.loader(EXAMPLES)
    lengths = {"max_epochs": effort.blocks, "limit_train_batches": effort.steps}
    trainer(epochs, *extra, **lengths).fit(module, loader)
    with torch.no_grad():
        count = BATCH if effort.is_quick else EXAMPLES // 4
        x, y = problem.examples(EXAMPLES).__getitems__(range(count))
        loss = functional.cross_entropy(module.eval().net(x), y)
    end["loss"], end["drawn"] = float(loss), float(epochs.drawn)
