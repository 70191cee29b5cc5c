"""What changes where the Trainer's strategy shares the parameters out among ranks."""

from collections.abc import Callable
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


def shards(trainer: Trainer) -> bool:
    """Whether ranks gather parameters in every forward pass.

    Then they must make the same number of passes, or wait for one another for ever.
    """
    return isinstance(trainer.strategy, _SHARDED)


def least(trainer: Trainer, size: int) -> int:
    """Return a size that every rank has, where they must agree; waits for them then."""
    if not shards(trainer):
        return size
    sizes = torch.tensor(float(size), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(sizes, reduce_op="min"))


def run_within(
    trainer: Trainer, module: LightningModule, run: Callable[..., Any], *args: Any
) -> Any:
    """Call a function that runs a module, with the parameters it needs at hand.

    FSDP gathers those of the outermost unit in the forward pass of its wrapper, so the
    function takes the place of the module's own for once. It must not raise: the
    wrapper would be left in the midst of a pass.

    Args:
        trainer: Runs the fit.
        module: That the function runs: the Trainer's, or another.
        run: The function.
        *args: Of the function; FSDP brings them to its precision.
    """
    wrapper = trainer.strategy.model
    wraps = isinstance(trainer.strategy, FSDPStrategy) and wrapper is not module
    if not wraps or module is not trainer.lightning_module:
        return run(*args)

    def inside(*given: Any) -> Any:
        forward.undo()  # which the function may call
        return run(*given)

    forward = Shadow(module, "forward", inside)
    try:
        assert wrapper is not None  # noqa: S101  the fit is on
        return wrapper(*args)
    finally:
        forward.undo()
