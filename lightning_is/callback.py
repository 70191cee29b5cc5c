"""The callback: importance sampling for an unchanged module."""

from collections.abc import Callable
from typing import Literal

from lightning.pytorch import LightningModule

from lightning_is.data import IndexSource, PassSource
from lightning_is.doctor import Report
from lightning_is.fidelity import Checks
from lightning_is.fit import Fit
from lightning_is.hooks import FitHooks
from lightning_is.precision import Precision, ScorePrecision
from lightning_is.progress import Progress
from lightning_is.sampling import (
    Gate,
    ImportancePlan,
    PowerWeights,
    Proportional,
    TauGate,
    multinomial,
)
from lightning_is.sampling.passes import Shuffled
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.scoring import ScoreMode, Scorer, UpperBound
from lightning_is.settings import (
    BadScores,
    ExampleLosses,
    Head,
    IndexFunction,
    Settings,
    WhenClosed,
)
from lightning_is.state import State


class ImportanceSamplingCallback(FitHooks):
    """Backpropagate the examples that matter; change nothing in the module.

    By default it *trims*: of every batch that the loader yields, as many are drawn by
    the upper bound of their gradient norm and backpropagated as buy most precision for
    their cost on this machine, which may be all. Weights keep the gradient unbiased.
    The number of steps, schedules and the loader stay. The user's ``training_step``
    runs as it is, on the batch without gradients to score it, then on what was drawn;
    it must compute each example on its own.

    Args:
        batch_size: Examples to train on while the gate is open, at least 1 and fewer
            than the loader yields; None leaves that to gate, source or acceptance.
        scorer: Scores the examples.
        plan: Distribution, selection and weights of the draw.
        gate: Decides when to sample: by default `AdaptiveSize`, with ``batch_size`` an
            `EfficiencyGate`, with an acceptance a `Window`.
        source: Chooses what to load, in place of the loader's sampler, by past scores;
            its weights multiply those of a draw from what was loaded.
        acceptance: Accepts loaded examples one by one until they fill a batch, while
            the gate is open, in place of source and plan.
        when_closed: Train on ``"all"`` that was loaded, or on a uniform ``"subset"`` of
            ``batch_size``, while the gate is closed.
        head: The modules, or their dotted names, that the loss is computed from.
        per_sample_loss: ``(module, batch) -> losses`` of shape ``(n,)``, to score by
            instead of the loss of ``training_step``; while the gate is closed it is
            asked at every tenth batch, for a source at every one.
        index_fn: ``(batch, indices) -> batch``, to pick from unusual batches;
            ``indices``, of shape ``(b,)``, is None to ask for the number of examples.
        score_mode: Score with dropout off (``"eval"``) or as in training (``"train"``).
        scale_factor: Score images of so much of their height and width, in ``(0, 1]``.
            Below 1, running statistics come from what is trained on.
        score_precision: Score in ``"bf16"`` or ``"fp16"``; None is the Trainer's own;
            ``"auto"`` is bf16 if one process computes in float32 and that is faster on
            this machine, which is tried on the first scored batch.
        proxy: Score by the step of another module, smaller or an average of this one,
            which somebody else updates; statistics as below 1. Every hundredth draw
            checks these three: with a warning, full scores replace what does not pay.
        bad_scores: Where scores are NaN or infinite, ``"skip"`` draws uniformly, tells
            the gate nothing of it and a source the finite ones alone, counts it in
            ``is/skipped`` and warns once; ``"raise"`` stops the run.
        score_chunk_size: Examples to score at a time, at least 1: fewer take less
            memory and more time, a quarter of a batch 1 to 22 % of an open step. None
            scores as many as an ordinary step trains on: all that the loader yields or,
            of presamples and with ``when_closed="subset"``, ``batch_size``. A pass
            keeps no activations, so an open step needs what was loaded beyond that one
            and no more; if a step on all that is loaded would not fit, pass
            ``batch_size``. Normalisation by the batch, and losses that couple examples
            or divide by a sum over them, see a chunk alone.
        seed: Of the draws, at least 0; they never touch the global random states.
        report: Print, after the first batches, what was found and what could be gained,
            unless Lightning's logger is set to more than ``INFO``.

    Attributes:
        progress: Returns the share of the run that is over, for what is annealed; None
            counts steps, or time where ``max_time`` alone ends the run.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If one is out of range, or nothing chooses what to train on.

    Example:
        >>> callback = ImportanceSamplingCallback(batch_size=32)
        >>> callback.gate.is_open
        False
    """

    def __init__(
        self,
        batch_size: int | None = None,
        *,
        scorer: Scorer | None = None,
        plan: ImportancePlan | None = None,
        gate: Gate | None = None,
        source: IndexSource | None = None,
        acceptance: LossPercentile | None = None,
        when_closed: WhenClosed = "all",
        head: Head | None = None,
        per_sample_loss: ExampleLosses | None = None,
        index_fn: IndexFunction | None = None,
        score_mode: ScoreMode = "eval",
        scale_factor: float = 1.0,
        score_precision: ScorePrecision | None = None,
        proxy: LightningModule | None = None,
        bad_scores: BadScores = "skip",
        score_chunk_size: int | None = None,
        seed: int = 0,
        report: bool = True,
    ) -> None:
        settings = Settings(
            batch_size=batch_size,
            scorer=UpperBound() if scorer is None else scorer,
            plan=ImportancePlan() if plan is None else plan,
            when_closed=when_closed,
            head=head,
            per_sample_loss=per_sample_loss,
            index_fn=index_fn,
            score_mode=score_mode,
            scale_factor=scale_factor,
            score_precision=score_precision,
            proxy=proxy,
            bad_scores=bad_scores,
            score_chunk_size=score_chunk_size,
            report=report,
        )
        settings.check_parts(gate, source, acceptance, plan)
        if acceptance is not None:
            source = PassSource(Shuffled())  # loads as many batches as it takes
        gate = gate or settings.default_gate(source, acceptance)
        checks = Checks(settings.savings, Precision(score_precision))
        self._state = State(gate, Progress(seed), source, acceptance, checks)
        self.progress: Callable[[], float] | None = None
        self._fit = Fit(settings, self._state, self)

    @classmethod
    def paper(  # noqa: D417
        cls,
        batch_size: int,
        tau_threshold: float | Literal["auto"] = "auto",
        *,
        scorer: Scorer | None = None,
        head: Head | None = None,
        per_sample_loss: ExampleLosses | None = None,
        index_fn: IndexFunction | None = None,
        score_mode: ScoreMode = "eval",
        bad_scores: BadScores = "skip",
        score_chunk_size: int | None = None,
        seed: int = 0,
        report: bool = True,
    ) -> "ImportanceSamplingCallback":
        """Build Algorithm 1 of Katharopoulos & Fleuret (ICML 2018), to the letter.

        Draws with replacement, in proportion to the scores, weighted by ``1 / (B g)``,
        while the moving average of tau (0.9, from 0) exceeds the threshold; otherwise
        trains on ``batch_size`` uniform examples. For an `OversamplingDataModule`.

        Args:
            batch_size: Examples ``b`` of every step, and of the loader.
            tau_threshold: What tau must exceed; ``"auto"`` is ``(B + 3b) / (3b)``.
            scorer: As in the constructor, like all that follow.

        Example:
            >>> ImportanceSamplingCallback.paper(128, tau_threshold=1.5).gate.tau
            0.0
        """
        return cls(
            batch_size,
            scorer=scorer,
            plan=ImportancePlan(Proportional(), multinomial, PowerWeights()),
            gate=TauGate(tau_threshold),
            when_closed="subset",
            head=head,
            per_sample_loss=per_sample_loss,
            index_fn=index_fn,
            score_mode=score_mode,
            bad_scores=bad_scores,
            score_chunk_size=score_chunk_size,
            seed=seed,
            report=report,
        )

    @property
    def gate(self) -> Gate:
        """Decides when to sample."""
        return self._state.gate

    @gate.setter
    def gate(self, gate: Gate) -> None:
        self._state.gate = gate

    @property
    def diagnosis(self) -> Report | None:
        """What was found at the start of the last fit; None before, or if not asked."""
        return self._fit.diagnosis

    @property
    def is_sampling(self) -> bool:
        """Whether the batch in hand was drawn by its scores, or accepted by them."""
        return self._fit.is_sampling

    @property
    def draws_from_batches(self) -> bool:
        """Whether it may train on a part of what was loaded."""
        return self._fit.draws_from_batches
