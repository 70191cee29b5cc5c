"""How far a run is: what survives a checkpoint besides the parts."""

from dataclasses import dataclass

from lightning_is.arguments import check_kinds


@dataclass
class Progress:
    """What survives a checkpoint besides the gate: a few integers.

    Attributes:
        seed: Of the draws.
        draws: Made so far.
        batches: Seen so far.
        pending: Steps since the gate was last told of any.
        skipped: Whose scores were not finite.
        largest: Examples of the largest batch of the fit.

    Raises:
        TypeError: If ``seed`` is no whole number.
        ValueError: If it is negative.
    """

    seed: int
    draws: int = 0
    batches: int = 0
    pending: int = 0
    skipped: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        check_kinds({"seed": self.seed})
        if self.seed < 0:
            raise ValueError(
                f"`seed` must be at least 0, got {self.seed}. Any other number does."
            )
