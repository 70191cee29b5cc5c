"""All benchmarks: what they are made of, and what they must show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lightning_is.experiments.bench import cuda as gpu
from lightning_is.experiments.bench import hopeless
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.limit import limit
from lightning_is.experiments.bench.memory import (
    CHOSEN,
    HISTORY,
    OPEN,
    SAMPLING,
    memory,
)
from lightning_is.experiments.bench.networks import LARGE, NETWORKS, SMALL
from lightning_is.experiments.bench.overhead import overhead
from lightning_is.experiments.bench.passes import SOURCES, passes
from lightning_is.experiments.bench.stages import (
    BATCHES,
    HISTORIES,
    history,
    share,
    stages,
)
from lightning_is.experiments.bench.variance import variance


@dataclass(frozen=True)
class Bound:
    """What a column must show.

    Args:
        most: Largest value.
        least: Smallest value.
        only: Value of the first column of the rows that it holds for; all if empty.
    """

    most: float = float("inf")
    least: float = float("-inf")
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        low, high = self.least > float("-inf"), self.most < float("inf")
        return " ".join(
            [f"\u2265 {self.least:g}"] * low + [f"\u2264 {self.most:g}"] * high
        )

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return self.least <= value <= self.most


@dataclass(frozen=True)
class Benchmark:
    """A table to fill.

    Args:
        run: Measures one of the parts; returns rows of the table.
        parts: That it is made of.
        title: Says what is measured.
        bounds: What columns must show.
        effort: How long it usually takes.
    """

    run: Callable[[str, Effort], list[Row]]
    parts: Sequence[str]
    title: str
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)

    def parts_of(self, effort: Effort) -> Sequence[str]:
        """Return the parts that there is time for."""
        return self.parts[:2] if effort.is_quick else self.parts

    def left_out(self) -> str:
        """Say why it cannot run here; nothing if it can."""
        if self.run is gpu.cuda and not torch.cuda.is_available():
            return "no GPU: left out WideResNet-28-2 in bf16, and the host's waits"
        return ""


SANE = (*SMALL, *LARGE)
BENCHMARKS: dict[str, Benchmark] = {
    "overhead": Benchmark(
        overhead,
        tuple(NETWORKS),
        "A step without the callback, with it closed and open (B/4), and by hand",
        {
            "closed / lightning": Bound(most=1.02, only=SANE),
            "open / open loop": Bound(most=1.05, only=SANE),
        },
    ),
    "closed": Benchmark(
        hopeless.closed,
        tuple(hopeless.PROBLEMS),
        "Where sampling cannot help: the callback shut, and as it comes",
        {
            "shut / plain in all": Bound(most=1.02),
            "default / plain in all": Bound(most=1.02),
            "default / plain loss": Bound(most=1.02),
        },
        hopeless.LONG,
    ),
    "limit": Benchmark(
        limit,
        tuple(NETWORKS),
        "Epochs a second of trimming against step(B) / (score(B) + step(b))",
        {"gain / limit": Bound(least=0.92, only=SANE)},
    ),
    "stages": Benchmark(
        stages,
        tuple(str(size) for size in BATCHES),
        "The stages of sampling by the size of the batch, b = B/4",
    ),
    "share": Benchmark(
        share,
        tuple(SMALL),
        "The stages of sampling in an open step on 256 of 1024",
        {"stages / open step": Bound(most=0.02)},
    ),
    "history": Benchmark(
        history,
        tuple(str(size) for size in HISTORIES),
        "Choosing what to load by old scores, by the size of the dataset",
    ),
    "passes": Benchmark(passes, tuple(SOURCES), "Choosing what to load, by the source"),
    "variance": Benchmark(
        variance,
        ("lognormal",),
        "Variance of the gradient of 128 drawn of 384, norms lognormal(1)",
        {"variance / multinomial": Bound(most=0.4, only=("systematic",))},
    ),
    "memory": Benchmark(
        memory,
        (OPEN, *SAMPLING, HISTORY),
        "Memory at the peak of a process: open steps of a deep network, small CNN",
        {"beyond plain / inputs": Bound(most=1.0, only=(CHOSEN,))},
    ),
    "cuda": Benchmark(
        gpu.cuda,
        ("wrn28_2",),
        "On a GPU: an open step against score(B) + step(b)",
        {"open / ideal": Bound(most=1.05), "host waits": Bound(most=0.0)},
    ),
}
