"""What chooses the examples before they are loaded."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Generator, Tensor

from lightning_is.sampling.passes import Pass
from lightning_is.sampling.randomness import draw_generator

_SHARED = 1 << 32  # in place of a rank, for draws that all ranks make alike


@dataclass(frozen=True)
class Loading:
    """The run that a source chooses for.

    Attributes:
        dataset: What will be loaded from.
        examples: Its length ``N``.
        seed: Of the draws.
        progress: Returns the share of the run that is over, in ``[0, 1]``.
        rescore: Scores the examples at some positions by a forward pass of the network
            over them, and returns these scores, of shape ``(k,)``, on the CPU; infinite
            where there is none.
        rank: Of this process.
        world_size: Number of processes.
    """

    dataset: Any
    examples: int
    seed: int
    progress: Callable[[], float]
    rescore: Callable[[Tensor], Tensor]
    rank: int = 0
    world_size: int = 1

    def generator(self, counter: int, *, shared: bool) -> Generator:
        """Make the generator of one draw.

        Args:
            counter: Of the draw, at least 0.
            shared: Whether every rank makes the same draw.
        """
        rank = _SHARED if shared else _SHARED + 1 + self.rank
        return draw_generator(self.seed, rank, counter)


class IndexSource(ABC):
    """Chooses what to load, a batch at a time, from what is known without loading.

    Its state, histories included, is all tensors and plain numbers, and the same on
    every rank: what it observes has been gathered from all of them.
    """

    @abstractmethod
    def bind(self, loading: Loading) -> None:
        """Begin to choose for a run; a state loaded before must fit its dataset.

        Raises:
            ValueError: If the dataset has another number of examples than that state.
        """

    @abstractmethod
    def draw(self, batch_size: int) -> Pass:
        """Choose the next ``batch_size`` examples of this rank, exactly that many.

        Loaders fetch ahead, so batches are chosen some steps before they are used.
        """

    @abstractmethod
    def observe(self, indices: Int[Tensor, " k"], scores: Float[Tensor, " k"]) -> None:
        """Take in the scores of examples just trained on, of all ranks, on the CPU.

        Args:
            indices: Their positions in the dataset, int64; may repeat.
            scores: Unweighted scores, finite and at least 0.
        """

    def metrics(self) -> dict[str, float]:
        """Return numbers for the logs, named ``is/...``; none as a rule."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state in tensors and plain types."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same kind of source."""
