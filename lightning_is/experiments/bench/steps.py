"""What a step costs: with the gate closed, and against the limit with it open."""

import time
from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.bench.problem import (
    BATCH,
    PRESAMPLE,
    bare_parts,
    classifier,
    load,
    trainer,
)
from lightning_is.experiments.data import HubImages
from lightning_is.sampling import AlwaysOpen, NeverOpen

_WARM_UP = 10


class StepTimes(Callback):
    """Notes the CPU seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        self._ends.append(time.process_time())

    def median(self) -> float:
        """Return the median step, loading included, after a warm-up."""
        pairs = zip(self._ends, self._ends[1:], strict=False)
        return median([end - begin for begin, end in pairs][_WARM_UP:])


def fit(data: HubImages, steps: int, *callbacks: Callback) -> float:
    """Train for some steps; return the CPU seconds of the median one."""
    times = StepTimes()
    run = trainer(*callbacks, times, max_steps=steps, limit_val_batches=0)
    run.fit(classifier(data, seed=0), datamodule=data)
    return times.median()


def closed(path: str, rounds: int, steps: int) -> dict[str, Any]:
    """Compare steps with the gate kept shut with steps without the callback.

    Args:
        path: Images on the hub or in a folder.
        rounds: Pairs of runs; the order changes from pair to pair.
        steps: Of each run.

    Returns:
        The ratio of each pair, their median, and the plain step in milliseconds.
    """
    data, ratios, plain = load(path), [], []
    for number in range(rounds):
        arms = [(), (ImportanceSamplingCallback(BATCH, gate=NeverOpen()),)]
        found = {}
        for arm in arms if number % 2 else reversed(arms):
            found[len(arm)] = fit(data, steps, *arm)
        plain.append(found[0])
        ratios.append(found[1] / found[0])
    return {
        "ratios": ratios,
        "closed / plain": median(ratios),
        "plain ms": 1e3 * median(plain),
    }


def limit(path: str, rounds: int, steps: int) -> dict[str, Any]:
    """Compare what trimming gains with the limit its separately measured parts set.

    Args:
        path: Images on the hub or in a folder.
        rounds: Repetitions; each measures all parts anew.
        steps: Of each run.

    Returns:
        Medians over the rounds: the parts of a hand-written loop in milliseconds, the
        forward share of a step, the limit, the gain in steps a second, their ratio.
    """
    data = load(path)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        parts = _parts(data, steps)
        uniform = fit(data, steps)
        sampling = ImportanceSamplingCallback(BATCH, gate=AlwaysOpen())
        opened = fit(data, steps, sampling)
        ideal = parts["step(B)"] / (parts["score(B)"] + parts["step(b)"])
        values = {f"{name} ms": 1e3 * seconds for name, seconds in parts.items()} | {
            "forward share": parts["score(B)"] / parts["step(B)"],
            "uniform ms": 1e3 * uniform,
            "open ms": 1e3 * opened,
            "limit": ideal,
            "gain": uniform / opened,
            "gain / limit": uniform / opened / ideal,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def _parts(data: HubImages, steps: int) -> dict[str, float]:
    """Time the parts of a hand-written loop, one after the other on each batch."""
    bare = bare_parts(classifier(data, seed=0))
    times: dict[str, list[float]] = {"step(B)": [], "score(B)": [], "step(b)": []}
    for x, y in islice(cycle_batches(data), steps):
        drawn = torch.randperm(PRESAMPLE)[:BATCH]
        _time(times["step(B)"], bare["step"], x, y)
        _time(times["score(B)"], bare["score"], x, y)
        _time(times["step(b)"], bare["step"], x[drawn], y[drawn])
    return {name: median(seconds[_WARM_UP:]) for name, seconds in times.items()}


def cycle_batches(data: HubImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass over the training batches again and again."""
    while True:
        yield from data.train_dataloader()


def _time(into: list[float], run: Any, x: Tensor, y: Tensor) -> None:
    begin = time.process_time()
    run(x, y)
    into.append(time.process_time() - begin)
