"""Benchmarks: paired ratios in one process, on one thread, by CPU time."""

from lightning_is.experiments.bench.equal_time import equal_time
from lightning_is.experiments.bench.passes import passes
from lightning_is.experiments.bench.steps import closed, limit

__all__ = ["closed", "equal_time", "limit", "passes"]
