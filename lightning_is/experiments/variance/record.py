"""What was measured, and the ratios and errors that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, nan
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
    def of(cls, values: Sequence[float], unit: float) -> "Ratio":
        """Divide by what uniform draws have; without variance they have about 0.

        Example:
            >>> Ratio.of([1.0, 3.0], unit=4.0)
            Ratio(mean=0.5, low=0.25, high=0.75)
        """
        if unit <= 0:
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
        """Return the variance of a draw in that of the uniform one of its kind.

        The latter is exact: a mean of few draws would move all ratios together.
        """
        return Ratio.of(self.row(selection, score).squares, self._unit(selection))

    def distance(self, selection: str, score: str) -> Ratio:
        """Return the mean distance in that of uniform draws: the paper's measure."""
        row, uniform = self.row(selection, score), self.row(selection, UNIFORM)
        return Ratio.of(row.distances, fmean(uniform.distances))

    def expected(self, selection: str, score: str) -> float:
        """Return the variance likewise, on average; NaN without a closed form."""
        one, unit = self.row(selection, score).expected, self._unit(selection)
        return nan if one is None or unit <= 0 else one / unit

    def _unit(self, selection: str) -> float:
        """Return the variance of the uniform draw of a kind, which is known exactly."""
        found = self.row(selection, UNIFORM).expected
        assert found is not None  # noqa: S101  `expected_square` has these two
        return found

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
                    "expected_squared_distance": row.expected,
                }
                for row in self.rows
            ],
        }


def pooled_errors(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Add the squared errors of all measurements up."""
    return {name: fsum(found.errors[name] for found in measurements) for name in SCORES}


def pooled_points(measurements: Sequence[Measurement]) -> int:
    """Count the probabilities that `pooled_errors` adds up, of each score."""
    return sum(len(found.probabilities[ORACLE]) for found in measurements)
