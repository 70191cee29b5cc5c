"""How long a benchmark may take, and what it leaves behind."""

from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]  # of a table: names of columns and plain values


@dataclass(frozen=True)
class Effort:
    """How often to measure.

    Args:
        rounds: Blocks of steps of every arm, which take turns.
        steps: In a block; gates look at every fourth.
        warm_up: Blocks of every arm that do not count.
        is_quick: Whether to leave out what is large.
    """

    rounds: int = 20
    steps: int = 8
    warm_up: int = 2
    is_quick: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of every arm, with those that do not count."""
        return self.rounds + self.warm_up


QUICK = Effort(rounds=2, steps=2, warm_up=1, is_quick=True)
