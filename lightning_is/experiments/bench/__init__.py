"""Benchmarks: paired ratios in one process, on one thread, by CPU time."""

from lightning_is.experiments.bench.effort import QUICK, Effort, Row
from lightning_is.experiments.bench.fits import quiet
from lightning_is.experiments.bench.program import measure
from lightning_is.experiments.bench.suite import BENCHMARKS, Benchmark

__all__ = [
    "BENCHMARKS",
    "QUICK",
    "Benchmark",
    "Effort",
    "Row",
    "measure",
    "quiet",
]
