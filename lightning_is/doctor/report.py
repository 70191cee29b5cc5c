"""The report: what a person who pays for a run wants to know before it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_is.sampling.opening import Opening
from lightning_is.sampling.prospects import Ordinary, Prospect
from lightning_is.scoring.scorer import LossKind

_LOSSES: dict[LossKind, str] = {
    "mean": "the loss is a mean over the examples",
    "sum": "the loss is a sum over the examples",
    "coupled": "the loss couples the examples",
    "coupled sum": "the loss is a sum that couples the examples",
    "unknown": "mean or sum cannot be told: a random step, or few examples",
}


@dataclass(frozen=True)
class Report:
    """What was found on the first batches of a fit; printed, it is a dozen lines.

    Args:
        method: Modes and sizes, in words.
        head: The modules that the loss is computed from, in words.
        loss: How the loss is made of its examples.
        keep: Share of the data that a pass loads, where that is known.
        ordinary: What a closed step takes; None if it was not measured.
        prospects: What open steps take and could gain, one for each size; none if there
            are no such steps, or nothing was measured.
        opening: When the gate opens; None without prospects.
        warnings: What stands in the way, each with what is done about it, or a cure.
    """

    method: str
    head: str
    loss: LossKind
    keep: float | None = None
    ordinary: Ordinary | None = None
    prospects: tuple[Prospect, ...] = ()
    opening: Opening | None = None
    warnings: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """How many times as fast precision could be bought at most; 1 is no gain."""
        drawn = max([1.0, *(prospect.limit for prospect in self.prospects)])
        return drawn / (self.keep or 1.0)

    def __str__(self) -> str:
        return "\n".join(
            ["Importance sampling: what the first batches show", *self._lines()]
        )

    def _lines(self) -> Iterator[str]:
        yield _line("method", self.method)
        yield _line("head", f"{self.head}; {_LOSSES[self.loss]}")
        if self.ordinary is not None:
            yield _line("closed", _closed(self.ordinary))
            for place, prospect in enumerate(self.prospects):
                yield _line("" if place else "open", self._open(prospect))
            yield _line("gain", self._gain())
        for warning in self.warnings:
            yield _line("note", warning)

    def _open(self, prospect: Prospect) -> str:
        score, step = _ms(prospect.score), _ms(prospect.step)
        times = f"{score} to score, {step} to train on {prospect.sizes.batch}"
        return f"{times}: at most {prospect.limit:.2g}x{self._condition(prospect)}"

    def _condition(self, prospect: Prospect) -> str:
        """Say from where on a size is worth it; of a biased draw nobody knows."""
        if self.opening is None:
            return ""
        verb, above, most = "pays", prospect.break_even, prospect.attainable
        if prospect.opens_above is not None:
            verb, above = "opens", prospect.opens_above
        elif above >= most or self.opening.measure == "is/effective_batch":
            return "; cannot pay"
        return f"; {verb} when is/effective_batch > {above:.2g} of {most:.2g}"

    def _gain(self) -> str:
        """Say what is possible at best, in all."""
        factors = []
        drawn = max((prospect.limit for prospect in self.prospects), default=0.0)
        if drawn > 1:
            factors.append(f"{drawn:.2g}x by drawing")
        if self.keep is not None:
            factors.append(f"{1 / self.keep:.2g}x by loading {self.keep:.0%} a pass")
        if not factors and self.prospects:
            return f"none, as scoring costs too much here{_when(self.opening)}"
        if not factors:
            return "by the choice of what is loaded; steps cost what they always did"
        most = f"at most {' times '.join(factors)}, if few examples matter"
        return f"{most}{_when(self.opening)}"


def _when(opening: Opening | None) -> str:
    """Say when a gate opens; by effective batches, each size says so itself."""
    if opening is None:
        return ""
    if opening.above is not None:
        return f"; the gate opens when {opening.measure} > {opening.above:.2g}"
    return {
        "never": "; at these costs the gate stays shut, whatever the scores",
        "nothing": "; the gate opens by itself, whatever the scores",
        "both": "; the gate goes by is/tau and is/effective_batch together",
    }.get(opening.measure, "")


def _closed(ordinary: Ordinary) -> str:
    train = f"{_ms(ordinary.compute)} to train on {ordinary.sizes.batch}"
    ahead = ", which works ahead" if ordinary.overlaps else ""
    return f"{train}, after {_ms(ordinary.wait)} of waiting for the loader{ahead}"


def _line(what: str, text: str) -> str:
    return f"  {what:<8} {text}"


def _ms(seconds: float) -> str:
    """Write a time in milliseconds.

    Example:
        >>> _ms(0.01234), _ms(0.5), _ms(0.0)
        ('12.3 ms', '500 ms', '0 ms')
    """
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 100 or value == 0 else f"{value:.3g} ms"
