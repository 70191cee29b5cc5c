"""Gates that ask what precision a step buys for its cost, on the machine it runs on."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from typing_extensions import override

from lightning_is.sampling.chooser import Chooser, Costs
from lightning_is.sampling.gate import Evidence, Gate, Sizes, check_keys


class _Choosing(Gate):
    """A gate that leaves the choice to a `Chooser`."""

    _chooser: Chooser

    @property
    def is_open(self) -> bool:
        """Whether an open step was worth more, last time it looked."""
        return self._chooser.place > 0

    @property
    @override
    def interval(self) -> int:
        """Steps from look to look; more where the case is clear."""
        return self._chooser.interval

    @property
    @override
    def is_timed(self) -> bool:
        """Whether costs are measured."""
        return self._chooser.costs == "measured"

    @final
    def state_dict(self) -> dict[str, float]:
        """Return the moving averages and the choice."""
        return self._chooser.state_dict()

    @final
    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``."""
        check_keys(self, state, set(self._chooser.state_dict()))
        self._chooser.load_state_dict(state)


@final
class EfficiencyGate(_Choosing):
    r"""Open while a trimmed step buys more precision per cost than a uniform one.

    A uniform step of any size buys the same precision per cost, so with assumed costs
    the rule is that the moving average of the effective batch exceeds the break-even
    :math:`(B + (1 + r) b) / ((1 + r) b)`. No draw multiplies the batch by more than
    ``B / b``: where the break-even is above that, the gate stays closed. It looks at
    every fourth step, or where the case is clear at every sixteenth, with an average
    that forgets as fast.

    Args:
        costs: ``"measured"``: on the machine it runs on, loading included; no two runs
            are then quite the same. ``"assumed"``: forward passes cost 1, backward
            passes ``backward_cost``, and nothing else anything.
        backward_cost: Cost :math:`r` of a backward pass, in forward passes; where costs
            are measured, until they are.
        smoothing: Share of the old average kept at each step, in ``[0, 1)``.
        margin: Gain, of 1, below which it does not change its mind, at least 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> gate = EfficiencyGate("assumed", smoothing=0.0)
        >>> gate.observe(Evidence(2.0, 3.0, 128, 32))  # break-even 2.33
        >>> gate.is_open
        True
    """

    def __init__(
        self,
        costs: Costs = "measured",
        backward_cost: float = 2.0,
        smoothing: float = 0.97,
        margin: float = 0.05,
    ) -> None:
        self._chooser = Chooser(["b"], costs, backward_cost, smoothing, margin)

    def observe(self, evidence: Evidence) -> None:
        """Move the average towards this step's effective batch, and choose."""
        gains = (evidence.effective_batch,)
        self._chooser.observe(evidence, (evidence.batch_size,), gains)

    @override
    def metrics(self) -> dict[str, float]:
        """Return the cost of the steps chosen, in ordinary ones."""
        return {"is/cost": self._chooser.cost}


@final
class AdaptiveSize(_Choosing):
    r"""Train on as many of a loaded batch as buy most precision per cost: 1/8 to all.

    Like `EfficiencyGate`, but for several sizes ``b``, of which the closed gate's, all
    that was loaded, is one. Sizes come from a short menu, as every new shape of a batch
    costs time on an accelerator.

    Args:
        menu: Shares of the loaded batch, in ``(0, 1)``, rising.
        costs: As in `EfficiencyGate`, like ``backward_cost``, ``smoothing`` and
            ``margin``.
        epsilon: Choose the smallest size whose gradient is at most
            :math:`1 + \epsilon` times as noisy as that of all that was loaded, if it
            is cheaper; None chooses the size that buys most.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> gate = AdaptiveSize((0.25, 0.5), "assumed", smoothing=0.0)
        >>> gate.observe(Evidence(2.0, 3.0, 128, 32, gains=(3.0, 1.9)))
        >>> gate.is_open, gate.sizes(128, 128)
        (True, Sizes(presample=128, batch=32))
    """

    chooses_size = True

    def __init__(
        self,
        menu: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
        costs: Costs = "measured",
        backward_cost: float = 2.0,
        smoothing: float = 0.97,
        margin: float = 0.05,
        epsilon: float | None = None,
    ) -> None:
        rising = all(a < b for a, b in pairwise([0.0, *menu, 1.0]))
        if not (menu and rising):
            raise ValueError(
                "`menu` must hold rising shares between 0 and 1, got "
                f"{list(menu)}. (0.125, 0.25, 0.5) is the default."
            )
        self.shares = tuple(menu)
        names = [f"{share:g}" for share in menu]
        self._chooser = Chooser(names, costs, backward_cost, smoothing, margin, epsilon)

    def observe(self, evidence: Evidence) -> None:
        """Move the averages towards this step's gains, and choose."""
        sizes = self.candidates(evidence.presample_size, evidence.presample_size)
        self._chooser.observe(evidence, sizes, evidence.gains)

    @override
    def sizes(self, presample_size: int, batch_size: int) -> Sizes:
        """Return all that is loaded, and the part of it to train on.

        Args:
            presample_size: Examples ``B`` loaded.
            batch_size: Not used.
        """
        sizes = self.candidates(presample_size, batch_size)
        return Sizes(presample_size, sizes[max(self._chooser.place, 1) - 1])

    @override
    def candidates(self, presample_size: int, batch_size: int) -> tuple[int, ...]:
        least = min(2, presample_size)  # one alone cannot be normalised by the batch
        return tuple(max(least, round(share * presample_size)) for share in self.shares)

    @override
    def metrics(self) -> dict[str, float]:
        """Return the cost of the steps chosen, in ordinary ones, and their share."""
        share = (*self.shares, 1.0)[self._chooser.place - 1]
        return {"is/cost": self._chooser.cost, "is/share": share}
