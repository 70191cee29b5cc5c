"""The scoring pass: the user's step, or something cheaper, run on what was loaded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_is.data.batch import leaves, with_leaves
from lightning_is.fidelity import Fidelity, inflation, rank_correlation
from lightning_is.inspection import Inspector
from lightning_is.monitor import Stopwatch
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.scoring.scaling import shrunk
from lightning_is.scoring.scorer import Scored, Step
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Settings

_CHECK_EVERY = 100  # scoring passes: their cost vanishes, what they show changes slowly


@final
class ScoringPass:
    """Scores batches as the settings say, and checks now and then that it serves.

    Args:
        trainer: Runs the fit.
        module: The user's module.
        settings: Of the callback.
        runner: Runs the user's step without a trace.
        watch: Measures what is saved.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: Settings,
        runner: StepRunner,
        watch: Stopwatch,
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings
        self._runner, self._watch = runner, watch
        self._stand_in: tuple[StepRunner, HeadTap] | None = None
        saving = settings.savings
        self.fidelity = Fidelity(" and ".join(saving)) if saving else None
        self._passes = 0

    @property
    def is_cheap(self) -> bool:
        """Whether something cheaper than the user's step as it is gives the scores."""
        return self.fidelity is not None and self.fidelity.is_worth

    @property
    def sees_everything(self) -> bool:
        """Whether the module itself sees what was loaded, as it will be trained on."""
        return not self.is_cheap or (
            self._settings.scale_factor == 1 and self._settings.proxy is None
        )

    def metrics(self) -> dict[str, float]:
        """Return what the checks of cheap scores found."""
        return {} if self.fidelity is None else self.fidelity.metrics()

    def close(self) -> None:
        """Leave the proxy as it was found."""
        if self._stand_in is not None and self._settings.proxy is not None:
            self._stand_in[1].detach()
            self._settings.proxy.trainer = None

    def run(
        self, tap: HeadTap, batch: Any, examples: int, *, update_statistics: bool
    ) -> Scored | None:
        """Score a batch; None if the user's step returns no loss."""
        if not self.is_cheap:
            return self._fully(tap, batch, examples, update_statistics)
        return self._cheaply(tap, batch, examples, update_statistics)

    def check(self, tap: HeadTap, batch: Any, found: Scored, wanted: int) -> None:
        """Score a batch once more, fully, if it is time to; waits for the device then.

        Args:
            tap: On the head of the module.
            batch: That was scored.
            found: Its scores.
            wanted: Examples that are drawn by them.
        """
        if self.fidelity is None or not self.is_cheap:
            return
        self._passes += 1
        if self._passes % _CHECK_EVERY:
            return
        examples, watch = len(found.scores), self._watch
        marks, scored = [watch.mark()], None
        for way in (self._cheaply, self._fully):
            scored = way(tap, batch, examples, update_statistics=False)
            marks.append(watch.mark())
        if scored is None:
            return
        times = [watch.seconds(*pair) for pair in pairwise(marks)]
        rows = torch.stack(
            [
                rank_correlation(found.scores, scored.scores).double(),
                inflation(found.scores, scored.scores, self._settings.plan, wanted),
            ]
        ).to(found.scores.device)
        correlation, inflated = torch.as_tensor(
            self._trainer.strategy.reduce(rows, reduce_op="mean")
        ).tolist()
        # A step on those drawn runs them forth and back.
        rest = 3 * times[1] * wanted / examples + 1e-9
        saving = (times[1] + rest) / (times[0] + rest)
        self.fidelity.judge(correlation, inflated, saving)

    def _fully(
        self, tap: HeadTap, batch: Any, examples: int, update_statistics: bool
    ) -> Scored | None:
        return self._score(self._runner, tap, batch, examples, update_statistics)

    def _cheaply(
        self, tap: HeadTap, batch: Any, examples: int, update_statistics: bool
    ) -> Scored | None:
        settings, runner = self._settings, self._runner
        update_statistics = update_statistics and self.sees_everything
        if settings.scale_factor < 1:
            batch = _shrunk(batch, settings.scale_factor)
        if settings.proxy is not None:
            runner, tap = self._proxied(settings.proxy, batch, examples)
        kind, dtype = self._module.device.type, settings.score_dtype
        precision = torch.autocast(kind, dtype) if dtype else nullcontext()
        try:
            return self._score(
                runner, tap, batch, examples, update_statistics, precision
            )
        except Exception as problem:
            if settings.scale_factor < 1:
                raise _too_small(settings.scale_factor, problem) from problem
            raise

    def _score(
        self,
        runner: StepRunner,
        tap: HeadTap,
        batch: Any,
        examples: int,
        update_statistics: bool,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Scored | None:
        settings = self._settings
        step = Step(runner.losses, batch, runner.module, settings.take)
        context = runner.traceless(update_statistics=update_statistics)
        with context, precision or nullcontext():  # within that of the Trainer
            try:
                return settings.scorer.score(step, tap, examples)
            except NoLossError:
                return None

    def _proxied(
        self, proxy: LightningModule, batch: Any, examples: int
    ) -> tuple[StepRunner, HeadTap]:
        """Prepare a proxy on the first batch as the module was; its head is its own."""
        if self._stand_in is None:
            proxy.to(self._trainer.strategy.root_device)
            proxy.trainer = self._trainer
            named = isinstance(self._settings.head, str)
            settings = self._settings if named else replace(self._settings, head=None)
            runner = StepRunner(self._trainer, proxy, settings)
            tap = Inspector(proxy, settings, runner).prepare(batch, examples)
            if tap is None:
                raise NoLossError
            self._stand_in = runner, tap
        return self._stand_in


def _shrunk(batch: Any, factor: float) -> Any:
    """Return a batch with smaller images in it."""
    rows = leaves(batch)
    smaller = [shrunk(r, factor) if isinstance(r, torch.Tensor) else r for r in rows]
    return with_leaves(batch, smaller)


def _too_small(factor: float, problem: Exception) -> RuntimeError:
    return RuntimeError(
        f"A module scored with `scale_factor={factor}` must accept smaller images, got "
        f"from it: {problem}. Pool adaptively before the head, or leave "
        "`scale_factor` at 1."
    )
