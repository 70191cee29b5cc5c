"""Pass schemes: which examples of a dataset make up the next stretch of training.

Where a selection picks ``b`` of ``B`` loaded candidates, a pass scheme decides before
anything is loaded, from the last known score of every example. Its work is vectorised
over the dataset, once per pass, so that no step pays for the size of the dataset.
Shapes: ``N`` examples in the dataset, ``m`` to be loaded in a pass.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


class Pass(NamedTuple):
    """Examples to load, in this order, and what each counts for.

    Attributes:
        indices: Positions in the dataset, int64, each in ``[0, N)``; may repeat.
        weights: What each of them counts for in the mean of its batch, float32.
    """

    indices: Int[Tensor, " m"]
    weights: Float[Tensor, " m"]


@runtime_checkable
class PassScheme(Protocol):
    """Turns the last known scores of a dataset into its next pass. Stateless."""

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a pass.

        Args:
            scores: Last known score of every example, at least 0, on the CPU;
                infinite for those never seen, so that new examples come first.
            progress: Share of the run that is over, in ``[0, 1]``, to anneal by; NaN
                if nobody knows.
            generator: The only source of random numbers.
        """
        ...


@dataclass(frozen=True)
class Shuffled:
    """Load every example once, in random order: ordinary training.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> drawn = Shuffled()(torch.ones(3), 0.0, generator)
        >>> sorted(drawn.indices.tolist()), drawn.weights.tolist()
        ([0, 1, 2], [1.0, 1.0, 1.0])
    """

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw a permutation."""
        order = torch.randperm(len(scores), generator=generator)
        return Pass(order, torch.ones(len(order)))


@dataclass(frozen=True)
class RandomSubset:
    """Load a fresh random subset in every pass, whatever the scores.

    No example repeats within a pass, and all are equally likely, so the mean over a
    pass is unbiased without weights. Subsets of different passes are independent: an
    example may be left out of several in a row.

    Args:
        share: Of the dataset to load in a pass, rounded up, in ``(0, 1]``.

    Raises:
        ValueError: If ``share`` is out of range.

    References:
        Okanovic et al., "Repeated random sampling for minimizing the time-to-accuracy
        of learning", 2023, arXiv 2305.18424; not verified against the paper's text.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> len(RandomSubset(share=0.5)(torch.ones(5), 0.0, generator).indices)
        3
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"`share` must be in (0, 1], got {self.share}. 0.3 loads three of ten "
                "examples in a pass, 1 all of them."
            )

    def __call__(
        self, scores: Float[Tensor, " N"], progress: float, generator: Generator
    ) -> Pass:
        """Draw distinct positions."""
        # A product just above a whole number is that number, rounded: 0.55 of 100.
        wanted = math.ceil(self.share * len(scores) * (1 - 1e-12))
        order = torch.randperm(len(scores), generator=generator)
        # Cloned, or a checkpoint of the pass would hold the whole order.
        return Pass(order[:wanted].clone(), torch.ones(wanted))
