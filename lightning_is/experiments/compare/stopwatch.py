"""Time that a run is charged for: how long it may be, and a clock that can pause."""

import re
from math import isfinite
from time import perf_counter, process_time
from typing import Literal, TypeAlias

import torch

Clock: TypeAlias = Literal["cpu", "wall"]
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds in one


def parse_seconds(text: str | int | float) -> float:
    """Read a length of time, as ``30s``, ``2m``, ``1.5h`` or a number of seconds.

    Args:
        text: What was written.

    Returns:
        Seconds, positive.

    Raises:
        ValueError: If it is no length of time, or none that a run could last.

    Example:
        >>> parse_seconds("2m")
        120.0
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh]?)\s*", str(text))
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds == 0 or not isfinite(seconds):
        raise ValueError(
            f"`budget` must be a positive length of time, got {text!r}. Write 30s, 2m, "
            "1h or a number of seconds."
        )
    return seconds


class Stopwatch:
    """Seconds since it was started, less those it was stopped for.

    Args:
        clock: ``"cpu"`` counts the processor's time of this process: fair beside other
            processes, blind to a GPU. ``"wall"`` counts time as it passes, and waits
            for the GPU whenever it is started or stopped.

    Example:
        >>> watch = Stopwatch("cpu")
        >>> watch.seconds
        0.0
    """

    def __init__(self, clock: Clock) -> None:
        self._now = process_time if clock == "cpu" else perf_counter
        self._before = 0.0
        self._since: float | None = None  # while it runs

    @property
    def seconds(self) -> float:
        """Time charged so far."""
        return self._before + (
            0.0 if self._since is None else self._now() - self._since
        )

    def start(self) -> None:
        """Go on counting."""
        _finish_queued_work()
        self._since = self._now()

    def stop(self) -> None:
        """Count no more, until started again."""
        _finish_queued_work()
        self._before, self._since = self.seconds, None


def _finish_queued_work() -> None:
    # A GPU works off a queue; what is still in it belongs to the time before.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
