"""The draws that are compared: by which scores, how, and with which uniform draw."""

from dataclasses import dataclass

from lightning_is.sampling import (
    Distribution,
    ImportancePlan,
    Selection,
    Uniform,
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.scoring import GradientNorm, Loss, Scorer, UpperBound
from lightning_is.scoring.gradient_norm import Method

UNIFORM, ORACLE = "uniform", "gradient_norm"
SCORES = ("loss", "upper_bound", ORACLE)
# Beside each selection the uniform draw of its kind, which its variance is divided by.
SELECTIONS: dict[str, tuple[Selection, Selection]] = {
    "multinomial": (multinomial, multinomial),
    "systematic": (systematic, without_replacement),
}


def scorers(norms: Method) -> dict[str, Scorer]:
    """Return what makes each of the scores.

    Args:
        norms: How gradient norms are computed, as `GradientNorm` says.
    """
    made: tuple[Scorer, ...] = Loss(), UpperBound(), GradientNorm(method=norms)
    return dict(zip(SCORES, made, strict=True))


@dataclass(frozen=True)
class Arm:
    """One kind of draw.

    Args:
        selection: Name of the selection, of `SELECTIONS`.
        score: Name of the score, of `SCORES`, or ``"uniform"``.
        plan: Draws and weights.
    """

    selection: str
    score: str
    plan: ImportancePlan


def arms(distribution: Distribution) -> list[Arm]:
    """Pair every selection with every score; the uniform draw comes first.

    Args:
        distribution: Turns scores into the probabilities of a draw.

    Example:
        >>> from lightning_is.sampling import Proportional
        >>> [arm.score for arm in arms(Proportional()) if arm.selection == "systematic"]
        ['uniform', 'loss', 'upper_bound', 'gradient_norm']
    """
    found: list[Arm] = []
    for name, (selection, uniformly) in SELECTIONS.items():
        found.append(Arm(name, UNIFORM, ImportancePlan(Uniform(), uniformly)))
        plan = ImportancePlan(distribution, selection)
        found += [Arm(name, score, plan) for score in SCORES]
    return found
