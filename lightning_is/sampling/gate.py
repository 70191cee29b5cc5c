"""What a gate is, and what it is told.

Evidence is plain numbers, already the same on every rank, so ranks cannot disagree.
Costs count one forward pass of one example as 1.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isnan
from typing import ClassVar, NamedTuple, final

from lightning_is.sampling.costs import Timing


class Sizes(NamedTuple):
    """How much an open step handles.

    Attributes:
        presample: Examples ``B`` to score.
        batch: Examples ``b`` to train on, at most ``presample``.
    """

    presample: int
    batch: int


@dataclass(frozen=True)
class Evidence:
    """What a step showed of its scores.

    Attributes:
        tau: Equivalent batch-size increase by the paper's measure (`tau`).
        effective_batch: Batch-size multiplier that the plan's draw would have.
        presample_size: Examples ``B`` that an open step scores.
        batch_size: Examples ``b`` that an open step trains on.
        steps: Steps that this evidence stands for.
        progress: Share of the run that is over, in ``[0, 1]``; NaN if nobody knows.
        epochs: Passes over the training set that are over, fractions included.
        gains: The same multiplier for each of the gate's candidates.
        ordinary: Examples that a closed step loads, and trains on.
        timings: Of the steps that this evidence stands for, as far as they were timed.
    """

    tau: float
    effective_batch: float
    presample_size: int
    batch_size: int
    steps: int = 1
    progress: float = 0.0
    epochs: float = 0.0
    gains: tuple[float, ...] = ()
    ordinary: Sizes | None = None
    timings: tuple[Timing, ...] = ()

    def break_even(self, backward_cost: float = 2.0) -> float:
        r"""Return the gain at which an open step pays for its scoring pass.

        .. math:: \frac{B + (1 + r) b}{(1 + r) b}

        Args:
            backward_cost: Cost :math:`r` of a backward pass, in forward passes.

        References:
            Katharopoulos & Fleuret, ICML 2018, section 3.3, for :math:`r = 2`.

        Example:
            >>> round(Evidence(1.0, 1.0, 640, 128).break_even(), 4)
            2.6667
        """
        step = (1 + backward_cost) * self.batch_size
        return (self.presample_size + step) / step


class Gate(ABC):
    """Decides from past evidence whether the next step samples.

    Attributes:
        chooses_size: Whether it takes its part of any batch, in place of a number of
            examples that the user gives.
        needs_presamples: Whether it must be able to ask the loader for more examples.
    """

    chooses_size: ClassVar[bool] = False
    needs_presamples: ClassVar[bool] = False

    @property
    def interval(self) -> int:
        """Steps for which one evidence is enough; more would take time to be gained."""
        return 1

    @property
    def is_timed(self) -> bool:
        """Whether steps are to be timed for it."""
        return False

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the next step samples; a pure query."""

    @abstractmethod
    def observe(self, evidence: Evidence) -> None:
        """Take in the evidence of a step; the only place that changes the state."""

    def sizes(self, presample_size: int, batch_size: int) -> Sizes:
        """Return how much the next open step handles; what was asked for, as a rule.

        Args:
            presample_size: Examples ``B`` that the loader yields for an open step.
            batch_size: Examples ``b`` that the user asked to train on.
        """
        return Sizes(presample_size, batch_size)

    def candidates(self, presample_size: int, batch_size: int) -> tuple[int, ...]:
        """Return the sizes whose gain it wants to know; that of `sizes` is one of them.

        Args:
            presample_size: Examples ``B`` that the loader yields for an open step.
            batch_size: Examples ``b`` that the user asked to train on.
        """
        return (self.sizes(presample_size, batch_size).batch,)

    def metrics(self) -> dict[str, float]:
        """Return numbers for the logs, named ``is/...``; none as a rule."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, float]:
        """Return the state as plain numbers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a state of the same kind of gate."""


def check_keys(gate: Gate, state: dict[str, float], expected: set[str]) -> None:
    """Refuse the state of another kind of gate."""
    if set(state) != expected:
        raise ValueError(
            f"{type(gate).__name__} continues from a state with the keys "
            f"{sorted(expected)}, got {sorted(state)}. The checkpoint was written with "
            "another gate, or by an older version: use that one, or start the gate "
            "afresh: load the file by torch.load(path, weights_only=True), delete "
            '["callbacks"]["ImportanceSamplingCallback"]["gate"] and save it again.'
        )


@final
class Average:
    """An exponential moving average from 0, uncorrected: a built-in warm-up.

    Args:
        smoothing: Share of the old average kept at each step, in ``[0, 1)``.

    Raises:
        ValueError: If ``smoothing`` is out of range.

    Example:
        >>> average = Average(smoothing=0.5)
        >>> average.update(2.0)
        >>> average.value
        1.0
    """

    def __init__(self, smoothing: float) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(
                f"`smoothing` must be in [0, 1), got {smoothing}. The paper uses 0.9; "
                "0 follows every step."
            )
        self.smoothing = smoothing
        self.value = 0.0

    def update(self, value: float, steps: int = 1) -> None:
        """Move towards ``value``, as often as it stands for steps."""
        kept = self.smoothing**steps
        self.value = kept * self.value + (1 - kept) * value


def check_part_of_run(start: float, end: float) -> None:
    """Refuse what is no part of a run.

    Raises:
        ValueError: If it is none.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(
            "`start` and `end` must be shares of the run with 0 <= start < end <= 1, "
            f"got {start} and {end}. 0.5 and 0.9 leave the first half and the last "
            "tenth alone."
        )


def is_within(progress: float, start: float, end: float) -> bool:
    """Whether a run is in the part of it from ``start`` to ``end``.

    Raises:
        ValueError: If that is not all of it and nobody knows its length.
    """
    if start == 0 and end == 1:
        return True
    check_progress(progress)
    return start <= progress < end


def check_progress(progress: float) -> None:
    """Refuse to go by the progress of a run whose length nobody knows.

    Raises:
        ValueError: If ``progress`` is NaN.
    """
    if isnan(progress):
        raise ValueError(
            "What changes over a run must know its length, got a Trainer without one. "
            "Set `max_epochs` or `max_steps` (or, on one process, `max_time`), or have "
            "the callback's `progress` return the share of the run that is over."
        )
