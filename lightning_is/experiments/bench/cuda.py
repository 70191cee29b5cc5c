"""An open step on a GPU: against the sum of its parts, and whether the host waits."""

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import Plain, opened, trainer
from lightning_is.experiments.bench.loops import Loop
from lightning_is.experiments.bench.networks import Problem
from lightning_is.experiments.wide_resnet import WideResNet

NETWORKS = {"wrn28_2": (28, 2, 512), "wrn10_1": (10, 1, 16)}  # depth, width, B
WARM_UP = 10  # steps


class Clock(Callback):
    """Times all steps after the first few together, as they pass."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self._begun = 0.0

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx + 1 == WARM_UP:
            finish(self.device)
            self._begun = time.perf_counter()
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        finish(self.device)
        self.seconds = time.perf_counter() - self._begun


def cuda(part: str, effort: Effort, device: str = "cuda") -> list[Row]:
    """Compare an open step on a quarter of a batch with ``score(B) + step(b)``.

    In bf16-mixed and channels last. Images are made up, of the shape of CIFAR-10, and
    lie on the device already.

    Args:
        part: Of `NETWORKS`; the small one is of use only to try this out.
        effort: How often.
        device: Likewise, any but a GPU.

    Returns:
        A row, in milliseconds of time as it passes; ``host waits`` are those in an open
        step, as PyTorch tells of them.
    """
    depth, width, whole = NETWORKS[part]
    problem = Problem(lambda: WideResNet(depth, width), (3, 32, 32), channels_last=True)
    where, data, size = torch.device(device), problem.examples(whole), whole // 4
    x, y = data.x.to(where), data.y.to(where)
    steps = effort.rounds * effort.steps
    uniform, _ = _fit(problem, (x, y), where, steps, None)
    drawn, waits = _fit(problem, (x, y), where, steps, opened(size))
    own = Loop(problem, whole)
    own.net.to(where)
    parts = {
        "step(B)": _timed(lambda: own.step(x, y), where, effort),
        "score(B)": _timed(lambda: own.score(x, y), where, effort),
        "step(b)": _timed(lambda: own.step(x[:size], y[:size]), where, effort),
    }
    ideal = parts["score(B)"] + parts["step(b)"]
    return [
        {"network": part, "B": whole}
        | {f"{name} ms": 1e3 * seconds for name, seconds in parts.items()}
        | {"uniform ms": 1e3 * uniform, "open ms": 1e3 * drawn, "host waits": waits}
        | {"open / ideal": drawn / ideal, "trim / uniform": uniform / drawn}
    ]


def _fit(
    problem: Problem,
    batch: tuple[Tensor, Tensor],
    device: torch.device,
    steps: int,
    sampling: Callback | None,
) -> tuple[float, float]:
    """Return seconds and waits of the host, of a step."""
    clock, extra = Clock(device), [] if sampling is None else [sampling]
    settings = {"accelerator": device.type, "precision": "bf16-mixed", "max_epochs": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", ".*synchronizing CUDA")
        # One batch again and again, as it is: not collated, not moved.
        same: Any = [batch] * (WARM_UP + steps)
        batches: DataLoader[Any] = DataLoader(same, batch_size=None)
        trainer(*extra, clock, **settings).fit(Plain(problem.net()), batches)
    waits = sum("synchronizing CUDA" in str(warning.message) for warning in caught)
    return clock.seconds / steps, waits / steps


def _timed(run: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the time of a call: of the median block of them."""
    times: list[float] = []
    for _ in range(effort.blocks):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            for _ in range(effort.steps):
                run()
        finish(device)
        times.append((time.perf_counter() - begin) / effort.steps)
    return median(times[effort.warm_up :])


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize()
