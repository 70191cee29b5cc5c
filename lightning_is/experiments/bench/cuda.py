"""An open step on a GPU: against the sum of its parts, and whether the host waits."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import Plain, opened, trainer
from lightning_is.experiments.bench.loops import Loop
from lightning_is.experiments.bench.networks import Problem
from lightning_is.experiments.wide_resnet import WideResNet

WHOLE = 512  # B


class Clock(Callback):
    """Times steps as they pass, and warns of every wait of the host for the device."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.seconds: list[float] = []
        self._last = 0.0

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == self.warm_up:
            watch_host(self.device, "error")
        now = time.perf_counter()
        if batch_idx > self.warm_up:
            self.seconds.append(now - self._last)
        self._last = now

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch_host(self.device, "default")


def cuda(part: str, effort: Effort, device: str = "cuda") -> list[Row]:
    """Compare an open step on a quarter of 512 with ``score(B) + step(b)``.

    A step in which the host waits for the device ends the run with an error of PyTorch.
    Images are made up, of the shape of CIFAR-10, and lie on the device already.

    Args:
        part: The network: ``wrn28_2``, or ``wrn10_1`` to try this out.
        effort: How often.
        device: Another than a GPU is of use only to try this out.

    Returns:
        A row, in milliseconds of time as it passes.
    """
    depth, width = (28, 2) if part == "wrn28_2" else (10, 1)
    problem = Problem(lambda: WideResNet(depth, width), (3, 32, 32), channels_last=True)
    where, whole = torch.device(device), 16 if effort.is_quick else WHOLE
    data = problem.examples(whole)
    x, y = data.x.to(where), data.y.to(where)
    steps = effort.rounds * effort.steps
    uniform = _fit(problem, (x, y), where, steps, None)
    drawn = _fit(problem, (x, y), where, steps, opened(whole // 4))
    own = Loop(problem, whole)
    own.net.to(where)
    parts = {
        "score(B)": _timed(lambda: own.score(x, y), where, effort),
        "step(b)": _timed(lambda: own.step(x[: whole // 4], y[: whole // 4]), where, effort),
        "step(B)": _timed(lambda: own.step(x, y), where, effort),
    }
    ideal = parts["score(B)"] + parts["step(b)"]
    return [
        {"network": part, "B": whole, "host waits": "no"}
        | {f"{name} ms": 1e3 * seconds for name, seconds in parts.items()}
        | {"uniform ms": 1e3 * uniform, "open ms": 1e3 * drawn}
        | {"open / ideal": drawn / ideal, "trim / uniform": uniform / drawn}
    ]


class _Ready(nn.Module):
    """Keeps the one batch out of the loader's hands."""


def _fit(
    problem: Problem,
    batch: tuple[Tensor, Tensor],
    device: torch.device,
    steps: int,
    sampling: Callback | None,
) -> float:
    clock = Clock(device, warm_up=max(steps // 5, 2))
    extra = [] if sampling is None else [sampling]
    settings = {
        "accelerator": device.type,
        "precision": "bf16-mixed",
        "max_epochs": 1,
    }
    batches = [batch] * (steps + clock.warm_up + 2)
    trainer(*extra, clock, **settings).fit(Plain(problem.net()), batches)
    return median(clock.seconds)


def _timed(run: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the time of the median block of calls, for each of them."""
    times: list[float] = []
    for _ in range(effort.blocks):
        begin = time.perf_counter()
        for _ in range(effort.steps):
            with torch.autocast(device.type, torch.bfloat16):
                run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / effort.steps)
    return median(times[effort.warm_up :])


def watch_host(device: torch.device, mode: str) -> None:
    """Say what PyTorch should do when the host waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)
