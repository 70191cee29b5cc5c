"""Image classifiers of Hugging Face `transformers`: pretrained ones, and new ones.

Needs the extra ``finetune``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_is.experiments.data.places import checkpoint_file, local_folder
from lightning_is.experiments.frozen_norm import freeze_statistics


class HubNetwork(nn.Module):
    """An image classifier of `transformers`, from images to logits.

    Args:
        model: Takes ``pixel_values`` and returns what has ``logits``.
    """

    model: Any  # of a library whose classes differ in what they have

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def pretrained(
    path: str, classes: int, *, frozen_statistics: bool = True
) -> HubNetwork:
    """Load a pretrained classifier, its last layer replaced by a new one.

    All of it trains, but for the running statistics of batch normalisation. They stay
    as they were pretrained, as in the reference implementation of the paper: batches of
    16 would make poor ones.

    Args:
        path: Checkpoint of an image classifier: its name on the hub, as
            ``microsoft/resnet-50``, or a local folder as ``save_pretrained`` writes.
        classes: Logits of the new layer, at least 2.
        frozen_statistics: Normalise by the pretrained running statistics; otherwise as
            batch normalisation does in training.

    Returns:
        The network in train mode and single precision. The new layer is drawn from
        PyTorch's global generator.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ConnectionError: If the hub cannot be reached.
        ValueError: If it is no image classifier, or not the one its configuration
            describes.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    _check_classes(classes)
    if checkpoint_file(path, "config.json") is None:
        raise FileNotFoundError(
            f"A checkpoint must hold config.json, got {path!r}{_listing(path)}. Give "
            "the folder that `save_pretrained` wrote; scripts/train.py "
            "experiment=pretrain makes one."
        )
    model, found = _loaded(path, classes)
    heads = last_layers(model, classes)
    if not heads:
        raise ValueError(
            "The last layer must be a linear one after the backbone, got none in "
            f"{type(model).__name__} of {path!r}. Choose another network, such as "
            "microsoft/resnet-50."
        )
    _check_weights(path, found, heads)
    for head in heads.values():
        head.reset_parameters()  # it is kept where there are as many classes as before
    if frozen_statistics:
        freeze_statistics(model)
    return HubNetwork(model.float().train())  # it comes in evaluation mode


def resnet(
    classes: int,
    channels: int = 3,
    *,
    widths: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (1, 1, 1),
) -> HubNetwork:
    """Make a new residual network, to pretrain.

    Its stem makes images a quarter as high and wide, and every stage after the first
    half as high and wide again.

    Args:
        classes: Logits, at least 2.
        channels: Of the images.
        widths: Channels of each stage; the stem has as many as the first.
        depths: Blocks of each stage.
    """
    _check_classes(classes)
    _check_installed()
    from transformers import AutoModelForImageClassification, ResNetConfig

    config = ResNetConfig(
        num_channels=channels,
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type="basic",
    )
    config.num_labels = classes
    untyped: Any = AutoModelForImageClassification
    return HubNetwork(untyped.from_config(config).train())


def last_layers(model: Any, classes: int) -> dict[str, nn.Linear]:
    """Find, by name, the linear layers after the backbone that tell classes apart."""
    backbone = set(model.base_model.modules())
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and part.out_features == classes
        and part not in backbone
    }


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(
            f"A classifier needs at least 2 classes to tell apart, got {classes}. Set "
            "inputs.classes to how many the data have."
        )


def _check_installed() -> None:
    if find_spec("transformers") is None:
        raise ModuleNotFoundError(
            "Networks of the hub need the package `transformers`, got an installation "
            'without it. Install the extra: pip install ".[finetune]".'
        )


def _listing(path: str) -> str:
    """Tell what a local folder holds instead."""
    folder = local_folder(path)
    if folder is None:
        return ""
    return f" with {sorted(file.name for file in folder.iterdir())[:5]}"


def _loaded(path: str, classes: int) -> tuple[Any, Mapping[str, Any]]:
    """Load a classifier, and what was found of its weights."""
    _check_installed()
    from transformers import AutoModelForImageClassification

    folder = local_folder(path)
    try:
        with _quiet():
            model, found = AutoModelForImageClassification.from_pretrained(
                path if folder is None else folder,
                num_labels=classes,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,  # nor ask on the terminal whether to
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            "A checkpoint must be of an image classifier, with weights, got "
            f"{path!r}{_listing(path)}, of which `transformers` says: "
            f"{' '.join(str(error).split())[:300]} Choose one of the task "
            "image-classification."
        ) from error
    return model, found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `transformers` from telling that a new layer is new: it is looked at."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)


def _check_weights(
    path: str, found: Mapping[str, Any], heads: Mapping[str, nn.Linear]
) -> None:
    """Refuse a network that would begin with weights of chance below its head."""
    mismatched = {key for key, *_ in found["mismatched_keys"]}
    lost = {
        key
        for key in mismatched | set(found["missing_keys"])
        if key.rpartition(".")[0] not in heads
        and not key.endswith("num_batches_tracked")  # which nobody reads
    }
    if lost:
        raise ValueError(
            "A checkpoint must hold every weight below the last layer, got none that "
            f"fits for {', '.join(sorted(lost)[:3])} ({len(lost)} in all) in {path!r}. "
            "Its config.json describes another network; write both anew."
        )
