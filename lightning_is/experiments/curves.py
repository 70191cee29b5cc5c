"""What a run looked like over time: the numbers behind its table and its figure."""

from dataclasses import asdict, dataclass
from math import nan
from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_is import ImportanceSamplingCallback, host


@dataclass(frozen=True)
class Point:
    """One logged step.

    Args:
        step: Optimizer steps so far.
        seconds: Since training began, validation included.
        loss: Mean loss of examples that nobody selected: the presample while the gate
            is open, the batch itself otherwise.
        tau: How much larger a batch importance sampling stands for, at this step; NaN
            without it.
        is_open: Whether the gate was open.
    """

    step: int
    seconds: float
    loss: float
    tau: float
    is_open: bool


class CurveRecorder(Callback):
    """Keeps a point of the training curves at every logged step.

    It reads what the module and the other callbacks logged, so it comes after them.

    Attributes:
        points: The curves.
        seconds: Since training began.
        batches: Trained on, of which ``drawn`` were drawn by their scores.

    Example:
        >>> CurveRecorder().points
        []
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.seconds = 0.0
        self.batches = self.drawn = 0
        self._start = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed run goes on where the clock of the first one stopped.
        self._start = perf_counter() - self.seconds

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.seconds = perf_counter() - self._start
        self.batches += 1
        self.drawn += any(sampling.is_sampling for sampling in samplings(trainer))
        step, last = trainer.global_step, self.points[-1].step if self.points else 0
        # With accumulated gradients several batches end at the same step.
        if step > last and host.logs_now(trainer):
            self.points.append(self._point(step, trainer))

    @override
    def state_dict(self) -> dict[str, Any]:
        points = [asdict(point) for point in self.points]
        counts = {"batches": self.batches, "drawn": self.drawn}
        return {"seconds": self.seconds, "points": points, **counts}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.batches, self.drawn = state_dict["batches"], state_dict["drawn"]
        self.points = [Point(**point) for point in state_dict["points"]]

    def _point(self, step: int, trainer: Trainer) -> Point:
        logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
        is_open = logged.get("is/open", 0.0) > 0.5
        # The loss of a trimmed batch is that of hard examples, not of the training set;
        # where a source chose what to load, neither is.
        loss = logged["train/loss"]
        if is_open:
            loss = logged.get("is/presample_loss", loss)
        return Point(step, self.seconds, loss, logged.get("is/tau", nan), is_open)


def samplings(trainer: Trainer) -> list[ImportanceSamplingCallback]:
    """Return the importance sampling callbacks of a trainer: one, or none."""
    return [
        callback
        for callback in host.callbacks(trainer)
        if isinstance(callback, ImportanceSamplingCallback)
    ]
