"""Choosing a size of step by what it buys for its cost."""

from collections.abc import Sequence
from typing import Literal, final

from lightning_is.sampling.costs import CostModel
from lightning_is.sampling.gate import Average, Evidence, Sizes

Costs = Literal["measured", "assumed"]

_OFTEN, _SELDOM = 4, 16  # steps between two looks
_CLEAR = 0.9  # of what the choice is worth: what is worth less will not be soon


@final
class Chooser:
    r"""Chooses between an ordinary step and open ones of several sizes.

    Each is worth the examples that a uniform batch of the same noise would have, per
    cost, relative to the ordinary step, which is worth 1. It changes its mind only for
    what is worth more by a margin. Where costs are measured, a size that could pay is
    tried for a few steps, and again after a long time.

    Args:
        sizes: What the state calls the open sizes.
        costs: ``"measured"``, or ``"assumed"``: a backward pass is ``backward_cost``.
        backward_cost: Cost of a backward pass in forward passes, until measured.
        smoothing: Share of the old gain kept at each step, in ``[0, 1)``.
        margin: By which another choice must be worth more, at least 0.
        epsilon: Choose the smallest size with at most :math:`1 + \epsilon` times the
            noise of an ordinary step, in place of the one worth most.

    Attributes:
        place: Of the choice; 0 is the ordinary step, 1 the first open size.
        cost: Of the choice, in ordinary steps.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        sizes: Sequence[str],
        costs: Costs,
        backward_cost: float,
        smoothing: float,
        margin: float,
        epsilon: float | None = None,
    ) -> None:
        check_settings(costs, backward_cost, margin, epsilon)
        self.costs, self.margin, self.epsilon = costs, margin, epsilon
        self._names = [f"gain_{size}" for size in sizes]
        self._gains = [Average(smoothing) for _ in sizes]
        self._model = CostModel(backward_cost)
        self.place, self.cost = 0, 1.0
        self._is_settled = False

    @property
    def interval(self) -> int:
        """Steps from look to look."""
        return _SELDOM if self._is_settled else _OFTEN

    def observe(
        self, evidence: Evidence, menu: Sequence[int], gains: Sequence[float]
    ) -> None:
        """Take in gains and timings, and choose again.

        Args:
            evidence: Of the last steps.
            menu: The open sizes.
            gains: Multiplier of each of them, by the scores.
        """
        for average, gain in zip(self._gains, gains, strict=True):
            average.update(gain, evidence.steps)
        if self.costs == "measured":
            for timing in evidence.timings:
                self._model.observe(timing)
        loaded = evidence.presample_size
        ordinary = evidence.ordinary or Sizes(loaded, loaded)
        ratios = [self._model.ratio(loaded, size, *ordinary) for size in menu]
        worth = [
            gain.value * size / ordinary.batch
            for gain, size in zip(self._gains, menu, strict=True)
        ]
        values = [w / ratio for w, ratio in zip(worth, ratios, strict=True)]
        if not self._is_on_trial(loaded, menu, ordinary):
            self.place = self._choose(values, worth)
        self.cost = ([1.0, *ratios])[self.place]
        # By this look alone, too: averages begin at 0, which is far from anything.
        seen = [
            gain * size / ordinary.batch / ratio
            for gain, size, ratio in zip(gains, menu, ratios, strict=True)
        ]
        tried = self._is_on_trial(loaded, menu, ordinary)
        self._is_settled = not tried and self._is_clear(values, seen)

    def _is_clear(self, *looks: list[float]) -> bool:
        """Whether sampling is worth far more, or far less, than not to."""
        if self.place == 0:
            return all(max(values) < _CLEAR for values in looks)
        return all(values[self.place - 1] > 1 / _CLEAR for values in looks)

    def _is_on_trial(self, loaded: int, menu: Sequence[int], ordinary: Sizes) -> bool:
        """Whether what was chosen last must be measured before it is judged."""
        if self._model.is_empty:
            return False
        if not self._model.knows_ordinary(ordinary.batch):
            self.place = 0
            return True
        size = menu[self.place - 1]
        return self.place > 0 and not self._model.is_known(loaded, size)

    def _choose(self, values: list[float], worth: list[float]) -> int:
        """Return the place worth most, or the first one that is precise enough."""
        if self.epsilon is None:
            values = [1.0, *values]
            best = max(range(len(values)), key=values.__getitem__)
            better = values[best] > values[self.place] * (1 + self.margin)
            return best if better else self.place
        for place, (value, examples) in enumerate(zip(values, worth, strict=True), 1):
            margin = 0.0 if place == self.place else self.margin
            cheaper = value > examples * (1 + margin)
            if cheaper and examples * (1 + self.epsilon) >= 1 + margin:
                return place
        return 0

    def state_dict(self) -> dict[str, float]:
        """Return gains and choice; another machine may have other costs."""
        averages = zip(self._names, self._gains, strict=True)
        gains = {name: gain.value for name, gain in averages}
        choice = {
            "place": self.place,
            "is_settled": self._is_settled,
            "cost": self.cost,
        }
        return gains | {name: float(value) for name, value in choice.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from ``state``, whose keys have been checked."""
        for name, gain in zip(self._names, self._gains, strict=True):
            gain.value = float(state[name])
        self.place, self._is_settled = int(state["place"]), bool(state["is_settled"])
        self.cost = float(state["cost"])


def check_settings(
    costs: str, backward_cost: float, margin: float, epsilon: float | None
) -> None:
    """Refuse settings of a chooser that have no meaning.

    Raises:
        ValueError: If one has none.
    """
    if costs not in ("measured", "assumed"):
        raise ValueError(
            f'`costs` must be "measured" or "assumed", got {costs!r}. "measured" goes '
            "by the machine that it runs on."
        )
    if not 0 < backward_cost < float("inf"):
        raise ValueError(
            f"`backward_cost` must be a number above 0, got {backward_cost}. 2 forward "
            "passes is the usual assumption."
        )
    if not 0 <= margin < float("inf"):
        raise ValueError(
            f"`margin` must be a number of at least 0, got {margin}. 0.05 asks for 5 % "
            "more before it changes its mind."
        )
    if epsilon is not None and not 0 <= epsilon < float("inf"):
        raise ValueError(
            f"`epsilon` must be a number of at least 0, got {epsilon}. 0.1 allows for "
            "10 % more noise than that of all that was loaded."
        )
