"""Skipped steps: their scores are not finite, so they tell nothing; counted, said once.

What they train on is drawn uniformly. Nobody waits for the device to find that out.
"""

from typing import final

from lightning.pytorch.utilities import rank_zero_warn

from lightning_is.progress import Progress
from lightning_is.settings import Settings


@final
class Skips:
    """Counts skipped steps.

    Args:
        settings: Of the callback.
        counts: Of steps, updated in place.
    """

    def __init__(self, settings: Settings, counts: Progress) -> None:
        self._settings, self._counts = settings, counts
        self._has_warned = False

    def add(self, scores: float) -> None:
        """Count a step, on whose ranks so many scores were not finite."""
        self._counts.skipped += 1
        if self._has_warned:
            return
        self._has_warned = True
        rank_zero_warn(
            f"Scores must be finite, got {scores:.0f} that are not. Such a step is "
            "skipped: it trains, but its examples are drawn uniformly, and the gate "
            "learns nothing from it; `is/skipped` counts them. Look at the loss of "
            "these examples (overflow, log of 0, bad labels), or pass "
            '`bad_scores="raise"` to stop there.'
        )

    def metrics(self) -> dict[str, float]:
        """Return how many there were so far, if there may be any."""
        skipped = float(self._counts.skipped)
        return {"is/skipped": skipped} if self._settings.forgives else {}
