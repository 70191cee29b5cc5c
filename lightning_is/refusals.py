"""Refusing parts that the loader, or the strategy, leaves without what they need."""

import torch
from lightning.pytorch import Callback, Trainer

from lightning_is import host
from lightning_is.sampling.gate import Gate
from lightning_is.scoring.gradient_norm import GradientNorm
from lightning_is.settings import Settings
from lightning_is.state import State
from lightning_is.strategies import shards


def refuse_several(trainer: Trainer, kind: type[Callback]) -> None:
    """Refuse a Trainer with more than one callback of a kind, which would draw twice.

    Raises:
        RuntimeError: If it has; Lightning itself looks at its first list alone.
    """
    several = [c for c in host.callbacks(trainer) if isinstance(c, kind)]
    if len(several) > 1:
        raise RuntimeError(
            "One ImportanceSamplingCallback draws the batches of a Trainer, got "
            f"{len(several)} in `trainer.callbacks`. Keep one, and give it what the "
            "others were given: a source, an acceptance or a gate."
        )


def check_loader(trainer: Trainer, gate: Gate, settings: Settings) -> None:
    """Refuse a loader whose announced batch size leaves nothing to draw from.

    Raises:
        ValueError: If it does.
    """
    wanted = settings.batch_size
    sampler = host.presample_sampler(trainer)
    if sampler is not None and gate.chooses_size:
        raise ValueError(
            f"{type(gate).__name__} chooses a part of the loader's own "
            "batches, got presamples of an OversamplingDataModule. Pass the data "
            "module that it wraps."
        )
    if sampler is not None and sampler.score_every > 1 and gate.needs_presamples:
        raise ValueError(
            f"{type(gate).__name__} balances each step by itself, got presamples for "
            f"score_every={sampler.score_every} of them. Leave `score_every` at 1."
        )
    if sampler is None and gate.needs_presamples:
        raise ValueError(
            f"{type(gate).__name__} must be able to ask for more examples "
            "than a batch has, got a loader of its own. Wrap the data in an "
            "OversamplingDataModule."
        )
    if wanted is None:
        return
    given = host.loader_batch_size(trainer)
    if sampler is not None and sampler.batch_size != wanted:
        raise ValueError(
            "The loader's batch size must be the callback's while presampling, got "
            f"{sampler.batch_size} and `batch_size={wanted}`. Make them equal."
        )
    if sampler is None and given is not None and given <= wanted:
        raise ValueError(_too_small(wanted, given))


def check_sharded(trainer: Trainer, settings: Settings, state: State) -> None:
    """Refuse what needs whole parameters, or ranks that go their own ways.

    Raises:
        RuntimeError: If the strategy allows neither.
    """
    name = type(trainer.strategy).__name__
    if not shards(trainer):
        return
    if state.acceptance is not None:
        raise RuntimeError(
            "Ranks that share out the parameters must score the same number of "
            "batches, got an acceptance, by which each scores as many as it takes, "
            f"under {name}. Use Trainer(strategy='ddp'), or another method."
        )
    if isinstance(settings.scorer, GradientNorm):
        raise RuntimeError(
            "The gradient norm of an example is that of all parameters, got "
            f"GradientNorm under {name}, where each rank has a part of them. Use "
            "Trainer(strategy='ddp'), or `scorer=UpperBound()`."
        )


def check_epoch(
    trainer: Trainer, settings: Settings, largest: int, batches: int
) -> None:
    """Refuse a loader none of whose batches was large enough to draw from.

    Raises:
        ValueError: If so.
    """
    wanted = settings.batch_size
    if wanted is None:
        return
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        sizes = torch.tensor(float(largest), device=device)
        largest = int(trainer.strategy.reduce(sizes, reduce_op="max"))
    # A run resumed at the end of an epoch sees few of its batches, or none.
    whole = batches > 1 and host.presample_sampler(trainer) is None
    if whole and largest <= wanted:
        raise ValueError(_too_small(wanted, largest))


def _too_small(wanted: int, got: int) -> str:
    return (
        "`batch_size` must be smaller than the batches of the loader, got "
        f"batch_size={wanted} and batches of at most {got}. Load larger batches (four "
        "times as large, say), lower `batch_size`, or wrap the data in an "
        "OversamplingDataModule."
    )
