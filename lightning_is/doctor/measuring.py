"""Measuring what steps cost, on one batch, without a trace."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_is.doctor.sizes import Course
from lightning_is.monitor import Stopwatch
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.scoring.context import is_norm
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring_pass import ScoringPass
from lightning_is.settings import Settings

_SECONDS = 0.5  # for everything, where two rounds of short steps take less
_MOST = 4  # rounds after the first, which warms up; the fastest counts


class Times(NamedTuple):
    """Seconds that steps take, updates not counted.

    Attributes:
        closed: An ordinary step, forth and back.
        score: Scoring and drawing.
        steps: On what was drawn, forth and back, by size.
    """

    closed: float
    score: float
    steps: tuple[float, ...]


@final
class Trials:
    """Runs steps, whole or for their scores, on a batch as if it had any size.

    Examples are repeated where there are too few: what a step costs does not depend on
    what is in it. Gradients are computed and thrown away, so that none is left behind.

    Args:
        trainer: Runs the fit.
        module: The user's.
        settings: Of the callback.
        runner: Runs the user's step without a trace.
        scoring: Scores.
        tap: On the head.
        batch: The first of the fit.
        watch: Of the device.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        runner: StepRunner,
        scoring: ScoringPass,
        tap: HeadTap,
        batch: Any,
        watch: Stopwatch,
    ) -> None:
        self._trainer, self._module = trainer, module
        self._settings, self._runner = settings, runner
        self._scoring, self._tap, self._batch = scoring, tap, batch
        self._examples, self._watch = settings.count(batch), watch
        self._norms = [m for m in module.modules() if is_norm(m)]

    def run(self, course: Course) -> Times:
        """Time steps of all kinds, in turns."""
        sizes = course.open_steps()
        kinds = [partial(self._train, course.ordinary.batch, drawn=False)]
        kinds += [partial(self._train, size.batch, drawn=True) for size in sizes]
        share = 1.0
        if sizes:  # all of them are drawn from as many
            scored, trained = sizes[0]
            # An acceptance scores batch after batch.
            whole = min(scored, course.presample) * course.parts
            share = scored / whole
            drawn = min(trained * course.parts, whole)
            kinds.append(partial(self._score, whole, drawn))
        if sizes:
            self._scoring.settle(self._tap, self._batch, self._examples)
        first = self._first(kinds)
        more = range(self._more_rounds(sum(first)))
        rounds = [first, *([self._time(kind) for kind in kinds] for _ in more)]
        closed, *rest = map(min, zip(*rounds, strict=True))
        score = rest.pop() * share if sizes else 0.0
        return Times(closed, score, tuple(rest))

    def _first(self, kinds: Sequence[Callable[[], None]]) -> list[float]:
        """Warm up; all ranks go on from here, or none does."""
        found, problem = [], None
        try:
            found = [self._time(kind) for kind in kinds]
        except Exception as error:  # an example too many for the memory, say
            problem = error
        strategy = self._trainer.strategy
        if not strategy.reduce_boolean_decision(problem is None, all=True):
            raise problem or RuntimeError("another rank could not make the steps")
        return found

    def _more_rounds(self, seconds: float) -> int:
        """Say how often to go on: short steps are disturbed more, and cost less.

        Ranks do as the first one, as some layers make them wait for one another.
        """
        more = min(max(1, int(_SECONDS / max(seconds, 1e-9)) - 1), _MOST)
        return int(self._trainer.strategy.broadcast(more))

    def _train(self, size: int, *, drawn: bool) -> None:
        """Make a step forth and back, under weights if drawn."""
        batch = self._of(size)
        ones = torch.ones(size, device=self._module.device)
        weighting = self._tap.weighting(ones) if drawn else nullcontext()
        context = self._runner.traceless(as_training=True)
        wanted = [p for p in self._module.parameters() if p.requires_grad]
        with torch.enable_grad(), context, weighting:
            loss = self._runner.loss(batch).mean()
            torch.autograd.grad(loss, wanted, allow_unused=True)

    def _score(self, size: int, wanted: int) -> None:
        """Score so many, and draw from them."""
        buffers = [b for norm in self._norms for b in norm.buffers()]
        before = [buffer.clone() for buffer in buffers]
        batch = self._of(size)
        try:
            found = self._scoring.run(self._tap, batch, size, update_statistics=True)
        finally:
            for buffer, values in zip(buffers, before, strict=True):
                buffer.copy_(values)
        if found is None:
            raise NoLossError
        generator = torch.Generator().manual_seed(0)
        self._settings.plan.draw(found.scores, wanted, generator=generator)

    def _time(self, run: Callable[[], None]) -> float:
        begun = self._watch.mark()
        run()
        return self._watch.seconds(begun, self._watch.mark())

    def _of(self, size: int) -> Any:
        """Return so many examples of the batch, the first ones again if need be."""
        places: Tensor = torch.arange(size, device=self._module.device)
        return self._settings.take(self._batch, places % self._examples)
