"""What was measured, and the ratios and errors that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_is.experiments.variance.draws import ORACLE, SCORES, UNIFORM


@dataclass(frozen=True)
class Row:
    """What one kind of draw did to the gradient.

    Args:
        selection: As of its `Arm`.
        score: Likewise.
        squares: Squared distance of the drawn gradient from that of all, a draw each.
        expected: What they are on average, in closed form; None where there is none.
    """

    selection: str
    score: str
    squares: tuple[float, ...]
    expected: float | None

    @property
    def distances(self) -> tuple[float, ...]:
        """Distance of each drawn gradient, as the paper measures it."""
        return tuple(square**0.5 for square in self.squares)


@dataclass(frozen=True)
class Ratio:
    """A mean of several draws in that of uniform ones, and the range of the draws.

    Args:
        mean: Of all draws; NaN where uniform ones have no variance.
        low: Of the draw with the least.
        high: Of the draw with the most.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], uniform: Sequence[float]) -> "Ratio":
        """Divide by the mean of the uniform draws.

        Example:
            >>> Ratio.of([1.0, 3.0], uniform=[4.0, 4.0])
            Ratio(mean=0.5, low=0.25, high=0.75)
        """
        unit = fmean(uniform)
        if unit == 0:
            return cls(nan, nan, nan)
        return cls(fmean(values) / unit, min(values) / unit, max(values) / unit)


@dataclass(frozen=True)
class Measurement:
    """What was found after some steps.

    Args:
        step: Optimizer steps so far.
        loss: Mean over the ``B`` examples.
        norm: Of their mean gradient.
        probabilities: Of a draw by each score, of shape ``(B,)``, in float64.
        taus: Tau of each score.
        rows: Of every kind of draw.
    """

    step: int
    loss: float
    norm: float
    probabilities: Mapping[str, Float[Tensor, " B"]]
    taus: Mapping[str, float]
    rows: tuple[Row, ...]

    def row(self, selection: str, score: str) -> Row:
        """Find the row of one kind of draw."""
        return next(
            r for r in self.rows if (r.selection, r.score) == (selection, score)
        )

    def variance(self, selection: str, score: str) -> Ratio:
        """Return the variance of a draw in that of the uniform one of its kind."""
        row, uniform = self.row(selection, score), self.row(selection, UNIFORM)
        return Ratio.of(row.squares, uniform.squares)

    def distance(self, selection: str, score: str) -> Ratio:
        """Return the mean distance likewise: the paper's measure."""
        row, uniform = self.row(selection, score), self.row(selection, UNIFORM)
        return Ratio.of(row.distances, uniform.distances)

    def expected(self, selection: str, score: str) -> float:
        """Return the variance likewise in closed form; NaN where there is none."""
        one = self.row(selection, score).expected
        uniform = self.row(selection, UNIFORM).expected
        return nan if one is None or not uniform else one / uniform

    @property
    def errors(self) -> dict[str, float]:
        """Sum of squared errors of each score's probabilities: Figure 2 in a number."""
        best = self.probabilities[ORACLE]
        return {
            name: float((self.probabilities[name] - best).square().sum())
            for name in SCORES
        }

    def plain(self) -> dict[str, Any]:
        """Return all of it but the probabilities, in plain types."""
        return {
            "step": self.step,
            "loss": self.loss,
            "gradient_norm": self.norm,
            "squared_errors": self.errors,
            "tau": dict(self.taus),
            "draws": [
                {
                    "selection": row.selection,
                    "score": row.score,
                    "variance": vars(self.variance(row.selection, row.score)),
                    "distance": vars(self.distance(row.selection, row.score)),
                    "expected_variance": self.expected(row.selection, row.score),
                    "squared_distances": list(row.squares),
                }
                for row in self.rows
            ],
        }


def pooled_errors(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Add the squared errors of all measurements up."""
    return {name: sum(found.errors[name] for found in measurements) for name in SCORES}
