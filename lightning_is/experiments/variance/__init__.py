"""What draws do to the gradient along a run: Figures 1 and 2 of the paper."""

from lightning_is.experiments.variance.program import measure_variance

__all__ = ["measure_variance"]
