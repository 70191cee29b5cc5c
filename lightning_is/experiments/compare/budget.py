"""The callback that gives a run its share of time or arithmetic, and no more."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import floor, nan
from statistics import fmean
from typing import Any, Literal, TypeAlias

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_is import host
from lightning_is.experiments.compare.meter import Meter
from lightning_is.experiments.compare.referee import Measured, Referee

Decay: TypeAlias = Literal["linear", "steps"]
# Share of the learning rate that is left at a share of the budget.
DECAYS: dict[Decay, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    # Wide residual networks as in the paper: a fifth after 40 %, and again after 80 %.
    "steps": lambda share: 0.2 ** ((share >= 0.4) + (share >= 0.8)),
}


@dataclass(frozen=True)
class Point(Measured):
    """What a network reached, and when.

    Args:
        spent: Seconds, or examples' worth of arithmetic, charged until then.
        steps: Optimizer steps until then.
        tau: Equivalent increase of the batch size, the mean of what was logged since
            the point before, or that point's; NaN before there was any.
    """

    spent: float
    steps: int
    tau: float = nan


class Budget(Callback):
    """Ends a run when its budget is spent; the learning rate falls meanwhile.

    Whatever happens in ``fit`` once the data are there is charged: loading, scoring,
    drawing, the Trainer itself. Only the measurements along the way are not. The last
    step begins within the budget and may end after it. It must be the last of the
    callbacks, so that it measures what the others have finished with.

    Args:
        limit: Seconds, or examples' worth of arithmetic, of the run.
        meter: Counts them.
        referee: Measures the network.
        points: Measurements along the run, equally spaced.
        decay: How the learning rate falls: to zero on a line, or by steps.

    Attributes:
        points: The measurements; one before the first step, and the last one over
            all examples.
    """

    def __init__(
        self,
        limit: float,
        meter: Meter,
        referee: Referee,
        points: int = 20,
        *,
        decay: Decay = "linear",
    ) -> None:
        self.limit, self.meter = limit, meter
        self.points: list[Point] = []
        self._referee, self._spacing, self._left = referee, 1 / points, DECAYS[decay]
        self._due = self._spacing  # share of the budget at the next measurement
        self._rates: list[float] = []
        self._tau, self._taus = nan, list[float]()  # logged since the last measurement

    def share(self) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        return min(self.meter.spent / self.limit, 1.0)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The data are loaded, and the other callbacks have done the same.
        if stage == "fit":
            self.meter.start()

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
        if host.logs_now(trainer) and "is/tau" in trainer.callback_metrics:
            self._taus.append(float(trainer.callback_metrics["is/tau"]))
        share = self.share()
        trainer.should_stop = trainer.should_stop or share >= 1
        if self._due <= share < 1:
            self._due = (floor(share / self._spacing) + 1) * self._spacing
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_rates(trainer)
        self._measure(trainer, pl_module, thorough=True)
        self.meter.stop()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.meter.stop()  # a counter would go on in the next run

    def _set_rates(self, trainer: Trainer) -> None:
        left = self._left(self.share())
        for group, rate in zip(_groups(trainer), self._rates, strict=True):
            group["lr"] = rate * left

    def _measure(
        self, trainer: Trainer, module: LightningModule, *, thorough: bool = False
    ) -> None:
        self.meter.stop()
        found = self._referee.measure(module, thorough=thorough)
        self._tau = fmean(self._taus) if self._taus else self._tau
        self._taus.clear()
        spent, steps = self.meter.spent, trainer.global_step
        self.points.append(
            Point(**asdict(found), spent=spent, steps=steps, tau=self._tau)
        )
        self.meter.start()


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    return [
        group for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
