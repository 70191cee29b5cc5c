"""Sampling mathematics: scores in, batch and weights out. Imports torch alone.

``scores -> distribution -> selection -> weights``, and a gate that says when.
"""

from lightning_is.sampling.distributions import (
    Distribution,
    Mixed,
    Proportional,
    Uniform,
)
from lightning_is.sampling.gate import Evidence, Gate
from lightning_is.sampling.gates import (
    AlwaysOpen,
    EfficiencyGate,
    NeverOpen,
    TauGate,
    Warmup,
)
from lightning_is.sampling.numerics import capped_inclusion, check_scores, tau
from lightning_is.sampling.plan import Drawn, ImportancePlan
from lightning_is.sampling.scheme import Draw, Selection
from lightning_is.sampling.selection import (
    Multinomial,
    Systematic,
    WithoutReplacement,
    effective_batch,
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.sampling.weights import PowerWeights, UnitWeights, Weights

__all__ = [
    "AlwaysOpen",
    "Distribution",
    "Draw",
    "Drawn",
    "EfficiencyGate",
    "Evidence",
    "Gate",
    "ImportancePlan",
    "Mixed",
    "Multinomial",
    "NeverOpen",
    "PowerWeights",
    "Proportional",
    "Selection",
    "Systematic",
    "TauGate",
    "Uniform",
    "UnitWeights",
    "Warmup",
    "Weights",
    "WithoutReplacement",
    "capped_inclusion",
    "check_scores",
    "effective_batch",
    "multinomial",
    "systematic",
    "tau",
    "without_replacement",
]
