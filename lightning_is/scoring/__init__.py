"""What needs a model: the head tap, the traceless scoring pass, the scorers."""

from lightning_is.scoring.context import ScoreMode, TracelessContext
from lightning_is.scoring.discovery import find_heads, traced_outputs
from lightning_is.scoring.gradient_norm import GradientNorm
from lightning_is.scoring.loss import Loss, LossRecorder
from lightning_is.scoring.scorer import Reading, Scored, Scorer, Step
from lightning_is.scoring.tap import HeadTap, example_norms
from lightning_is.scoring.upper_bound import UpperBound

__all__ = [
    "GradientNorm",
    "HeadTap",
    "Loss",
    "LossRecorder",
    "Reading",
    "ScoreMode",
    "Scored",
    "Scorer",
    "Step",
    "TracelessContext",
    "UpperBound",
    "example_norms",
    "find_heads",
    "traced_outputs",
]
