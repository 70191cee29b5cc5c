"""What a run is charged for: how much it may use, and counters that can pause."""

import re
from math import isfinite
from time import perf_counter, process_time
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch

Clock: TypeAlias = Literal["cpu", "wall", "cost"]
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}  # in one
EXAMPLES = {"": 1.0, "k": 1e3, "M": 1e6}  # in one


def parse_budget(text: str | int | float, clock: Clock = "cpu") -> float:
    """Read what a run may use: a length of time, or a number of examples.

    Args:
        text: Time as ``30s``, ``2m``, ``1.5h`` or a number of seconds; of the clock
            ``cost`` a number of examples, as ``300k``, ``2M`` or ``5000``.
        clock: What counts it.

    Returns:
        Seconds or examples, positive.

    Raises:
        ValueError: If it is neither, or none that a run could last.

    Example:
        >>> parse_budget("2m"), parse_budget("300k", "cost")
        (120.0, 300000.0)
    """
    units = EXAMPLES if clock == "cost" else SECONDS
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]?)\s*", str(text))
    value = float(found[1]) * units.get(found[2], 0.0) if found else 0.0
    if value == 0 or not isfinite(value):
        kind, cure = (
            ("number of examples", "300k, 2M or a number")
            if clock == "cost"
            else ("length of time", "30s, 2m, 1h or a number of seconds")
        )
        raise ValueError(
            f"`budget` must be a positive {kind}, got {text!r}. Write {cure}."
        )
    return value


def written(spent: float, clock: Clock) -> str:
    """Write what a run may use, for a heading.

    Example:
        >>> written(30.0, "cpu")
        '30 s of CPU time of one thread'
    """
    if clock == "cost":
        return f"the arithmetic of training on {spent:,.0f} examples"
    return f"{spent:g} s of " + ("CPU time of one thread" if clock == "cpu" else "time")


@runtime_checkable
class Meter(Protocol):
    """Counts what a run uses."""

    @property
    def spent(self) -> float:
        """What was counted so far."""

    def start(self) -> None:
        """Go on counting."""

    def stop(self) -> None:
        """Count no more, until started again."""


class Stopwatch:
    """Seconds since it was started, less those it was stopped for.

    Args:
        clock: ``"cpu"`` counts the processor's time of this process: fair beside other
            processes, blind to a GPU. ``"wall"`` counts time as it passes, and waits
            for the GPU whenever it is started or stopped.

    Example:
        >>> watch = Stopwatch("cpu")
        >>> watch.spent
        0.0
    """

    def __init__(self, clock: Literal["cpu", "wall"]) -> None:
        self._now = process_time if clock == "cpu" else perf_counter
        self._before = 0.0
        self._since: float | None = None  # while it runs

    @property
    def spent(self) -> float:
        """Seconds charged so far."""
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
        self._before, self._since = self.spent, None


def _finish_queued_work() -> None:
    # A GPU works off a queue; what is still in it belongs to the time before.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
