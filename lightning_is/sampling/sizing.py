"""Gates that choose how much a step handles.

Costs count one forward pass of one example as 1, a backward pass as ``r``. Sizes come
from a menu of a few, as every new shape of a batch costs time on an accelerator.
"""

from typing import final

from typing_extensions import override

from lightning_is.sampling.gate import Average, Evidence, Gate, Sizes, check_keys


@final
class ConstantVariance(Gate):
    r"""Keep the variance of an ordinary step, and backpropagate fewer examples.

    Everything loaded is scored, and of its ``B`` examples

    .. math:: b = \bigl\lfloor (1/\tau + \text{extra}) \, B \bigr\rfloor

    are trained on, rounded up to the menu. Open while the moving average of tau exceeds
    :math:`1 / (\frac{r}{1 + r} - \text{extra})`, where scoring and training on ``b``
    cost less than training on all ``B``. Rounding up keeps the variance and may give
    the gain away close to that threshold.

    Args:
        backward_cost: Cost :math:`r` of a backward pass, in forward passes; assumed,
            not measured.
        extra: Share of ``B`` trained on beyond what tau asks for, at least 0.
        smoothing: Share of the old average kept at each step, in ``[0, 1)``.
        menu: How many sizes there are, evenly spaced up to ``B``.

    Raises:
        ValueError: If an argument is out of range, or ``extra`` leaves no gain to any
            tau.

    References:
        The trainer of the same name in the library that Katharopoulos & Fleuret
        published with "Not All Samples Are Created Equal", ICML 2018; not in the paper.

    Example:
        >>> gate = ConstantVariance(smoothing=0.0)
        >>> gate.observe(Evidence(4.0, 1.0, 128, 128))
        >>> gate.is_open, gate.sizes(128, 128)  # 0.45 of 128 is 57
        (True, Sizes(presample=128, batch=64))
    """

    chooses_size = True

    def __init__(
        self,
        backward_cost: float = 2.0,
        extra: float = 0.2,
        smoothing: float = 0.9,
        menu: int = 8,
    ) -> None:
        _check(backward_cost, extra, menu)
        self.backward_cost, self.extra, self.menu = backward_cost, extra, menu
        self._average = Average(smoothing)
        self._level = 1 / (backward_cost / (1 + backward_cost) - extra)

    @property
    def is_open(self) -> bool:
        """Whether the average strictly exceeds the threshold."""
        return self._average.value > self._level

    def observe(self, evidence: Evidence) -> None:
        """Move the average towards this step's tau."""
        self._average.update(evidence.tau, evidence.steps)

    @override
    def sizes(self, presample_size: int, batch_size: int) -> Sizes:
        """Return all that is loaded, and the part of it to train on.

        Args:
            presample_size: Examples ``B`` loaded.
            batch_size: Not used: tau decides.
        """
        tau = max(self._average.value, 1.0)  # below 1 only while it warms up
        wanted = int((1 / tau + self.extra) * presample_size)
        wanted = min(max(wanted, 1), presample_size)
        place = -(-wanted * self.menu // presample_size)
        return Sizes(presample_size, -(-place * presample_size // self.menu))

    def state_dict(self) -> dict[str, float]:
        """Return the moving average."""
        return {"variance_tau": self._average.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``."""
        check_keys(self, state, {"variance_tau"})
        self._average.value = float(state["variance_tau"])


def constant_time_sizes(
    tau: float, batch_size: int, backward_cost: float = 2.0, extra: float = 0.2
) -> Sizes:
    r"""Split the cost of an ordinary step between scoring and training.

    .. math:: t = (1 + r) b, \qquad a_0 = \max(\text{extra} \, b, \; b / \tau)

    .. math:: B = \bigl\lfloor b + \tfrac12 (t - (1 + r) a_0 - b) \bigr\rfloor, \qquad
              a = \bigl\lfloor (t - B) / (1 + r) \bigr\rfloor

    At least :math:`a_0` examples are trained on; half of what the budget leaves beyond
    that and ``b`` scored examples goes into a larger presample, the rest into training.
    The cost :math:`B + (1 + r) a` does not exceed :math:`t`, unless a batch is so small
    that not even one example fits.

    Args:
        tau: Equivalent batch-size increase.
        batch_size: Examples ``b`` of an ordinary step.
        backward_cost: Cost :math:`r` of a backward pass, in forward passes.
        extra: Least share of ``b`` to train on.

    Returns:
        ``B``, at least ``b``, and ``a``, at least 1.

    References:
        The sampler of the same name in the library that Katharopoulos & Fleuret
        published with "Not All Samples Are Created Equal", ICML 2018; not in the paper.

    Example:
        >>> constant_time_sizes(5.0, 128)
        Sizes(presample=217, batch=55)
    """
    trained = 1 + backward_cost
    budget = trained * batch_size
    least = max(extra * batch_size, batch_size / max(tau, 1.0))
    spare = budget - trained * least - batch_size
    presample = int(batch_size + max(spare, 0.0) / 2)
    return Sizes(presample, _affordable(presample, batch_size, backward_cost))


@final
class ConstantTime(Gate):
    """Keep the time of an ordinary step, and score more but backpropagate less.

    The sizes are those of `constant_time_sizes` for the moving average of tau, with the
    presample rounded down to the menu, then as many to train on as the budget has room
    for, rounded down too: no step costs more than an ordinary one by the cost model.
    Needs a loader that can yield presamples. If tau moves between loading a presample
    and drawing from it, that step is a place of the menu off its budget.

    Args:
        backward_cost: Cost of a backward pass, in forward passes; assumed, not
            measured.
        extra: Least share of the batch size to train on, at least 0.
        threshold: The value that the moving average must exceed, at least 1.
        smoothing: Share of the old average kept at each step, in ``[0, 1)``.
        menu: How many sizes there are up to the batch size, evenly spaced.

    Raises:
        ValueError: If an argument is out of range, or ``extra`` leaves nothing to score
            with.

    References:
        The sampler of the same name in the library that Katharopoulos & Fleuret
        published with "Not All Samples Are Created Equal", ICML 2018; not in the paper.

    Example:
        >>> gate = ConstantTime(smoothing=0.0)
        >>> gate.observe(Evidence(5.0, 1.0, 640, 128))
        >>> gate.is_open, gate.sizes(640, 128)
        (True, Sizes(presample=208, batch=48))
    """

    needs_presamples = True

    def __init__(
        self,
        backward_cost: float = 2.0,
        extra: float = 0.2,
        threshold: float = 2.0,
        smoothing: float = 0.9,
        menu: int = 8,
    ) -> None:
        _check(backward_cost, extra, menu)
        if not 1 <= threshold < float("inf"):
            raise ValueError(
                f"`threshold` must be a number of at least 1, got {threshold}. Tau "
                "never is below 1; 2 is the default of the authors' code."
            )
        self.backward_cost, self.extra, self.menu = backward_cost, extra, menu
        self.threshold = threshold
        self._average = Average(smoothing)

    @property
    def is_open(self) -> bool:
        """Whether the average strictly exceeds the threshold."""
        return self._average.value > self.threshold

    def observe(self, evidence: Evidence) -> None:
        """Move the average towards this step's tau."""
        self._average.update(evidence.tau, evidence.steps)

    @override
    def sizes(self, presample_size: int, batch_size: int) -> Sizes:
        """Return presample and batch that cost no more than an ordinary batch.

        Args:
            presample_size: The most examples that the loader yields.
            batch_size: Examples ``b`` of an ordinary step, which sets the budget.
        """
        b, cost = min(batch_size, presample_size), self.backward_cost
        wanted = constant_time_sizes(self._average.value, b, cost, self.extra)
        presample = self._down(min(wanted.presample, presample_size), b)
        # Affordable after rounding: what that took from the presample trains more.
        batch = _affordable(presample, b, cost)
        # A coarse menu may have no place that is affordable, but for none at all.
        return Sizes(presample, self._down(batch, b) or batch)

    def _down(self, size: int, batch_size: int) -> int:
        """Round down to the menu."""
        return size * self.menu // batch_size * batch_size // self.menu

    def state_dict(self) -> dict[str, float]:
        """Return the moving average."""
        return {"time_tau": self._average.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``."""
        check_keys(self, state, {"time_tau"})
        self._average.value = float(state["time_tau"])


def _affordable(presample: int, batch_size: int, backward_cost: float) -> int:
    """Return how many can be trained on once a presample has been scored."""
    trained = 1 + backward_cost
    return max(1, int((trained * batch_size - presample) / trained))


def _check(backward_cost: float, extra: float, menu: int) -> None:
    if not 0 < backward_cost < float("inf"):
        raise ValueError(
            f"`backward_cost` must be a number above 0, got {backward_cost}. 2 forward "
            "passes is the usual assumption."
        )
    most = backward_cost / (1 + backward_cost)
    if not 0 <= extra < most:
        raise ValueError(
            f"`extra` must be at least 0 and below {most:.3g}, the share of a step's "
            f"cost that the backward pass is, got {extra}. 0.2 is the default of the "
            "authors' code."
        )
    if menu < 1:
        raise ValueError(
            f"`menu` must be at least 1, got {menu}. 8 allows eight sizes of a batch."
        )
