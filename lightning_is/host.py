"""What the engine needs of its host, Lightning, by public names alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins import FSDPPrecision, MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_is.data.batch_sampler import PresampleBatchSampler
from lightning_is.data.loader import IndexBatchSampler
from lightning_is.datamodule import OversamplingDataModule
from lightning_is.strategies import refuse_manual, refuse_strategy

_MIXED = (FSDPPrecision, MixedPrecision)  # may have a GradScaler


def refuse_unsupported(trainer: Trainer, module: LightningModule) -> None:
    """Say at once what importance sampling does not work with, and the cure.

    Raises:
        RuntimeError: If the strategy or the step's signature is not supported.
    """
    refuse_strategy(trainer)
    refuse_manual(trainer, module)
    if is_param_in_hook_signature(
        module.training_step, "dataloader_iter", explicit=True
    ):
        raise RuntimeError(
            "Importance sampling must see each batch before the step, got a "
            "`training_step(dataloader_iter)` that fetches its own. Take `batch` and "
            "`batch_idx` instead."
        )


def refuse_uneven(trainer: Trainer, module: LightningModule) -> None:
    """Refuse layers that make ranks wait for one another in every forward pass.

    Raises:
        RuntimeError: If ranks, which will make different numbers of them, would hang.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
    if trainer.world_size > 1 and layers:
        raise RuntimeError(
            "Ranks that accept different numbers of examples score different numbers "
            "of batches, got SyncBatchNorm, which would wait for ever. Use ordinary "
            "batch normalisation, or a method that scores as many on every rank."
        )


def refuse_empty(trainer: Trainer) -> None:
    """Refuse a training loader without batches, which Lightning passes in silence.

    Raises:
        ValueError: If there was nothing to train on, and that was not asked for.
    """
    asked = trainer.limit_train_batches == 0
    if trainer.num_training_batches == 0 and not asked:
        raise ValueError(
            "The training loader must yield batches, got none. Check that the dataset "
            "is not empty and, with `drop_last=True`, not smaller than a batch."
        )


def presample_sampler(trainer: Trainer) -> PresampleBatchSampler | None:
    """Find the presample batch sampler; Lightning may have rebuilt it."""
    loader = trainer.train_dataloader
    sampler = loader.batch_sampler if isinstance(loader, DataLoader) else None
    return sampler if isinstance(sampler, PresampleBatchSampler) else None


def steps_of_a_presample(trainer: Trainer) -> int:
    """Return how many steps train on draws from one presample."""
    sampler = presample_sampler(trainer)
    return 1 if sampler is None else sampler.score_every


def score_every_step(trainer: Trainer) -> None:
    """Have a presample loaded for every step from now on."""
    sampler = presample_sampler(trainer)
    if sampler is not None:
        sampler.score_every = 1


def data_module(trainer: Trainer) -> OversamplingDataModule | None:
    """Return our own data module, if the fit has it."""
    module = trainer.datamodule  # type: ignore[attr-defined]
    return module if isinstance(module, OversamplingDataModule) else None


def loader_batch_size(trainer: Trainer) -> int | None:
    """Return the batch size that the training loader announces, if it does."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        return None
    sampler = loader.batch_sampler
    if isinstance(sampler, IndexBatchSampler):
        return sampler.batch_size
    return loader.batch_size


def loads_ahead(trainer: Trainer) -> bool:
    """Whether batches are loaded while the device works: by workers, or ahead of it."""
    loader, device = trainer.train_dataloader, trainer.strategy.root_device
    has_workers = isinstance(loader, DataLoader) and loader.num_workers > 0
    return has_workers or device.type == "cuda"


def epochs(trainer: Trainer) -> float:
    """Return how many epochs were trained for, with the part of the current one."""
    batches = trainer.num_training_batches
    within = (trainer.fit_loop.batch_idx + 1) / batches if batches > 0 else 0.0
    return trainer.current_epoch + within


def share_of_run(trainer: Trainer) -> float:
    """Return the share of the run that is over, NaN if its length is unknown.

    Counted in steps or, on one process, in the time of `Trainer(max_time=...)` if more
    of that is over: the clocks of several differ, and they must not.
    """
    total = trainer.estimated_stepping_batches
    shares = [trainer.global_step / total] if 0 < total < float("inf") else []
    timers = callbacks(trainer) if trainer.world_size == 1 else []
    for callback in timers:
        if isinstance(callback, Timer):
            left = callback.time_remaining("train")
            spent = callback.time_elapsed("train")
            if left is not None:
                shares.append(spent / max(spent + left, 1e-9))
    return min(max(shares), 1.0) if shares else float("nan")


def before_transfer(trainer: Trainer, batch: Any) -> Any:
    """Do to a batch what the Trainer does once it is fetched."""
    batch = trainer.precision_plugin.convert_input(batch)
    data, module = trainer.datamodule, trainer.lightning_module  # type: ignore[attr-defined]
    name = "on_before_batch_transfer"
    owner = data if data is not None and is_overridden(name, data) else module
    return getattr(owner, name)(batch, 0)


def gathered(trainer: Trainer, rows: Tensor) -> Tensor:
    """Return the rows of all ranks, which have one shape, stacked in their order."""
    # As a sum: torch deprecates what Lightning's `all_gather` calls, and warns.
    everyones = rows.new_zeros((trainer.world_size, *rows.shape))
    everyones[trainer.global_rank] = rows
    return torch.as_tensor(trainer.strategy.reduce(everyones, reduce_op="sum"))


def gradient_scale(trainer: Trainer) -> float | Tensor:
    """Return the factor that the Trainer puts before the loss of a step."""
    factor = 1 / trainer.accumulate_grad_batches
    precision = trainer.precision_plugin
    if not isinstance(precision, _MIXED) or precision.scaler is None:
        return factor
    one = torch.ones((), device=trainer.strategy.root_device)
    return factor * torch.as_tensor(precision.scaler.scale(one))


def scales_gradients(trainer: Trainer) -> bool:
    """Whether gradients may overflow by design, as under a GradScaler."""
    precision = trainer.precision_plugin
    return isinstance(precision, _MIXED) and precision.scaler is not None


def logging_modules(module: LightningModule) -> list[nn.Module]:
    """List the modules whose ``self.log`` a step may call."""
    return [part for part in module.modules() if isinstance(part, LightningModule)]


def takes_batch_idx(module: LightningModule) -> bool:
    """Whether Lightning hands the index of the batch to the user's step."""
    return is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)


def loss_of(output: Any) -> Tensor | None:
    """Return the loss that a user's step returned, None if it skips.

    Raises:
        TypeError: If it is something else.
    """
    loss, got = output, type(output).__name__
    if isinstance(output, Mapping):
        loss, got = output.get("loss"), f"a mapping with the keys {sorted(output)}"
    if output is None:
        return None
    if isinstance(loss, Tensor):
        return loss
    raise TypeError(
        "`training_step` must return the loss as a tensor, in a mapping under 'loss', "
        f"or None, got {got}. Return `loss`, or `{{'loss': loss, ...}}`."
    )


def reported_loss(trainer: Trainer, outputs: Any) -> Tensor | None:
    """Return the loss of a step from what Lightning reports of it at its end."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if loss is None:
        return None
    # It comes divided by the number of accumulated batches.
    return torch.as_tensor(loss).detach() * trainer.accumulate_grad_batches


@contextmanager
def profiled(trainer: Trainer, action: str) -> Iterator[None]:
    """Show an action in the Trainer's profiler."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    with profiler.profile(f"[ImportanceSamplingCallback].{action}"):
        yield


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return the Trainer's callbacks; a Tuner swaps them for a while."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def may_log(trainer: Trainer) -> bool:
    """Whether the loggers may be told of the step that begins."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if trainer.barebones or every <= 0:
        return False
    # Batches whose gradients accumulate belong to one and the same step.
    return trainer.global_step % every == 0 or (trainer.global_step + 1) % every == 0


def logs_now(trainer: Trainer) -> bool:
    """Whether the step that just ended is one that the loggers are told of."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return not trainer.barebones and every > 0 and trainer.global_step % every == 0


def is_compiled(module: LightningModule) -> bool:
    """Whether torch.compile was called on a module, a part of it or its step."""
    step = "_torchdynamo_orig_callable" in vars(module.training_step)
    return step or any(
        type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None
        for part in module.modules()
    )
