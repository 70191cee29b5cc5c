"""The callback that measures draws along a fit, and changes nothing in it."""

from collections.abc import Callable, Sequence
from typing import Any, final

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_is import host
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.measuring import Measurer
from lightning_is.experiments.variance.record import Measurement
from lightning_is.scoring.context import random_states_kept

Show = Callable[[int, int, str], None]
"""Is told the step, of how many, and what is being done."""

Keep = Callable[[list[Measurement]], None]
"""Is given all that was measured so far."""


@final
class VarianceObserver(Callback):
    """Measures after some steps, and at the end of the fit.

    Training goes on as if it had not been there, to the last bit.

    Args:
        batch: The examples to draw from, as a loader would yield them.
        design: What is measured.
        steps: Optimizer steps to measure after; 0 is before the first.
        points: Measurements where ``steps`` is None: evenly spaced on a logarithmic
            scale, as `spaced` says.
        show: Is told how far the fit is.
        keep: Is called after each measurement: a fit that fails later loses none.

    Attributes:
        measurements: What was found, in order.

    Raises:
        ValueError: At the start of the fit, if a step lies before it (which may begin
            at a checkpoint) or beyond it, or it has no end.
        RuntimeError: Then, if the step cannot be measured; so says `Measurer`.
    """

    def __init__(
        self,
        batch: Any,
        design: Design,
        *,
        steps: Sequence[int] | None = None,
        points: int = 8,
        show: Show = lambda *_: None,
        keep: Keep = lambda _: None,
    ) -> None:
        self._batch, self._design = batch, design
        self._steps, self._points = steps, points
        self._show, self._keep = show, keep
        self._due: set[int] = set()
        self._total = 0
        self._measurer: Measurer | None = None
        self.measurements: list[Measurement] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "A measured run needs an end, got a Trainer without one. Set "
                "`max_epochs` or `max_steps`."
            )
        self._total, self.measurements = int(total), []
        steps = self._steps
        if steps is None:
            steps = spaced(self._total, self._points)
        self._due = _checked(steps, first=trainer.global_step, last=self._total)
        with random_states_kept(pl_module.device):  # augmentation may draw
            batch = host.before_transfer(trainer, self._batch)
            batch = trainer.strategy.batch_to_device(batch)
            self._measurer = Measurer(
                trainer, pl_module, batch=batch, design=self._design
            )
            self._measurer.rehearse()
        self._look(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._show(trainer.global_step, self._total, "training")
        self._look(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due.add(trainer.global_step)
        self._look(trainer)
        self._measurer = None  # it holds the fit

    def _look(self, trainer: Trainer) -> None:
        """Measure if it is time to, and was not done after this step."""
        step = trainer.global_step  # the same while gradients accumulate
        if step not in self._due or self._measurer is None:
            return
        self._due.remove(step)
        if self.measurements and self.measurements[-1].step == step:
            return
        with random_states_kept(self._measurer.device):
            self.measurements.append(
                self._measurer.measure(
                    step, lambda what: self._show(step, self._total, what)
                )
            )
        self._keep(self.measurements)


def spaced(total: int, points: int) -> list[int]:
    """Return steps evenly spaced on a logarithmic scale, over two decades.

    From a hundredth of the run to its end; fewer than asked for where they would be the
    same.

    Args:
        total: Steps of the run, at least 1.
        points: How many, at least 1; a single one is the last.

    Raises:
        ValueError: If there are none.

    Example:
        >>> spaced(1000, 3), spaced(3, 8)
        ([10, 100, 1000], [1, 2, 3])
    """
    if points < 1:
        raise ValueError(
            f"`points` must be at least 1, got {points}. 8 show a whole run."
        )
    gaps = max(points - 1, 1)
    shares = [100 ** (-place / gaps) for place in range(points)]
    return sorted({max(round(total * share), 1) for share in shares})


def _checked(steps: Sequence[int], *, first: int, last: int) -> set[int]:
    """Refuse steps that the run does not come to; it may begin at a checkpoint."""
    outside = [step for step in steps if not first <= step <= last]
    if outside:
        raise ValueError(
            f"Steps to measure after must lie in [{first}, {last}], from the start of "
            f"the run, or its checkpoint, to its end, got {outside}. Give `steps` that "
            "do, or train longer."
        )
    return set(steps)
