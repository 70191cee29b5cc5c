"""Normalisation between convolutions, by name."""

from typing import Literal, TypeAlias, get_args

from torch import nn

Norm: TypeAlias = Literal["batch", "group", "layer"]

GROUPS = 8  # of channels, for "group"


def normalisation(norm: str, channels: int) -> nn.Module:
    """Normalise over the batch, over eight groups of channels, or each example whole.

    Only the first couples the examples of a batch.

    Args:
        norm: ``"batch"``, ``"group"`` or ``"layer"``.
        channels: Of the images.

    Raises:
        ValueError: If ``norm`` is unknown, or the channels cannot be grouped.

    Example:
        >>> normalisation("group", 16).num_groups
        8
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm != "group":
        raise ValueError(
            f"`norm` must be one of {', '.join(get_args(Norm))}, got {norm!r}. Choose "
            "one of them."
        )
    if channels % GROUPS != 0:
        raise ValueError(
            f"Channels must fall into {GROUPS} equal groups, got {channels}. Take a "
            f"width that is a multiple of {GROUPS}, or norm=layer."
        )
    return nn.GroupNorm(GROUPS, channels)
