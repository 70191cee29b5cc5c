"""Numbers on their way from the device to the host, without stalling either."""

import time
from collections import deque
from typing import NamedTuple, final

import torch
from torch import Tensor

from lightning_is.sampling.costs import Timing

Mark = float | torch.cuda.Event
"""A moment, on the clock of the device."""

_BEHIND = 2  # steps that the host may be ahead of the device when it reads the clock


@final
class Readback:
    """Carries one small tensor at a time to the host.

    On an accelerator the copy starts at once and is waited for when it is read, a step
    later, by when it has long arrived.
    """

    def __init__(self) -> None:
        self._pending: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def push(self, values: Tensor) -> None:
        """Start carrying ``values``, of shape ``(k,)``; replaces what was not read."""
        self._pending, self._arrived = values.detach(), None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._pending = host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def pop(self) -> Tensor | None:
        """Return the values once, on the host, or None where there are none."""
        if self._pending is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        values, self._pending = self._pending, None
        return values


def sent(values: list[float], like: Tensor) -> Tensor:
    """Send numbers to the device of a tensor, in its type, without waiting for it."""
    held = torch.tensor(values, dtype=like.dtype)
    if like.device.type == "cuda":
        held = held.pin_memory()
    return held.to(like.device, non_blocking=True)


@final
class Stopwatch:
    """Measures where the time of a step goes, on the clock of its device.

    Example:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> start = watch.mark()
        >>> watch.seconds(start, watch.mark()) >= 0
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"

    def mark(self) -> Mark:
        """Note this moment; on CUDA, the moment the device gets here."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the time between two marks; on CUDA this waits for the second."""
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3
        return float(end) - float(start)  # type: ignore[arg-type]


@final
class Timekeeper:
    """Times whole steps, without ever waiting for the device within one.

    Args:
        watch: Of the device.

    Attributes:
        overlaps: Whether the loader works while a step runs.
        wait: Seconds that the batch in hand was waited for; None after a pause.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self.overlaps = watch, False
        self._left: Mark | None = None  # when the last step was over
        self._arrival: tuple[Mark, Mark] | None = None
        self._under_way: deque[_Run] = deque()

    def arrive(self) -> Mark:
        """Note that a batch has arrived; return when."""
        begun = self._watch.mark()
        self._arrival = None if self._left is None else (self._left, begun)
        return begun

    @property
    def wait(self) -> float | None:
        """How long the batch in hand was waited for, if that is known."""
        return None if self._arrival is None else self._watch.seconds(*self._arrival)

    def finish(
        self,
        sizes: tuple[int, int],
        scoring: tuple[Mark, Mark] | None,
        parts: int = 1,
    ) -> None:
        """Note that its step is computed, or all handed to the device.

        Args:
            sizes: Examples loaded, and trained on.
            scoring: When scoring began and ended.
            parts: Steps that share what was loaded and scored.
        """
        if self._arrival is not None:
            run = _Run(*sizes, *self._arrival, scoring, self._watch.mark(), parts)
            self._under_way.append(run)

    def leave(self) -> None:
        """Note that nothing of the step is left to be done; the next one may come."""
        self._left = self._watch.mark()

    def pause(self) -> None:
        """Note that the next batch comes after something else than a step."""
        self._left = None

    def collect(self) -> Timing | None:
        """Return the times of the step before the last, which the device is past."""
        if len(self._under_way) <= _BEHIND:
            return None
        run, seconds = self._under_way.popleft(), self._watch.seconds
        whole = seconds(run.begun, run.over)
        score = 0.0 if run.scoring is None else seconds(*run.scoring)
        parts = 1 if run.scoring is None else run.parts
        wait = seconds(run.left, run.begun)  # on CUDA, while the device was idle
        times = wait / parts, score / parts, whole - score
        return Timing(run.loaded // parts, run.trained, *times, self.overlaps)


class _Run(NamedTuple):
    """A step whose times are not known yet."""

    loaded: int
    trained: int
    left: Mark
    begun: Mark
    scoring: tuple[Mark, Mark] | None
    over: Mark
    parts: int
