"""A gate by the clock: open in a part of the run, whatever the scores."""

from typing import final

from lightning_is.sampling.gate import (
    Evidence,
    Gate,
    check_keys,
    check_part_of_run,
    is_within,
)


@final
class Window(Gate):
    """Open in a part of the run, with ordinary steps strewn in.

    Open while ``start <= progress < end`` and ``warmup`` epochs are over. With
    ``interrupt``, one ordinary batch follows after every ``interrupt`` selected ones.

    Args:
        start: Progress from which on it is open, in ``[0, end)``.
        end: Progress at which it closes, in ``(start, 1]``.
        interrupt: Selected steps before an ordinary one, at least 0; 0 has none.
        warmup: Epochs to train ordinarily first, at least 0; fractions are allowed.

    Raises:
        ValueError: If an argument is out of range.

    References:
        The switches of Selective-Backprop in MosaicML's Composer, with ``interrupt`` as
        its documentation describes it, not as its code counts; the warm-up of one epoch
        is that of Jiang et al., "Accelerating deep learning by focusing on the biggest
        losers", 2019, arXiv 1910.00762.

    Example:
        >>> gate = Window(warmup=1.0)
        >>> gate.is_open
        False
        >>> gate.observe(Evidence(1.0, 1.0, 4, 2, progress=0.1, epochs=1.0))
        >>> gate.is_open
        True
    """

    def __init__(
        self,
        start: float = 0.0,
        end: float = 1.0,
        interrupt: int = 0,
        warmup: float = 1.0,
    ) -> None:
        check_part_of_run(start, end)
        if interrupt < 0:
            raise ValueError(
                f"`interrupt` must be at least 0, got {interrupt}. 2 lets one ordinary "
                "batch follow after every two selected ones, 0 has none."
            )
        if not 0 <= warmup < float("inf"):
            raise ValueError(
                f"`warmup` must be a number of epochs of at least 0, got {warmup}. 1 "
                "sees every example once before any is left out."
            )
        self.start, self.end = start, end
        self.interrupt, self.warmup = interrupt, warmup
        self._progress = self._epochs = 0.0
        self._turn = 0  # of the interrupt + 1 steps of a round

    @property
    def _is_within(self) -> bool:
        within = is_within(self._progress, self.start, self.end)
        return within and self._epochs >= self.warmup

    @property
    def is_open(self) -> bool:
        """Whether the run is within the window and no ordinary batch is due."""
        due = self.interrupt > 0 and self._turn == self.interrupt
        return self._is_within and not due

    def observe(self, evidence: Evidence) -> None:
        """Take in where the run stands, and count the steps within the window."""
        is_within(evidence.progress, self.start, self.end)  # or refuses
        if self._is_within:
            self._turn = (self._turn + evidence.steps) % (self.interrupt + 1)
        self._progress, self._epochs = evidence.progress, evidence.epochs

    def state_dict(self) -> dict[str, float]:
        """Return where the run stood last, and the turn in the round."""
        return {
            "progress": self._progress,
            "epochs": self._epochs,
            "turn": float(self._turn),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``."""
        check_keys(self, state, {"progress", "epochs", "turn"})
        self._progress = float(state["progress"])
        self._epochs, self._turn = float(state["epochs"]), int(state["turn"])
