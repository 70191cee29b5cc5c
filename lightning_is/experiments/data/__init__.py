"""Data modules of the experiments; every one lies in memory and yields ``(x, y)``."""

from lightning_is.experiments.data.augment import crop_flip
from lightning_is.experiments.data.conditions import Conditions
from lightning_is.experiments.data.digits import Digits
from lightning_is.experiments.data.hub import HubImages
from lightning_is.experiments.data.permuted import PermutedPixels
from lightning_is.experiments.data.rare_hard import RareHard
from lightning_is.experiments.data.tensors import (
    Loader,
    Splits,
    Standardise,
    TensorDataModule,
    TensorSet,
    labels_of,
    whole_batch,
)
from lightning_is.experiments.data.text import Text

__all__ = [
    "Conditions",
    "Digits",
    "HubImages",
    "Loader",
    "PermutedPixels",
    "RareHard",
    "Splits",
    "Standardise",
    "TensorDataModule",
    "TensorSet",
    "Text",
    "crop_flip",
    "labels_of",
    "whole_batch",
]
