"""Learning rates that reach zero with the last step of the run."""

import math
from collections.abc import Callable, Iterable

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def linear(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Fall from the optimizer's learning rate to zero on a straight line.

    Args:
        optimizer: Holds the learning rate to start from.
        total_steps: Optimizer steps of the whole run.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
        >>> linear(sgd, total_steps=4).get_last_lr()
        [0.4]
    """
    return LambdaLR(optimizer, lambda step: max(1 - step / total_steps, 0.0))


def cosine(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Fall from the optimizer's learning rate to zero on half a cosine.

    Args:
        optimizer: Holds the learning rate to start from.
        total_steps: Optimizer steps of the whole run.

    References:
        Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
        >>> cosine(sgd, total_steps=4).get_last_lr()
        [0.4]
    """

    def share(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))

    return LambdaLR(optimizer, share)


def optimization(
    module: LightningModule,
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    make_scheduler: Callable[[Optimizer, int], LRScheduler] | None,
) -> OptimizerLRScheduler:
    """Make what ``configure_optimizers`` returns; the schedule moves at every step.

    Args:
        module: Whose parameters are trained, attached to a Trainer.
        make_optimizer: Makes the optimizer from the parameters.
        make_scheduler: Makes the schedule from the optimizer and the number of steps of
            the run; a constant learning rate if None.

    Raises:
        ValueError: If there is a schedule and the run has no end.
    """
    optimizer = make_optimizer(module.parameters())
    if make_scheduler is None:
        return optimizer
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            "A schedule that ends with the run needs to know its length, got a "
            "Trainer without one. Set `max_epochs` or `max_steps`, or take no "
            "scheduler."
        )
    schedule = make_scheduler(optimizer, int(steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }
