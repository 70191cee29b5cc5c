"""Measures a network on fixed examples, and leaves no trace in the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.data.tensors import Batch, TensorSet

# Examples of a quick measurement, and of a batch. Twenty quick ones on images and a
# CPU should not take longer than the run.
GLANCE, CHUNK = 2500, 500


@runtime_checkable
class Measurable(Protocol):
    """A module that says of each example how well it does."""

    def evaluate(self, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Loss of each example in nats, and whether it is wrong: 0 or 1."""


def measurable(module: LightningModule) -> Measurable:
    """Return the module, as what can be measured.

    Raises:
        TypeError: If it cannot.
    """
    if not isinstance(module, Measurable):
        raise TypeError(
            "Runs are measured example by example, by `evaluate(batch)`, which "
            f"{type(module).__name__} has not. Let it return losses and errors, as "
            "`Classifier.evaluate` does."
        )
    return module


@dataclass(frozen=True)
class Measured:
    """What a network reached.

    Args:
        train_loss: Mean loss of training examples as they are, in nats.
        val_loss: Likewise of the validation examples.
        val_error: Share of these that are wrong.
        test_loss: Likewise of all test examples.
        test_error: Share of test examples that are wrong.
        errors: The same of each part of the test examples.
    """

    train_loss: float
    val_loss: float
    val_error: float
    test_loss: float
    test_error: float
    errors: dict[str, float]


class Referee:
    """Measures networks on the same examples, in evaluation mode.

    Neither the random states nor the modules' modes are any different afterwards.

    Args:
        data: Holds the examples, unselected and not augmented.
    """

    def __init__(self, data: TensorDataModule) -> None:
        self._train = stored(data.ordered_train_dataloader())
        self._val = stored(data.val_dataloader())
        names = data.splits.tests
        loaders = data.test_dataloader()
        self._tests = {n: stored(part) for n, part in zip(names, loaders, strict=True)}

    def measure(self, module: LightningModule, *, thorough: bool = False) -> Measured:
        """Measure a network on training, validation and test examples.

        Args:
            module: Evaluates examples.
            thorough: Take all examples rather than 2500 of each part.
        """
        most = None if thorough else GLANCE
        with evaluating(module):
            train = totals(module, self._train, most)
            val = totals(module, self._val, most)
            tests = {n: totals(module, part, most) for n, part in self._tests.items()}
        losses, wrong, count = torch.stack([*tests.values()]).sum(0).tolist()
        return Measured(
            train_loss=float(train[0] / train[2]),
            val_loss=float(val[0] / val[2]),
            val_error=float(val[1] / val[2]),
            test_loss=losses / count,
            test_error=wrong / count,
            errors={name: float(part[1] / part[2]) for name, part in tests.items()},
        )


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
    """Sum of losses, sum of errors and number of examples.

    Args:
        module: Evaluates examples.
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
        loss, wrong = measurable(module).evaluate((x, y))
        found[:2] += torch.stack([loss.double().sum(), wrong.double().sum()]).cpu()
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
