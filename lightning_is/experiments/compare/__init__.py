"""Every method for the same time, on the same problem, from the same starts."""

from lightning_is.experiments.compare.program import compare

__all__ = ["compare"]
