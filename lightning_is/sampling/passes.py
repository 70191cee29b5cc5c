"""Pass schemes: which examples of a dataset make up the next stretch of training.

Where a selection picks ``b`` of ``B`` loaded candidates, a pass scheme decides before
anything is loaded, from the last known score of every example. Its work is vectorised
over the dataset, once per pass, so that no step pays for the size of the dataset.
Shapes: ``N`` examples in the dataset, ``m`` to be loaded in a pass.
"""

from typing import NamedTuple, Protocol, runtime_checkable

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
            progress: Share of the run that is over, in ``[0, 1]``, to anneal by.
            generator: The only source of random numbers.
        """
        ...
