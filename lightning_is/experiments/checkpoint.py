"""Writing a trained network as a checkpoint that others can fine-tune."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lightning import LightningModule

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.data import HubImages, Standardise, TensorDataModule
from lightning_is.experiments.data.processor import Processor
from lightning_is.experiments.pretrained import HubNetwork


@dataclass(frozen=True)
class Checkpoint:
    """A network that can be written, with what tells how its images are normalised.

    Args:
        network: To train.
        data: To train it on.
    """

    network: HubNetwork
    data: HubImages

    def write(self, folder: Path) -> None:
        """Write weights, configuration and how images are normalised.

        Args:
            folder: Made if need be; `transformers` loads it by its path.
        """
        train = self.data.splits.train
        scale = cast("Standardise", train.transform)  # as all `HubImages` have it
        mean, std = (values[:, 0, 0].tolist() for values in (scale.mean, scale.std))
        form = self.data.form
        folder.mkdir(parents=True, exist_ok=True)
        self.network.model.save_pretrained(folder)
        Processor(mean, std, form.crop, form.resample).write(folder, train.x.shape[-1])


def checkpoint(module: LightningModule, data: TensorDataModule) -> Checkpoint:
    """Return what a run could write at its end; nothing is read for that.

    Raises:
        ValueError: If the network is none of `transformers`, or its data are no images.
    """
    net = module.net if isinstance(module, Classifier) else module
    if not isinstance(net, HubNetwork):
        raise ValueError(
            "Only networks of `transformers` can be written as checkpoints, got a "
            f"{type(net).__name__} and save_network. Choose model=resnet or "
            "model=pretrained."
        )
    if not isinstance(data, HubImages):
        raise ValueError(
            "A checkpoint says how its images are normalised, got data that do not, "
            f"{type(data).__name__}, and save_network. Pretrain on images, such as "
            "data=cifar10."
        )
    return Checkpoint(net, data)
