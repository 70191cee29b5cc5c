"""What sampling could gain at best: arithmetic, before a run.

Sizes: ``B`` examples scored, ``b`` of them trained on. Times are in seconds.
"""

from dataclasses import dataclass
from math import inf

from lightning_is.sampling.costs import WAITS, Timing
from lightning_is.sampling.gate import Sizes


@dataclass(frozen=True)
class Ordinary:
    """An ordinary step, on uniformly drawn examples.

    Args:
        sizes: Examples loaded, and trained on.
        compute: Forth, back and update.
        wait: Waiting for the loader before it.
        overlaps: Whether the loader works while a step runs, as with workers.
    """

    sizes: Sizes
    compute: float
    wait: float = 0.0
    overlaps: bool = False

    @property
    def cycle(self) -> float:
        """Time from batch to batch."""
        return self.cycle_of(self.compute, self.sizes.presample)

    @property
    def is_loader_bound(self) -> bool:
        """Whether steps wait for a loader that works all the time."""
        whole = self.compute + self.wait
        return self.overlaps and self.wait > WAITS * whole

    def cycle_of(self, compute: float, loaded: int) -> float:
        """Return the time from batch to batch of steps of another kind.

        Without workers the loader needs its time beside theirs. With them, no step is
        faster than the loader, whose pace shows where ordinary steps wait for it.

        Args:
            compute: Of such a step.
            loaded: Examples that it loads.
        """
        more = loaded / self.sizes.presample
        if not self.overlaps:
            return compute + self.wait * more
        pace = self.compute + self.wait if self.is_loader_bound else 0.0
        return max(compute, pace * more)


@dataclass(frozen=True)
class Prospect:
    r"""What open steps of one size cost and could gain, relative to ordinary ones.

    With :math:`t` the time from batch to batch, and ordinary steps that train on
    :math:`b_0` examples,

    .. math:: \text{cost} = \frac{t_{open}}{t_{ordinary}}, \qquad
              \text{limit} = \frac{B}{b_0 \, \text{cost}}, \qquad
              \text{break-even} = \frac{b_0}{b} \, \text{cost}

    No draw is more precise than all it was drawn from: at best a step on ``b`` is worth
    one on ``B``, so no precision is bought faster than by the limit. An open step pays
    where a uniform batch as precise is more than break-even times larger than ``b``.
    Where the loader costs nothing and ordinary steps train on ``B`` (trim), the limit
    is :math:`\text{step}(B) / (\text{score}(B) + \text{step}(b))` in steps a second.
    By assumed costs, forth 1 and back :math:`r`, break-even is
    :math:`(B + (1 + r) b) / ((1 + r) b)`, the paper's.

    Args:
        ordinary: What it is compared with.
        sizes: Examples scored, and trained on.
        score: Scoring and drawing.
        step: Forth, back and update of those drawn.
        opens_above: Effective batch above which the gate chooses this size; None if
            that is not what it goes by, or no effective batch is enough.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018, section
        3.3, for the break-even.

    Example:
        >>> ordinary = Ordinary(Sizes(128, 128), compute=3.0 * 128)
        >>> prospect = Prospect(ordinary, Sizes(128, 32), score=128.0, step=3.0 * 32)
        >>> round(prospect.limit, 3), round(prospect.break_even, 3)
        (1.714, 2.333)
    """

    ordinary: Ordinary
    sizes: Sizes
    score: float
    step: float
    opens_above: float | None = None

    @property
    def cycle(self) -> float:
        """Time from batch to batch of open steps."""
        compute = self.score + self.step
        return self.ordinary.cycle_of(compute, self.sizes.presample)

    @property
    def cost(self) -> float:
        """Of an open step, in ordinary ones; 1 if the clock stands still."""
        before = self.ordinary.cycle
        return self.cycle / before if before > 0 else 1.0

    @property
    def limit(self) -> float:
        """How many times as fast precision is bought, at most."""
        most = self.sizes.presample / self.ordinary.sizes.batch
        return most / self.cost if self.cost > 0 else inf

    @property
    def break_even(self) -> float:
        """Effective batch above which an open step pays."""
        return self.cost * self.ordinary.sizes.batch / self.sizes.batch

    @property
    def attainable(self) -> float:
        """Largest effective batch that any scores could give."""
        return self.sizes.presample / self.sizes.batch

    def timing(self) -> Timing:
        """Return the times of such a step, as a gate is told of them."""
        wait = self.cycle - self.score - self.step
        # A wait of rounding errors would be none.
        wait = wait if wait > 1e-9 * self.cycle else 0.0
        overlaps = self.ordinary.overlaps
        return Timing(*self.sizes, wait, max(self.score, 1e-12), self.step, overlaps)
