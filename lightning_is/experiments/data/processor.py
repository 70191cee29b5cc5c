"""What a pretrained network expects of its images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_is.experiments.data.places import checkpoint_file

FILE = "preprocessor_config.json"
BICUBIC = 3  # as Pillow numbers its filters
# Of EfficientNet and MobileViT: further steps, which change what a network is given.
FURTHER = ("include_top", "rescale_offset", "do_flip_channel_order")


@dataclass(frozen=True)
class Processor:
    """How the images of a checkpoint were resized and normalised.

    Args:
        mean: Of each channel, of values from 0 to 255.
        std: Likewise; positive.
        crop: Share of the shorter side that is cut out of the middle of an image once
            it is resized.
        resample: Pillow's number of the filter that resizes.
    """

    mean: Sequence[float]
    std: Sequence[float]
    crop: float = 1.0
    resample: int = BICUBIC

    def write(self, folder: Path, size: int) -> None:
        """Write it as `transformers` does, for images of ``size`` pixels a side."""
        settings = {
            "image_processor_type": "ConvNextImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "crop_pct": self.crop,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [value / 255 for value in self.mean],
            "image_std": [value / 255 for value in self.std],
        }
        (folder / FILE).write_text(json.dumps(settings, indent=2) + "\n")


def read_processor(path: str) -> Processor | None:
    """Read what a checkpoint says of its images; None if it says nothing.

    Its file is read as it is: `transformers` would import torchvision for it.

    Args:
        path: Of the checkpoint: its name on the hub, or a local folder.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ConnectionError: If the hub cannot be reached.
        ValueError: If it does not say by what to normalise, or does more than that.
    """
    file = checkpoint_file(path, FILE)
    return None if file is None else _processor(json.loads(file.read_text()), file)


def _processor(settings: Mapping[str, Any], file: Path) -> Processor:
    further = [f"{key}=true" for key in FURTHER if settings.get(key)]
    if further:
        raise ValueError(
            "A checkpoint must normalise its images by means and deviations alone, got "
            f"{', '.join(further)} in {file}. Choose another checkpoint, or set "
            "data.processor=null to standardise by the training images."
        )
    unit = 1 / settings.get("rescale_factor", 1 / 255)  # of mean and std
    unit = unit if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        settings = {**settings, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    missing = [key for key in ("image_mean", "image_std") if not settings.get(key)]
    if missing:
        raise ValueError(
            "A checkpoint must say by what its images were normalised, got no "
            f"{' and no '.join(missing)} in {file}. Write them there, or set "
            "data.processor=null to standardise by the training images."
        )
    return Processor(
        [unit * value for value in settings["image_mean"]],
        [unit * value for value in settings["image_std"]],
        _crop(settings),
        int(settings.get("resample", BICUBIC)),
    )


def _crop(settings: Mapping[str, Any]) -> float:
    """Return the share of the resized image that is cut out."""
    if settings.get("crop_pct"):
        return float(settings["crop_pct"])
    size, middle = settings.get("size"), settings.get("crop_size")
    if not settings.get("do_center_crop") or middle is None or size is None:
        return 1.0
    return min(_side(middle) / _side(size), 1.0)


def _side(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else min(size.values())
