"""Images out of the files they are stored in, as bytes of one size."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_is.experiments.data.processor import BICUBIC
from lightning_is.experiments.data.tensors import Standardise

if TYPE_CHECKING:  # these take seconds to import; only who decodes needs them
    from datasets import Dataset  # type: ignore[import-untyped]
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageFormat:
    """What every image is brought to.

    Args:
        size: Height and width; as they are if None, and then all alike.
        channels: 1 for grey, 3 for colour; as they are if None.
        crop: Share of the shorter side of a resized image that the square is cut out
            of its middle with.
        resample: Pillow's number of the filter that resizes, with antialiasing.

    Raises:
        ValueError: If there can be no such images.
    """

    size: int | None = None
    channels: int | None = None
    crop: float = 1.0
    resample: int = BICUBIC

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(
                f"`image_size` must be at least 1 pixel, got {self.size}. Leave it out "
                "to keep images as they are."
            )
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"`channels` must be 1 for grey or 3 for colour, got {self.channels}. "
                "Leave it out to keep images as they are."
            )

    def __call__(self, image: "Image") -> "Image":
        """Convert, resize with its proportions kept, cut the middle out."""
        grey = image.mode == "L" if self.channels is None else self.channels == 1
        image = image.convert("L" if grey else "RGB")
        if self.size is None:
            return image
        shorter = int(self.size / self.crop)
        width, height = (side * shorter // min(image.size) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), self.resample)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def decode(
    data: "Dataset", column: str, name: str, form: ImageFormat
) -> UInt8[Tensor, "N C H W"]:
    """Decode all images into bytes, upright, in channels-last memory format.

    Args:
        data: Holds them.
        column: Of images.
        name: Of the part, to report by.
        form: What each is brought to.

    Raises:
        ValueError: If the images differ in size or number of channels all the same.
    """
    import datasets
    from PIL import Image, ImageOps
    from rich.progress import track

    # Decoding the raw bytes here takes half the time of the library's own decoding.
    encoded = data.cast_column(column, datasets.Image(decode=False))
    stacked = np.empty((0, 1, 1), np.uint8)  # all in one place from the first one on
    cells = track(encoded[column], f"decoding {name} images", transient=True)
    for number, cell in enumerate(cells):
        image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
        # Cameras store how they were held beside the pixels.
        pixels = np.asarray(form(ImageOps.exif_transpose(image)))
        if number == 0:
            stacked = np.empty((len(data), *pixels.shape), np.uint8)
        if pixels.shape != stacked.shape[1:]:
            raise ValueError(
                "HubImages needs images of one size and kind, got "
                f"{stacked.shape[1:]} and {pixels.shape} in the {name} split. Set "
                "`image_size`, and `channels` where some are grey."
            )
        stacked[number] = pixels
    images = torch.from_numpy(stacked)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def by_channels(
    mean: Sequence[float], std: Sequence[float], x: UInt8[Tensor, "N C H W"]
) -> Standardise:
    """Standardise images of this size by one mean and deviation for each channel.

    Raises:
        ValueError: If the images have another number of channels.
    """
    if not len(mean) == len(std) == x.shape[1]:
        raise ValueError(
            "Images must have as many channels as they are normalised by, got "
            f"{x.shape[1]} for the means {list(mean)}. Set `channels={len(mean)}`."
        )

    # One value a pixel, in the layout of the images: ten times faster to subtract than
    # one value a channel, which PyTorch broadcasts along the innermost dimension.
    def spread(values: Sequence[float]) -> Tensor:
        row = torch.tensor(values, dtype=torch.float32)
        return row.expand(*x.shape[2:], -1).contiguous().permute(2, 0, 1)

    return Standardise(spread(mean), spread(std))


def standardise_channels(x: UInt8[Tensor, "N C H W"]) -> Standardise:
    """Standardise each channel by these images, without a float copy of them."""
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for part in torch.split(x, 4096):
        values = part.double()
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = total / max(x[:, 0].numel(), 1)
    std = (square - mean**2).clamp(min=1e-6).sqrt()
    return by_channels(mean.tolist(), std.tolist(), x)
