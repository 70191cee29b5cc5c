"""The problem the benchmarks share: MNIST, a small CNN, quiet Trainers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.data import HubImages
from lightning_is.experiments.models import SmallCNN

PRESAMPLE, BATCH, RATE = 128, 32, 0.05  # B, b and the learning rate


def load(path: str, n_train: int = 20_000) -> HubImages:
    """Open a set of images on the hub or in a folder, decoded into memory."""
    data = HubImages(path, PRESAMPLE, n_train=n_train)
    data.prepare_data()
    data.setup("fit")
    return data


def classifier(data: HubImages, seed: int) -> Classifier:
    """Make the network afresh, the same for every arm of a seed."""
    torch.manual_seed(seed)
    x, _ = next(iter(data.val_dataloader()))
    sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9)
    return Classifier(SmallCNN(x.shape[1], 10), sgd, channels_last=True)


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """Make a Trainer that does nothing but train, on the CPU."""
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


@torch.no_grad()
def evaluate(module: Classifier, batches: Any) -> tuple[float, float]:
    """Return mean loss and error rate over some batches."""
    module.eval()
    loss = wrong = count = 0.0
    for x, y in batches:
        logits = module(x)
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        wrong += float((logits.argmax(1) != y).sum())
        count += len(y)
    return loss / count, wrong / count


def bare_parts(
    module: Classifier,
) -> dict[str, Callable[[Tensor, Tensor], None]]:
    """Return what a hand-written loop would run: a step, and a scoring pass."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def score(x: Tensor, y: Tensor) -> None:
        p = module(x).softmax(1)
        p[torch.arange(len(y)), y] -= 1
        p.norm(dim=1)

    return {"step": step, "score": score}
