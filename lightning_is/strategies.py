"""What changes where the Trainer's strategy shares the parameters out among ranks."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.hooks import RemovableHandle

from lightning_is.shadow import Shadow

_SHARDED = (FSDPStrategy, ModelParallelStrategy)
_SUPPORTED = (SingleDeviceStrategy, DDPStrategy, *_SHARDED)
# Derived from supported ones, and of their own all the same.
_OTHERS = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)


def refuse_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which a step cannot be run just to score.

    Raises:
        RuntimeError: If the Trainer's is one of them.
    """
    strategy = trainer.strategy
    if isinstance(strategy, _OTHERS) or not isinstance(strategy, _SUPPORTED):
        raise RuntimeError(
            "Importance sampling runs on a single device, under DDP, FSDP and "
            "ModelParallelStrategy without tensor parallelism, got "
            f"{type(strategy).__name__}. Use Trainer(strategy='ddp') or, where the "
            "parameters must be sharded, 'fsdp'."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    size = strategy.device_mesh["tensor_parallel"].size()
    if size > 1:
        raise RuntimeError(
            "Importance sampling needs whole examples on every rank, got tensor "
            f"parallelism over {size} of them. Shard the parameters instead: "
            "ModelParallelStrategy(tensor_parallel_size=1), with `fully_shard` in "
            "`configure_model`."
        )


def refuse_manual(trainer: Trainer, module: LightningModule) -> None:
    """Refuse manual optimisation where a step may not end before it is over.

    Raises:
        RuntimeError: If the module optimises by hand and its parameters are sharded.
    """
    if shards(trainer) and not module.automatic_optimization:
        raise RuntimeError(
            "Sharded parameters need whole passes, got manual optimisation, whose step "
            "is scored up to `manual_backward` alone. Return the loss from "
            "`training_step` and let the Trainer step, or use Trainer(strategy='ddp')."
        )


def shards(trainer: Trainer) -> bool:
    """Whether ranks gather parameters in every forward pass.

    Then they must make the same number of passes, or wait for one another for ever.
    """
    return isinstance(trainer.strategy, _SHARDED)


def ranks_meet(trainer: Trainer, module: nn.Module) -> bool:
    """Whether ranks wait for one another in every forward pass."""
    if trainer.world_size == 1:
        return False
    synced = any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
    return synced or shards(trainer)


def least(trainer: Trainer, size: int) -> int:
    """Return a size that every rank has; waits for them."""
    sizes = torch.tensor(float(size), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(sizes, reduce_op="min"))


def run_within(
    trainer: Trainer, module: LightningModule, run: Callable[..., Any], *args: Any
) -> Any:
    """Call a function that runs a module, with the parameters it needs at hand.

    FSDP gathers those of the outermost unit in the forward pass of its wrapper, so the
    function takes the place of the module's own for once. If it raises, the wrapper is
    left in the midst of a pass.

    Args:
        trainer: Runs the fit.
        module: That the function runs: the Trainer's, or another.
        run: The function.
        *args: Of the function; FSDP brings them to its precision.
    """
    wrapper = trainer.strategy.model
    if not isinstance(trainer.strategy, FSDPStrategy):
        return run(*args)
    if wrapper is None or module is not trainer.lightning_module:
        return run(*args)
    with _unwatched(wrapper) if not torch.is_grad_enabled() else nullcontext():
        return (
            run(*args)
            if wrapper is module
            else _as_forward(wrapper, module, run, *args)
        )


def _as_forward(
    wrapper: nn.Module, module: nn.Module, run: Callable[..., Any], *args: Any
) -> Any:
    """Run a function as the forward pass of a wrapped module."""

    def inside(*given: Any) -> Any:
        forward.undo()  # which the function may call
        return run(*given)

    forward = Shadow(module, "forward", inside)
    try:
        return wrapper(*args)
    finally:
        forward.undo()


@contextmanager
def _unwatched(wrapper: nn.Module) -> Iterator[None]:
    """Let no FSDP unit wait for a backward pass through what it returns.

    Where a head is cut off under ``no_grad``, its output records a graph all the same,
    and a unit that sees it would prepare its gradients for a whole backward pass: those
    of earlier batches that accumulate would be lost. So the graph is out of its sight.
    """
    modes: list[bool] = []
    depth: Counter[nn.Module] = Counter()

    def enter(module: nn.Module, _: Any) -> None:
        depth[module] += 1

    def hide(module: nn.Module, *_: Any) -> None:
        depth[module] -= 1
        if not depth[module]:  # a step may call the module that it belongs to
            modes.append(torch.is_grad_enabled())
            torch.set_grad_enabled(False)

    def show(*_: Any) -> None:
        torch.set_grad_enabled(modes.pop())

    handles: list[RemovableHandle] = []
    for unit in FullyShardedDataParallel.fsdp_modules(wrapper):
        handles.append(unit.module.register_forward_pre_hook(enter))
        handles.append(unit.module.register_forward_hook(hide))
        handles.append(unit.register_forward_hook(show))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
