"""Gates: when to sample. Closed means train uniformly.

It is told of steps in both phases, and asked before each whether it is open.
"""

import sys
from typing import final

from typing_extensions import override

from lightning_is.sampling.gate import Average, Evidence, Gate, check_keys


class _Stateless(Gate):
    """A gate that never changes its mind, and so looks at nothing."""

    @property
    @override
    def interval(self) -> int:
        """Steps without end: only the loggers want to know."""
        return sys.maxsize

    @final
    def observe(self, evidence: Evidence) -> None:
        """Ignore the evidence."""

    @final
    def state_dict(self) -> dict[str, float]:
        """Return nothing: there is no state."""
        return {}

    @final
    def load_state_dict(self, state: dict[str, float]) -> None:
        """Accept the empty state alone."""
        check_keys(self, state, set())


@final
class AlwaysOpen(_Stateless):
    """Sample from the first step on.

    Example:
        >>> AlwaysOpen().is_open
        True
    """

    @property
    def is_open(self) -> bool:
        """True."""
        return True


@final
class NeverOpen(_Stateless):
    """Never sample: uniform training that still logs what sampling would give.

    Example:
        >>> NeverOpen().is_open
        False
    """

    @property
    def is_open(self) -> bool:
        """False."""
        return False


@final
class Warmup(Gate):
    """Train uniformly for a number of steps, then sample.

    Args:
        steps: Uniform steps, at least 0.

    Raises:
        ValueError: If ``steps`` is negative.

    Example:
        >>> gate = Warmup(steps=1)
        >>> gate.is_open
        False
        >>> gate.observe(Evidence(1.0, 1.0, 4, 2))
        >>> gate.is_open
        True
    """

    def __init__(self, steps: int) -> None:
        if steps < 0:
            raise ValueError(
                f"`steps` must be at least 0, got {steps}. Use 0 to sample at once."
            )
        self.steps = steps
        self._seen = 0

    @property
    def is_open(self) -> bool:
        """Whether the uniform steps are over."""
        return self._seen >= self.steps

    def observe(self, evidence: Evidence) -> None:
        """Count the step."""
        self._seen += evidence.steps

    def state_dict(self) -> dict[str, float]:
        """Return the number of steps seen."""
        return {"seen": float(self._seen)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue counting from ``state``."""
        check_keys(self, state, {"seen"})
        self._seen = int(state["seen"])


@final
class TauGate(Gate):
    r"""The paper's gate: open while the moving average of tau exceeds a threshold.

    .. math:: \tau_t = a\,\tau_{t-1} + (1 - a)\,\tau(s_t), \qquad \tau_0 = 0

    It is updated in both phases and may close again. Starting from 0 it stays closed
    for the first steps, whatever the scores.

    Args:
        threshold: The value tau must exceed; ``"auto"`` takes the break-even of the
            paper's cost model, ``(B + 3b) / (3b)``.
        smoothing: The factor :math:`a`, in ``[0, 1)``.

    Raises:
        ValueError: If ``threshold`` is a word other than "auto" or a number below 1
            (tau never is), or ``smoothing`` is out of range.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        Algorithm 1, lines 5 and 16.

    Example:
        >>> gate = TauGate(threshold=1.5, smoothing=0.5)
        >>> for _ in range(3):
        ...     gate.observe(Evidence(2.0, 1.0, 640, 128))
        >>> gate.tau, gate.is_open
        (1.75, True)
    """

    def __init__(self, threshold: float | str = "auto", smoothing: float = 0.9) -> None:
        number = isinstance(threshold, (int, float))
        if not (threshold == "auto" or (number and float(threshold) >= 1)):
            raise ValueError(
                f'`threshold` must be "auto" or a number of at least 1, got '
                f"{threshold!r}. The paper uses 1.5 for b = 128 of B = 640."
            )
        self.threshold = threshold
        self._average = Average(smoothing)
        self._level = float("inf") if threshold == "auto" else float(threshold)

    @property
    def tau(self) -> float:
        """The moving average; 0 before the first step."""
        return self._average.value

    @property
    def is_open(self) -> bool:
        """Whether the average strictly exceeds the threshold."""
        return self._average.value > self._level

    def observe(self, evidence: Evidence) -> None:
        """Move the average towards this step's tau."""
        self._average.update(evidence.tau, evidence.steps)
        if self.threshold == "auto":
            self._level = evidence.break_even()

    def state_dict(self) -> dict[str, float]:
        """Return the moving average and the threshold in force."""
        return {"tau": self._average.value, "threshold": self._level}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``; a threshold given as a number stays as given."""
        check_keys(self, state, {"tau", "threshold"})
        self._average.value = float(state["tau"])
        if self.threshold == "auto":
            self._level = float(state["threshold"])
