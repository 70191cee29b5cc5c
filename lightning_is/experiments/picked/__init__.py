"""Which images get picked: how often each was loaded, and trained on."""

from lightning_is.experiments.picked.program import picked

__all__ = ["picked"]
