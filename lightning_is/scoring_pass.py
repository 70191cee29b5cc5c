"""The scoring pass: the user's step, or something cheaper, run on what was loaded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_is.chunking import Chunking
from lightning_is.data.batch import leaves, with_leaves
from lightning_is.fidelity import Checks, Fidelity, inflation, rank_correlation
from lightning_is.inspection import Inspector
from lightning_is.monitor import Stopwatch
from lightning_is.precision import can_try
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.sampling.numerics import even_unless_finite
from lightning_is.scoring.chunks import Chunked, Sums
from lightning_is.scoring.scaling import shrunk, too_small
from lightning_is.scoring.scorer import Scored, Step
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Settings

Way = tuple[StepRunner, HeadTap, Sums]  # whose step is run, and what it sums


@final
class ScoringPass:
    """Scores batches as the settings say, and checks now and then that it serves.

    Args:
        trainer: Runs the fit.
        settings: Of the callback.
        runner: Runs the user's step without a trace.
        checks: Of savings, updated in place.
        watch: Measures what is saved.

    Attributes:
        chunking: Chooses how many examples are scored at a time.
        sums: What of the user's step is a sum over the examples.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: Settings,
        runner: StepRunner,
        checks: Checks,
        watch: Stopwatch,
    ) -> None:
        self._trainer, self._settings = trainer, settings
        self._runner, self._checks, self._watch = runner, checks, watch
        self._stand_in: Way | None = None
        self.chunking, self.sums = Chunking(trainer, runner.module, settings), Sums()

    @property
    def is_cheap(self) -> bool:
        """Whether something cheaper than the user's step as it is gives the scores."""
        narrow = self._checks.precision.dtype is not None
        return (narrow or self._settings.reduces) and self._checks.cheap.is_worth

    @property
    def sees_everything(self) -> bool:
        """Whether the module itself sees what was loaded, as it will be trained on."""
        return not (self.is_cheap and self._settings.reduces)

    @property
    def may_age(self) -> bool:
        """Whether scores may serve for several steps."""
        return self._checks.age.is_worth

    def metrics(self) -> dict[str, float]:
        """Return what the checks of cheap, or old, scores found."""
        return self._checks.cheap.metrics() or self._checks.age.metrics()

    def close(self) -> None:
        """Leave the proxy as it was found."""
        if self._stand_in is not None and self._settings.proxy is not None:
            self._stand_in[1].detach()
            self._settings.proxy.trainer = None

    def settle(self, tap: HeadTap, batch: Any, examples: int) -> None:
        """Find out what precision to score in, if that is still to be done."""
        if not (precision := self._checks.precision).is_settled:
            score = partial(self._cheaply, tap, batch, examples, False)
            tries = can_try(self._trainer, self._runner.module)
            precision.settle(score if tries else None, self._watch)

    def run(
        self, tap: HeadTap, batch: Any, examples: int, *, update_statistics: bool
    ) -> Scored | None:
        """Score a batch; None if the user's step returns no loss."""
        self.settle(tap, batch, examples)
        if not self.is_cheap:
            return self._fully(tap, batch, examples, update_statistics)
        dtype = self._checks.precision.dtype
        return self._cheaply(tap, batch, examples, update_statistics, dtype)

    def check(
        self, tap: HeadTap, batch: Any, found: Scored | None, wanted: int
    ) -> None:
        """Score a batch once more, fully, if it is time to; waits for the device then.

        Args:
            tap: On the head of the module.
            batch: That was scored.
            found: Its scores; None if there are none to compare on this rank.
            wanted: Examples that are drawn by them.
        """
        if not (self.is_cheap and self._checks.cheap.is_due()):
            return
        if found is None:
            self._shared(torch.zeros(5, dtype=torch.float64))  # as many as others send
            return
        marks, this = [self._watch.mark()], (tap, batch, len(found.scores), False)
        self._cheaply(*this, self._checks.precision.dtype)
        marks.append(self._watch.mark())
        scored = self._fully(*this)
        marks.append(self._watch.mark())
        if scored is not None:
            times = [self._watch.seconds(*pair) for pair in pairwise(marks)]
            self._judge(self._checks.cheap, found.scores, scored.scores, wanted, times)

    def check_age(
        self, tap: HeadTap, batch: Any, scores: Tensor, wanted: int, parts: int
    ) -> None:
        """Score a presample once more before its last batch, if it is time to.

        Args:
            tap: On the head of the module.
            batch: The presample.
            scores: That all its batches were drawn by.
            wanted: Examples of each batch.
            parts: How many there were.
        """
        if not self._checks.age.is_due():
            return
        begun = self._watch.mark()
        fresh = self.run(tap, batch, len(scores), update_statistics=False)
        seconds = self._watch.seconds(begun, self._watch.mark())
        if fresh is not None:
            times = [seconds / parts, seconds]
            self._judge(self._checks.age, scores, fresh.scores, wanted, times, parts)

    def _judge(
        self,
        fidelity: Fidelity,
        cheap: Tensor,
        full: Tensor,
        wanted: int,
        seconds: list[float],
        parts: int = 1,
    ) -> None:
        """Compare scores, and the seconds that each kind took, over all ranks."""
        plan = self._settings.plan
        (cheap, one), (full, other) = map(even_unless_finite, (cheap, full))
        noisier = inflation(cheap, full, plan, wanted, parts)
        rows = [one & other, rank_correlation(cheap, full), noisier]
        rows += [noisier.new_tensor(value) for value in seconds]
        packed = torch.stack([row.to(full.device, torch.float64) for row in rows])
        usable, correlation, inflated, less, more = self._shared(packed)
        if usable < 1:
            return  # on some rank there was nothing to compare
        # A step on those drawn runs them forth and back.
        rest = 3 * more * wanted / len(full) + 1e-9
        fidelity.judge(correlation, inflated, (more + rest) / (less + rest))

    def _shared(self, packed: Tensor) -> list[float]:
        """Return the mean over all ranks, each of which must have come here."""
        packed = packed.to(self._runner.device)
        shared = self._trainer.strategy.reduce(packed, reduce_op="mean")
        found: list[float] = torch.as_tensor(shared).tolist()
        return found

    def _fully(
        self, tap: HeadTap, batch: Any, examples: int, update_statistics: bool
    ) -> Scored | None:
        way = self._runner, tap, self.sums
        return self._score(way, batch, examples, update_statistics)

    def _cheaply(
        self,
        tap: HeadTap,
        batch: Any,
        examples: int,
        update_statistics: bool,
        dtype: torch.dtype | None,
    ) -> Scored | None:
        settings, way = self._settings, (self._runner, tap, self.sums)
        update_statistics = update_statistics and self.sees_everything
        if settings.scale_factor < 1:
            batch = _shrunk(batch, settings.scale_factor)
        if settings.proxy is not None:
            way = self._proxied(settings.proxy, batch, examples)
        precision = torch.autocast(self._runner.device.type, dtype) if dtype else None
        try:
            return self._score(way, batch, examples, update_statistics, precision)
        except Exception as problem:
            if settings.scale_factor < 1:
                raise too_small(settings.scale_factor, problem) from problem
            raise

    def _score(
        self,
        way: Way,
        batch: Any,
        examples: int,
        update_statistics: bool,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Scored | None:
        (runner, tap, sums), settings = way, self._settings
        step = Step(runner.losses, batch, runner.module, settings.take)
        score, parts = settings.scorer.score, self.chunking.parts(examples)
        if parts > 1:
            norms = runner.context.norms
            score = Chunked(settings.scorer, parts, sums, norms, runner.device).score
        context = runner.traceless(update_statistics=update_statistics)
        with context, precision or nullcontext():  # within that of the Trainer
            try:
                return score(step, tap, examples).check(examples, runner.device)
            except NoLossError:
                return None

    def _proxied(self, proxy: LightningModule, batch: Any, examples: int) -> Way:
        """Prepare a proxy on the first batch as the module was; its head is its own."""
        if self._stand_in is None:
            proxy.to(self._trainer.strategy.root_device)
            proxy.trainer = self._trainer
            named = isinstance(self._settings.head, str)
            settings = self._settings if named else replace(self._settings, head=None)
            runner = StepRunner(self._trainer, proxy, settings)
            inspector = Inspector(proxy, settings, runner)
            tap = inspector.prepare(batch, examples)
            if tap is None:
                raise RuntimeError(
                    "A proxy must return the loss of every batch, got None from its "
                    "`training_step`. Return the loss, or drop `proxy`."
                )
            self._stand_in = runner, tap, inspector.sums
        return self._stand_in


def _shrunk(batch: Any, factor: float) -> Any:
    """Return a batch with smaller images in it."""
    rows = leaves(batch)
    smaller = [shrunk(r, factor) if isinstance(r, torch.Tensor) else r for r in rows]
    return with_leaves(batch, smaller)
