"""What is measured: how many are drawn, how often, by which probabilities."""

from dataclasses import dataclass, field
from typing import get_args

from lightning_is.sampling import Distribution, Proportional
from lightning_is.scoring.gradient_norm import Method


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is measured.

    Args:
        batch_size: Examples of a draw, ``b``.
        repeats: Draws of each kind.
        distribution: Turns scores into probabilities.
        seed: Of the draws, at least 0.
        norms: How gradient norms are computed, as `GradientNorm` says.

    Raises:
        ValueError: If a number is out of range, or the norms are of no known kind.
    """

    batch_size: int = 128
    repeats: int = 10
    distribution: Distribution = field(default_factory=Proportional)
    seed: int = 0
    norms: Method = "vmap"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("repeats", 1), ("seed", 0)):
            got = getattr(self, name)
            if got < least:
                raise ValueError(
                    f"`{name}` of a measurement must be at least {least}, got {got}. "
                    "The paper draws 128 examples, 10 times."
                )
        if self.norms not in get_args(Method):
            raise ValueError(
                f"`norms` must be one of {', '.join(get_args(Method))}, got "
                f"{self.norms}. vmap is faster, and loop takes any step."
            )
