"""The doctor of one fit: looks at its first batches, then says what it found."""

import logging
from dataclasses import replace
from statistics import fmean, median
from typing import Any, NamedTuple, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_is import host
from lightning_is.doctor.measuring import Times, Trials
from lightning_is.doctor.report import Report
from lightning_is.doctor.sizes import Course
from lightning_is.doctor.symptoms import (
    logged_in_training,
    named,
    of_costs,
    of_module,
    of_schedule,
)
from lightning_is.monitor import Mark, Stopwatch
from lightning_is.runner import StepRunner
from lightning_is.sampling.prospects import Ordinary, Prospect
from lightning_is.scoring.context import random_states_kept
from lightning_is.scoring.scorer import LossKind
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring_pass import ScoringPass
from lightning_is.settings import Settings
from lightning_is.state import State

_SPELL = 4  # batches, at least, that show what a step waits for
_LOGGER = logging.getLogger("lightning.pytorch")


def is_asked(trainer: Trainer, settings: Settings) -> bool:
    """Whether somebody would read a report; ranks agree on what the first one says."""
    heard = settings.report and _LOGGER.isEnabledFor(logging.INFO)
    return bool(trainer.strategy.broadcast(heard))


class _First(NamedTuple):
    """What the first batch shows: costs if they could be measured."""

    report: Report
    course: Course
    times: Times | None


@final
class Doctor:
    """Measures steps on the first batch and watches the next, then writes the report.

    Training goes on as if it had not been there: nothing is drawn from any random
    stream, no statistic, metric or gradient is touched, and no gate is told of it.

    Args:
        trainer: Runs the fit.
        module: The user's.
        settings: Of the callback.
        state: Of its parts; only read.
        prints: Whether to print the report, on the first rank.

    Attributes:
        report: Once it is written.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        state: State,
        *,
        prints: bool = True,
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings
        self._state, self._prints = state, prints
        self._watch = Stopwatch(trainer.strategy.root_device)
        self._first: _First | None = None
        self._marks: list[tuple[Mark, Mark]] = []  # of updates
        self._backward: Mark | None = None
        self._waits: list[float] = []
        self._batches = 0
        self._logged: frozenset[str] = frozenset()
        self.report: Report | None = None

    def examine(
        self, tap: HeadTap, batch: Any, runner: StepRunner, loss: LossKind
    ) -> None:
        """Look at the first batch, on every rank: the first alone speaks of it.

        Args:
            tap: On the heads that were found.
            batch: On the device; it stays as it is.
            runner: Runs the user's step without a trace.
            loss: Its kind.
        """
        with random_states_kept(self._module.device):  # whatever is asked of the user
            self._first = self._look(tap, batch, runner, loss)

    def _look(
        self, tap: HeadTap, batch: Any, runner: StepRunner, loss: LossKind
    ) -> _First:
        settings, module = self._settings, self._module
        given = self._trainer, settings, self._state
        course = Course.of(*given, settings.count(batch))
        notes = of_module(module, settings, course.presample) if course.draws else []
        obstacle, times = _obstacle(self._trainer, module), None
        chunk = settings.score_chunk_size or course.ordinary.batch
        if chunk < course.ordinary.batch:  # nothing else may ever train on as many
            obstacle = "with a `score_chunk_size` a step on a whole batch may not fit"
        if obstacle is None:
            try:
                times = self._times(tap, batch, runner, course)
            except Exception as problem:
                # No report is worth a run; what is wrong shows in the step itself.
                obstacle = f"{type(problem).__name__}: {str(problem)[:99]}"
        if obstacle is not None:
            notes.append(f"costs were not measured: {obstacle}")
        head = named(tap.heads, module, found=settings.head is None)
        report = Report(str(course), head, loss, course.keep, warnings=tuple(notes))
        return _First(report, course, times)

    def _times(
        self, tap: HeadTap, batch: Any, runner: StepRunner, course: Course
    ) -> Times:
        """Time steps of every kind."""
        trainer, settings = self._trainer, self._settings
        given = trainer, settings, runner, self._state.checks, self._watch
        scoring = ScoringPass(*given)
        try:
            trials = Trials(
                *(trainer, self._module, settings, runner),
                *(scoring, tap, batch, self._watch),
            )
            return trials.run(course)
        finally:
            scoring.close()

    def after_backward(self) -> None:
        """Note that what is left of a step is its update."""
        if self._first is not None:
            self._backward = self._watch.mark()

    def end_batch(self, wait: float | None) -> None:
        """Note that a step is over; write the report once enough of them are.

        Args:
            wait: Seconds that its batch was waited for; None if that is unknown.
        """
        if self._first is None:
            return
        if self._batches == 0:
            self._logged = logged_in_training(self._trainer)
        self._batches += 1
        if self._backward is not None:
            self._marks.append((self._backward, self._watch.mark()))
        if wait is not None:
            self._waits.append(wait)
        if self._batches >= self._needed:
            self.conclude()

    @property
    def _ahead(self) -> int:
        """Batches that workers have in store; how they pace a run shows after them."""
        loader = self._trainer.train_dataloader
        if not (isinstance(loader, DataLoader) and loader.num_workers):
            return 0
        return loader.num_workers * (loader.prefetch_factor or 2)

    @property
    def _needed(self) -> int:
        """Batches to watch: a few, or until a store is empty, or gradients add up."""
        ahead = self._ahead
        spell = ahead + 1 + max(_SPELL, ahead // 2)
        return max(spell, self._trainer.accumulate_grad_batches)

    def conclude(self) -> None:
        """Write the report by what was seen so far; print it if asked to."""
        if self._first is None:
            return
        found, course, times = self._first
        if times is not None:
            found = self._with_costs(found, course, times)
        notes = [
            *found.warnings,
            *of_costs(found),
            *of_schedule(self._trainer, course, self._logged),
        ]
        self.report = replace(found, warnings=tuple(notes))
        if self._prints:
            self._module.print(self.report)

    def _with_costs(self, found: Report, course: Course, times: Times) -> Report:
        """Add updates and waiting to what was measured, and ask the gate."""
        update, waits = self._update(), self._waits[self._ahead :] or self._waits
        overlaps = host.loads_ahead(self._trainer)
        # Batches of several workers come in bursts, so a mean.
        wait = (fmean if overlaps else median)(waits or [0.0])
        ordinary = Ordinary(course.ordinary, times.closed + update, wait, overlaps)
        opening, prospects = course.opening(
            tuple(
                Prospect(ordinary, sizes, times.score, step + update)
                for sizes, step in zip(course.open_steps(), times.steps, strict=True)
            )
        )
        return replace(found, ordinary=ordinary, prospects=prospects, opening=opening)

    def _update(self) -> float:
        """Return what an update takes, shared by the batches that it is made of."""
        batches = self._trainer.accumulate_grad_batches
        times = [self._watch.seconds(*pair) for pair in self._marks]
        if batches == 1:
            return median(times[1:] or times or [0.0])  # the first one makes its state
        return fmean(times[-batches:] or [0.0])


def _obstacle(trainer: Trainer, module: LightningModule) -> str | None:
    """Say why steps cannot be tried, if so."""
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        return f"{type(strategy).__name__} takes no gradients outside its own step"
    if host.is_compiled(module):
        return "a compiled module would be compiled for sizes it may never meet"
    return None
