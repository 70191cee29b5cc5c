"""Benchmarks: paired ratios in one process, on one thread, by CPU time."""

from lightning_is.experiments.bench.suite import BENCHMARKS, Benchmark, Effort, Row

__all__ = ["BENCHMARKS", "Benchmark", "Effort", "Row"]
