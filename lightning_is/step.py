"""One step of the fit, from the arrival of its batch to its metrics."""

from dataclasses import dataclass

from torch import Tensor

from lightning_is.monitor import Mark, Stopwatch
from lightning_is.sampling.gate import Evidence
from lightning_is.scoring.scorer import Reading


@dataclass
class Step:
    """The batch in hand.

    Attributes:
        examples: That the user's step trains on.
        loaded: Examples that the loader yielded.
        begun: When the batch arrived.
        weights: Of the examples, of shape ``(examples,)``; None if they are all 1.
        index: Of what was loaded, in the dataset, if it was drawn before.
        is_kept: Whether they come from a presample that arrived before this batch.
        is_sampled: Whether the examples were drawn by their scores.
        is_scored: Whether a pass took in the statistics of what was loaded.
        scores: Of everything that was loaded, without the weights it came with.
        drawn_from: Scores, weighted, that the draw was made by.
        loss: Mean over everything that was loaded.
        scoring: When scoring and drawing began and ended.
        read: Reads the scores that an ordinary step leaves behind.
    """

    examples: int
    loaded: int
    begun: Mark
    weights: Tensor | None = None
    index: Tensor | None = None
    is_kept: bool = False
    is_sampled: bool = False
    is_scored: bool = False
    scores: Tensor | None = None
    drawn_from: Tensor | None = None
    loss: Tensor | None = None
    scoring: tuple[Mark, Mark] | None = None
    read: Reading | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Examples loaded, and trained on."""
        return self.loaded, self.examples

    @property
    def counting(self) -> Tensor | None:
        """Scores times weights: what the examples that were loaded count for."""
        if self.drawn_from is not None or self.scores is None:
            return self.drawn_from
        # Where somebody else picked them, the weights are those of others.
        weights = None if self.is_sampled else self.weights
        return self.scores if weights is None else self.scores * weights

    def metrics(self, last: Evidence, watch: Stopwatch) -> dict[str, float | Tensor]:
        """Describe the step to the loggers; on CUDA this waits for the device."""
        found: dict[str, float | Tensor] = {
            "is/tau": last.tau,
            "is/open": float(self.is_sampled),
            "is/effective_batch": last.effective_batch,
            "is/max_weight": 1.0 if self.weights is None else self.weights.max(),
            "is/score_time_share": self._score_time_share(watch),
        }
        if self.loss is not None:
            found["is/presample_loss"] = self.loss
        return found

    def _score_time_share(self, watch: Stopwatch) -> float:
        if self.scoring is None:
            return 0.0
        whole = watch.seconds(self.begun, watch.mark())
        return watch.seconds(*self.scoring) / max(whole, 1e-9)
