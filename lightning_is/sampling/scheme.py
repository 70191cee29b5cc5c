"""What a selection scheme is, and what it hands over.

Shapes: ``B`` candidates, ``b`` nominal batch size.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, final

from jaxtyping import Float, Int
from torch import Generator, Tensor


class Draw(NamedTuple):
    """Candidates drawn, and how often each was expected to be drawn.

    One fact carries every scheme: ``b / (B * expected_counts)`` are unbiased weights,
    whoever drew.

    Attributes:
        indices: Positions in the presample, each in ``[0, B)``; may repeat.
        expected_counts: Draws of that candidate per batch, on average: ``b * p_i`` with
            replacement, the inclusion probability without. Positive, no unit.
    """

    indices: Int[Tensor, " b"]
    expected_counts: Float[Tensor, " b"]


class Selection(ABC):
    """A scheme that draws ``b`` of ``B`` candidates, and knows the noise that adds.

    A scheme is stateless. Drawing has two steps, so that the first can be shared with
    `noise`: what each candidate can expect, then who is picked.
    """

    @final
    def __call__(
        self,
        probs: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Draw:
        """Draw ``batch_size`` candidates by their probabilities."""
        counts = self.expected_counts(probs, batch_size)
        indices = self.pick(counts, batch_size, generator=generator)
        return Draw(indices, counts[indices])

    @abstractmethod
    def expected_counts(
        self, probs: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Return how often each candidate is drawn on average; they sum to ``b``."""

    @abstractmethod
    def pick(
        self,
        counts: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Int[Tensor, " b"]:
        """Draw ``batch_size`` positions that honour the expected counts."""

    @abstractmethod
    def noise(
        self, scores: Float[Tensor, " B"], counts: Float[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Return the variance that drawing adds to the presample's mean gradient.

        In units of ``scores`` squared, for scores that are gradient norms; terms that
        pair examples are dropped, as only the norms are known.
        """
