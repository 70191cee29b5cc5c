"""Shared pieces: small modules, quiet Trainers, and where real data may lie."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import get_all_subclasses
from torch import nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

DATA = Path(
    os.environ.get("LIGHTNING_IS_DATA", Path(__file__).parents[2] / "shared" / "data")
)
collect_ignore = ["compiled.py"]  # a program, which `test_compile` runs
torch.set_num_threads(1)  # small networks only get slower on more
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loaders_as_they_were():
    """Undo what Lightning leaves behind where a loader is refused within its hooks.

    It patches loaders and samplers there, so that they can be made anew, and after an
    error they stay patched: later tests would see other loaders than users do.
    """
    yield
    for kind in (DataLoader, BatchSampler):
        for cls in get_all_subclasses(kind) | {kind}:
            for name in ("__init__", "__setattr__", "__delattr__"):
                if (old := cls.__dict__.get(f"__old{name}")) is not None:
                    setattr(cls, name, old)
                    delattr(cls, f"__old{name}")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], str]:
    """Return the folder of a real dataset, or skip, saying why."""

    def find(name: str) -> str:
        if not (DATA / name).is_dir():
            pytest.skip(f"no real data at {DATA / name}; set LIGHTNING_IS_DATA")
        return str(DATA / name)

    return find


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Return a folder with a small network of 4 classes, as if it were pretrained."""
    pytest.importorskip("transformers")
    from lightning_is.experiments.data.processor import Processor
    from lightning_is.experiments.pretrained import resnet

    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = resnet(4, widths=(4, 8), depths=(1, 1)).model
        for name, buffer in model.named_buffers():
            if "running" in name:  # as training leaves them: neither zeros nor ones
                buffer += 0.5 * torch.rand_like(buffer)
        model.save_pretrained(folder)
    Processor([120.0, 110.0, 100.0], [60.0, 50.0, 40.0]).write(folder, 16)
    return folder


class Classifier(L.LightningModule):
    """A user's module: knows nothing of importance sampling."""

    def __init__(self, net: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(len(x))
        loss = functional.cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/size", float(len(batch[0])), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def mlp(inputs: int = 6, classes: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, classes))
    nn.init.normal_(
        net[2].weight, std=4.0
    )  # confident here, wrong there: uneven scores
    return net


def cnn(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def examples(n: int = 48, shape: tuple[int, ...] = (6,), classes: int = 3):
    """Examples of very uneven difficulty, so that draws differ from uniform ones."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, *shape, generator=generator)
    x *= torch.linspace(0.1, 3.0, n).view(-1, *[1] * len(shape))
    return x, torch.randint(classes, (n,), generator=generator)


def loader(n: int = 48, batch_size: int = 12, *, shuffle: bool = False, **settings):
    return DataLoader(
        TensorDataset(*examples(n)), batch_size=batch_size, shuffle=shuffle, **settings
    )


def quiet_trainer(*callbacks: L.Callback, **settings) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": list(callbacks),
    }
    return L.Trainer(**(defaults | settings))


@pytest.fixture(scope="session")
def kit():
    """Hand the pieces above to a test module."""
    return _Kit


class _Kit:
    Classifier = Classifier
    mlp = staticmethod(mlp)
    cnn = staticmethod(cnn)
    examples = staticmethod(examples)
    loader = staticmethod(loader)
    trainer = staticmethod(quiet_trainer)
