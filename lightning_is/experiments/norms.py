"""Normalisation between convolutions, by name."""

from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import nn

Norm: TypeAlias = Literal["batch", "group", "layer"]

NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    # Eight groups divide 16 channels and their multiples, of which the networks are.
    "group": lambda channels: nn.GroupNorm(8, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
}
"""Makes the module for a number of channels. Only the first couples examples."""


def check_norm(norm: str) -> None:
    """Refuse a normalisation that is not known.

    Raises:
        ValueError: If ``norm`` is none of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(
            f"`norm` must be one of {', '.join(NORMS)}, got {norm!r}. Choose one."
        )
