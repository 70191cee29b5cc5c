"""The plan: distribution, selection and weights, composed."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Generator, Tensor

from lightning_is.sampling.distributions import Distribution, Mixed
from lightning_is.sampling.scheme import Draw, Selection
from lightning_is.sampling.selection import effective_batch, systematic
from lightning_is.sampling.weights import PowerWeights, Weights


class Drawn(NamedTuple):
    """What a plan decided.

    Attributes:
        indices: Positions in the presample, each in ``[0, B)``.
        weights: What each of them counts for in the mean of the batch.
    """

    indices: Int[Tensor, " b"]
    weights: Float[Tensor, " b"]


@dataclass(frozen=True)
class ImportancePlan:
    """How scores become a batch: who is likely, who is drawn, what each counts for.

    The default draws systematically by scores mixed with 5 % of uniform, and weights
    without bias: no weight above 20, no example twice.

    Args:
        distribution: Scores to probabilities.
        selection: Probabilities to drawn positions.
        weights: Drawn positions to weights.

    Raises:
        TypeError: If one of them is none of its kind.

    Example:
        >>> import torch
        >>> plan = ImportancePlan()
        >>> drawn = plan.draw(torch.tensor([1.0, 1.0, 6.0]), batch_size=2)
        >>> 2 in drawn.indices, bool((drawn.weights <= 20).all())
        (True, True)
    """

    distribution: Distribution = field(default_factory=Mixed)
    selection: Selection = systematic
    weights: Weights = field(default_factory=PowerWeights)

    def __post_init__(self) -> None:
        _check("distribution", self.distribution, Distribution, "Mixed(share=0.1)")
        _check("selection", self.selection, Selection, "systematic")
        _check("weights", self.weights, Weights, "PowerWeights()")

    def draw(
        self,
        scores: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Drawn:
        """Draw ``batch_size`` of the ``B`` scored candidates and weight them.

        Raises:
            ValueError: If a score is NaN, infinite or negative (on the CPU), or the
                selection cannot draw that many.
        """
        counts = self.expected_counts(scores, batch_size)
        return self.pick(counts, batch_size, generator=generator)

    def expected_counts(
        self, scores: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Return how often each scored candidate is drawn on average: half a draw."""
        return self.selection.expected_counts(self.distribution(scores), batch_size)

    def pick(
        self,
        counts: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Drawn:
        """Draw by expected counts, and weight: the other half."""
        indices = self.selection.pick(counts, batch_size, generator=generator)
        weights = self.weights(Draw(indices, counts[indices]), len(counts))
        return Drawn(indices, weights)

    def effective_batch(
        self, scores: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, ""]:
        """Return the batch-size multiplier that `effective_batch` predicts."""
        probs = self.distribution(scores)
        return effective_batch(scores, probs, batch_size, self.selection)


def _check(name: str, part: object, kind: type, such: str) -> None:
    if isinstance(part, type) or not isinstance(part, kind):
        got = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
        raise TypeError(
            f"`{name}` of a plan must be a {kind.__name__}, got {got}. Pass `{such}`, "
            "say."
        )
