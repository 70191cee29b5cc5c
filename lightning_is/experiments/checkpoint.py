"""Writing a trained network as a checkpoint that others can fine-tune."""

from pathlib import Path

from lightning import LightningModule

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.data import HubImages, Standardise, TensorDataModule
from lightning_is.experiments.data.processor import Processor
from lightning_is.experiments.pretrained import HubNetwork


def hub_network(module: LightningModule) -> HubNetwork:
    """Return the network of a classifier, if it can be written.

    Raises:
        ValueError: If it cannot.
    """
    net = module.net if isinstance(module, Classifier) else module
    if not isinstance(net, HubNetwork):
        raise ValueError(
            "Only networks of `transformers` can be written as checkpoints, got a "
            f"{type(net).__name__} and save_network. Choose model=resnet or "
            "model=pretrained."
        )
    return net


def write_checkpoint(network: HubNetwork, data: TensorDataModule, folder: Path) -> None:
    """Write weights, configuration and how images are normalised.

    Args:
        network: The trained network.
        data: What it was trained on.
        folder: Made if need be; `transformers` loads it by its path.

    Raises:
        ValueError: If the data are no images that were standardised by channels.
    """
    scale = data.splits.train.transform
    if not isinstance(data, HubImages) or not isinstance(scale, Standardise):
        raise ValueError(
            "A checkpoint says how its images are normalised, got data that do not, "
            f"{type(data).__name__}. Pretrain on images, such as data=cifar10."
        )
    folder.mkdir(parents=True, exist_ok=True)
    network.model.save_pretrained(folder)
    mean, std = (values[:, 0, 0].tolist() for values in (scale.mean, scale.std))
    processor = Processor(mean, std, data.form.crop, data.form.resample)
    processor.write(folder, data.splits.train.x.shape[-1])
