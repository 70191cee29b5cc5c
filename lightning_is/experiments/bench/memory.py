"""How much memory a fit takes at its peak, in a process of its own."""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from lightning.pytorch import Callback

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import Plain, fit, opened, quiet, shut, trainer
from lightning_is.experiments.bench.networks import BATCH, NETWORKS, Problem
from lightning_is.experiments.bench.stages import history
from lightning_is.experiments.bench.turns import interleaved
from lightning_is.experiments.machine import returned_memory
from lightning_is.experiments.wide_resnet import WideResNet
from lightning_is.sampling import AlwaysOpen

SAMPLING: dict[str, Callable[[], Callback | None]] = {
    "lightning": lambda: None,
    "closed": shut,
    "open": lambda: opened(BATCH // 4),
    "default": ImportanceSamplingCallback,
}
HISTORY = "history of 10 million"
OPEN = "open steps"
CHOSEN = "presample in chunks of b, as chosen"


@dataclass(frozen=True)
class Deep:
    """Steps on ``small`` of ``large`` examples, by a network of large activations.

    Args:
        small: Examples ``b`` that are trained on.
        large: Examples ``B`` of a presample.
        pixels: Height and width of an example, of three channels.
    """

    small: int = 32
    large: int = 512
    pixels: int = 64

    @property
    def inputs_mb(self) -> float:
        """What the inputs of a presample take."""
        return self.large * 3 * self.pixels**2 * 4 / 2**20

    def train(self, chunk: int | None, *, is_plain: bool) -> None:
        """Train for three steps, plain ones or open ones."""
        shape = 3, self.pixels, self.pixels
        problem = Problem(lambda: WideResNet(10, 1), shape, channels_last=True)
        loader: Any = problem.loader(2 * self.large, self.small)
        extra = []
        if not is_plain:
            settings: Any = {"gate": AlwaysOpen(), "score_chunk_size": chunk}
            extra = [ImportanceSamplingCallback(self.small, **settings)]
            loader = OversamplingDataModule(loader, self.large)
        trainer(*extra, max_steps=3).fit(Plain(problem.net()), loader)


def memory(part: str, effort: Effort) -> list[Row]:
    """Train in a new process, or choose from a long history, and see what that takes.

    Args:
        part: Of `SAMPLING`, `OPEN` or `HISTORY`.
        effort: How many steps.

    Returns:
        A row: what the process holds at its peak, beyond what it held before, in MB.
        Of `OPEN` one for each way to train on ``b`` examples, with how much more than a
        plain step that is, in inputs of a presample.
    """
    if part == OPEN:
        return _open_steps(Deep(4, 32, 16) if effort.is_quick else Deep())
    return [_row(part, *_alone(_peak, part, effort))]


def _open_steps(deep: Deep) -> list[Row]:
    ways: dict[str, tuple[int | None, bool]] = {
        f"plain step on b = {deep.small}": (None, True),
        f"presample of {deep.large} as a whole": (deep.large, False),
        CHOSEN: (None, False),
    }
    rows: list[Row] = []
    for name, way in ways.items():
        row = _row(name, *_alone(_peak_of_steps, deep, *way), deep.inputs_mb)
        beyond = row["peak adds MB"] - (rows or [row])[0]["peak adds MB"]
        rows.append(row | {"beyond plain / inputs": beyond / deep.inputs_mb})
    return rows


def _row(name: str, before: float, peak: float, inputs_mb: float | None = None) -> Row:
    row: Row = {"run": name, "before MB": before, "peak adds MB": peak - before}
    return row | {"inputs of B MB": inputs_mb, "beyond plain / inputs": None}


def _alone(run: Callable[..., tuple[float, float]], *given: Any) -> tuple[float, float]:
    """Run a function in a new process."""
    # A forked process would begin with the memory of this one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *given).result()


def _peak(part: str, effort: Effort) -> tuple[float, float]:
    quiet()
    before = peak_mb()
    if part == HISTORY:
        history(str(1_000_000 if effort.is_quick else 10_000_000), effort)
    else:
        blocks = 2 if effort.is_quick else 10
        arm = fit(NETWORKS["cnn"], blocks, effort.steps, SAMPLING[part]())
        interleaved({part: arm})
    return before, peak_mb()


def _peak_of_steps(
    deep: Deep, chunk: int | None, is_plain: bool
) -> tuple[float, float]:
    quiet()
    returned_memory()
    before = peak_mb()
    deep.train(chunk, is_plain=is_plain)
    return before, peak_mb()


def peak_mb() -> float:
    """Return the most that this process ever held in memory, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other count includes the parent, while it was forking
        lines = status.read_text().splitlines()
        found = next(line for line in lines if line.startswith("VmHWM"))
        return int(found.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss / unit
