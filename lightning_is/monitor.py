"""Numbers on their way from the device to the host, without stalling either."""

import time
from typing import final

import torch
from torch import Tensor

Mark = float | torch.cuda.Event
"""A moment, on the clock of the device."""


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
