"""How much memory a fit takes at its peak, in a process of its own."""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from lightning.pytorch import Callback

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import fit, opened, quiet, shut
from lightning_is.experiments.bench.networks import BATCH, NETWORKS
from lightning_is.experiments.bench.stages import history
from lightning_is.experiments.bench.turns import interleaved

SAMPLING: dict[str, Callable[[], Callback | None]] = {
    "lightning": lambda: None,
    "closed": shut,
    "open": lambda: opened(BATCH // 4),
    "default": ImportanceSamplingCallback,
}
HISTORY = "history of 10 million"


def memory(part: str, effort: Effort) -> list[Row]:
    """Train in a new process, or choose from a long history, and see what that takes.

    Args:
        part: Of `SAMPLING`, or `HISTORY`.
        effort: How many steps.

    Returns:
        A row: what the process holds at its peak, beyond what it held before, in MB.
    """
    # A forked process would begin with the memory of this one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        before, peak = pool.submit(_peak, part, effort).result()
    return [{"run": part, "before MB": before, "peak adds MB": peak - before}]


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


def peak_mb() -> float:
    """Return the most that this process ever held in memory, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other count includes the parent, while it was forking
        lines = status.read_text().splitlines()
        found = next(line for line in lines if line.startswith("VmHWM"))
        return int(found.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss / unit
