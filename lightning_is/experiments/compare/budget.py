"""The callback that gives a run its time, and no more."""

from dataclasses import asdict, dataclass
from math import floor
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_is.experiments.compare.referee import Measured, Referee
from lightning_is.experiments.compare.stopwatch import Stopwatch


@dataclass(frozen=True)
class Point(Measured):
    """What a network reached, and when.

    Args:
        seconds: Time charged until then.
        steps: Optimizer steps until then.
    """

    seconds: float
    steps: int


class Budget(Callback):
    """Ends a run when its time is spent; the learning rate falls to zero by then.

    Whatever happens in ``fit`` once the data are there is charged: loading, scoring,
    drawing, the Trainer itself. Only the measurements along the way are not. The last
    step begins within the budget and may end after it. It must be the last of the
    callbacks, so that it measures what the others have finished with.

    Args:
        seconds: Time of the run.
        watch: Counts it.
        referee: Measures the network.
        points: Measurements along the run, equally spaced.

    Attributes:
        points: The measurements; one before the first step, and the last one over
            all examples.
    """

    def __init__(
        self, seconds: float, watch: Stopwatch, referee: Referee, points: int = 20
    ) -> None:
        self.seconds, self.watch = seconds, watch
        self.points: list[Point] = []
        self._referee, self._spacing = referee, 1 / points
        self._due = self._spacing  # share of the budget at the next measurement
        self._rates: list[float] = []

    def share(self) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        return min(self.watch.seconds / self.seconds, 1.0)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The data are loaded; what the other callbacks prepare comes after this.
        if stage == "fit":
            self.watch.start()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rates = [group["lr"] for group in _groups(trainer)]
        self._measure(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._set_rates(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        share = self.share()
        trainer.should_stop = trainer.should_stop or share >= 1
        if self._due <= share < 1:
            self._due = (floor(share / self._spacing) + 1) * self._spacing
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_rates(trainer)
        self._measure(trainer, pl_module, thorough=True)
        self.watch.stop()

    def _set_rates(self, trainer: Trainer) -> None:
        left = 1 - self.share()
        for group, rate in zip(_groups(trainer), self._rates, strict=True):
            group["lr"] = rate * left

    def _measure(
        self, trainer: Trainer, module: LightningModule, *, thorough: bool = False
    ) -> None:
        self.watch.stop()
        found = self._referee.measure(module, thorough=thorough)
        spent = self.watch.seconds
        self.points.append(
            Point(**asdict(found), seconds=spent, steps=trainer.global_step)
        )
        self.watch.start()


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    return [
        group for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
