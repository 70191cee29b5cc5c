"""Sampling mathematics: scores in, batch and weights out. Imports torch alone.

``scores -> distribution -> selection -> weights``, and a gate that says when.
"""

from lightning_is.sampling.costs import CostModel, Timing
from lightning_is.sampling.distributions import (
    Distribution,
    Mixed,
    Proportional,
    Uniform,
)
from lightning_is.sampling.efficiency import AdaptiveSize, EfficiencyGate
from lightning_is.sampling.gate import Evidence, Gate, Sizes
from lightning_is.sampling.gates import (
    AlwaysOpen,
    NeverOpen,
    TauGate,
    Warmup,
)
from lightning_is.sampling.numerics import capped_inclusion, check_scores, tau
from lightning_is.sampling.passes import (
    Pass,
    PassScheme,
    RandomSubset,
    Shuffled,
)
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.sampling.plan import Drawn, ImportancePlan
from lightning_is.sampling.priorities import Power, RankExponential, RankPower
from lightning_is.sampling.prioritized import OnlineBatchSelection, Prioritized
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
from lightning_is.sampling.selective import SoftPruned, StaleSelection
from lightning_is.sampling.sizing import (
    ConstantTime,
    ConstantVariance,
    constant_time_sizes,
)
from lightning_is.sampling.subset import ImportanceSubset
from lightning_is.sampling.weights import (
    PowerWeights,
    UnitWeights,
    Weights,
    max_normalised,
    rescaled_power,
)
from lightning_is.sampling.window import Window

__all__ = [
    "AdaptiveSize",
    "AlwaysOpen",
    "ConstantTime",
    "ConstantVariance",
    "CostModel",
    "Distribution",
    "Draw",
    "Drawn",
    "EfficiencyGate",
    "Evidence",
    "Gate",
    "ImportancePlan",
    "ImportanceSubset",
    "LossPercentile",
    "Mixed",
    "Multinomial",
    "NeverOpen",
    "OnlineBatchSelection",
    "Pass",
    "PassScheme",
    "Power",
    "PowerWeights",
    "Prioritized",
    "Proportional",
    "RandomSubset",
    "RankExponential",
    "RankPower",
    "Selection",
    "Shuffled",
    "Sizes",
    "SoftPruned",
    "StaleSelection",
    "Systematic",
    "TauGate",
    "Timing",
    "Uniform",
    "UnitWeights",
    "Warmup",
    "Weights",
    "Window",
    "WithoutReplacement",
    "capped_inclusion",
    "check_scores",
    "constant_time_sizes",
    "effective_batch",
    "max_normalised",
    "multinomial",
    "rescaled_power",
    "systematic",
    "tau",
    "without_replacement",
]
