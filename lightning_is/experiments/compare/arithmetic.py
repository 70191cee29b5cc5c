"""Arithmetic that a run is charged for, whatever the machine makes of it."""

from typing import TypeAlias

import torch
from lightning import LightningModule
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lightning_is.experiments.compare.referee import measurable
from lightning_is.experiments.data.tensors import Batch

Shape: TypeAlias = tuple[int, ...]


class Arithmetic:
    """Floating-point operations since it was started, in examples trained on.

    Products of matrices, convolutions and attention are counted, forward and backward,
    with and without gradients, as PyTorch's counter does: nearly all a network does.
    Pointwise work, drawing and loading are free.

    Args:
        of_example: Operations of one example of ordinary training: the unit.

    Example:
        >>> import torch
        >>> meter = Arithmetic(of_example=600.0)
        >>> meter.start()
        >>> _ = torch.ones(30, 10) @ torch.ones(10, 2)
        >>> meter.stop()
        >>> meter.spent
        2.0
    """

    def __init__(self, of_example: float) -> None:
        self._unit, self._before = of_example, 0.0
        self._counter: FlopCounterMode | None = None  # while it runs

    @property
    def spent(self) -> float:
        """What was charged so far."""
        now = 0 if self._counter is None else self._counter.get_total_flops()
        return self._before + now / self._unit

    def start(self) -> None:
        """Go on counting."""
        self._counter = counter()
        self._counter.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Count no more, until started again."""
        if self._counter is not None:
            self._before = self.spent
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._counter = None


def of_example(module: LightningModule, batch: Batch) -> float:
    """Operations of training on one example as usual, forward and backward.

    Args:
        module: Evaluates examples.
        batch: Some of them.

    Raises:
        ValueError: If parts of the network do work that is not counted.
    """
    recurrent = [n for n, p in module.named_modules() if isinstance(p, nn.RNNBase)]
    if recurrent:
        raise ValueError(
            "The clock must see all the work, got clock=cost, which counts products of "
            f"matrices and convolutions, and the recurrent layer {recurrent[0]!r}. "
            "Choose clock=cpu or clock=wall."
        )
    module.train()
    with counter() as counted:
        loss = measurable(module).evaluate(batch)[0].mean()
        loss.backward()  # type: ignore[no-untyped-call]
    module.zero_grad()
    return float(counted.get_total_flops() / len(batch[1]))


def counter() -> FlopCounterMode:
    """Return PyTorch's counter, told of attention on the CPU, which it passes over."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {attention: _forward_flops, backward: _backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _forward_flops(
    query: Shape, key: Shape, value: Shape, *_: object, **__: object
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _backward_flops(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object
) -> int:
    counted = sdpa_backward_flop_count(grad, query, key, value)  # type: ignore[no-untyped-call]
    return int(counted)
