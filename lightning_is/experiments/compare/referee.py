"""Measures a network on fixed examples, and leaves no trace in the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.data.tensors import Batch, TensorSet

# Examples of a quick measurement, and of a batch. Twenty quick ones on images and a
# CPU should not take longer than the run.
GLANCE, CHUNK = 2500, 500


@dataclass(frozen=True)
class Measured:
    """What a network reached.

    Args:
        train_loss: Mean cross-entropy of training examples as they are, in nats.
        test_loss: Likewise of all test examples.
        test_error: Share of test examples that are classified wrongly.
    """

    train_loss: float
    test_loss: float
    test_error: float


class Referee:
    """Measures networks on the same examples, in evaluation mode.

    Neither the random states nor the modules' modes are any different afterwards.

    Args:
        data: Holds the examples, unselected and not augmented.
    """

    def __init__(self, data: TensorDataModule) -> None:
        self._train = stored(data.ordered_train_dataloader())
        self._tests = [stored(loader) for loader in data.test_dataloader()]

    def measure(self, module: LightningModule, *, thorough: bool = False) -> Measured:
        """Measure a network on the test set and on training examples.

        Args:
            module: From inputs to logits.
            thorough: Take all examples rather than 2500 of each part.
        """
        most = None if thorough else GLANCE
        with evaluating(module):
            train = totals(module, self._train, most)
            tests = [totals(module, test, most) for test in self._tests]
        train_loss = float(train[0] / train[2])
        loss, wrong, count = torch.stack(tests).sum(0).tolist()
        return Measured(train_loss, loss / count, wrong / count)


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; each part's own mode comes back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def totals(
    module: LightningModule, data: TensorSet, most: int | None
) -> Float64[Tensor, " 3"]:
    """Sum of losses, number of errors and number of examples.

    Args:
        module: From inputs to logits.
        data: The examples.
        most: How many to take, the same ones every time; all if None.
    """
    rows = torch.arange(len(data))
    if most is not None and most < len(data):
        # A generator of its own: the run's random numbers stay its own.
        draw = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(data), generator=draw)[:most]
    found = torch.zeros(3, dtype=torch.float64)
    for some in torch.split(rows, CHUNK):
        x, y = (part.to(module.device) for part in data.__getitems__(some.tolist()))
        logits = module(x)
        loss = functional.cross_entropy(logits, y, reduction="sum")
        wrong = (logits.argmax(1) != y).sum()
        found[:2] += torch.stack([loss.double(), wrong.double()]).cpu()
    found[2] = len(rows)
    return found


def stored(loader: DataLoader[Batch]) -> TensorSet:
    """Return the examples behind a loader: iterating it would draw random numbers.

    Raises:
        TypeError: If they do not lie in memory.
    """
    if not isinstance(loader.dataset, TensorSet):
        raise TypeError(
            "Runs are measured on examples in memory, a TensorSet, got "
            f"{type(loader.dataset).__name__}. Derive the data from TensorDataModule."
        )
    return loader.dataset
