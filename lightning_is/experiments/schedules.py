"""Learning rates that reach zero with the last step of the run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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
