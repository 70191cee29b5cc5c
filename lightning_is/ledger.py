"""The ledger: what steps showed of their scores, on its way to gate and loader."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.monitor import Readback
from lightning_is.sampling.gate import Evidence, Gate
from lightning_is.sampling.moments import evidence, moments
from lightning_is.sampling.numerics import check_scores
from lightning_is.settings import Progress, Settings


@final
class Ledger:
    """Adds up evidence over the ranks and hands it to the gate, a step later.

    Args:
        trainer: Runs the fit.
        gate: Is told, and asked what the loader should emit.
        settings: Of the callback.
        progress: Returns the share of the run that is over.
        counts: Of batches and steps, updated in place.

    Attributes:
        last: The evidence last handed over.
        largest: Examples of the largest batch of this fit.
        batches: Batches of this fit.
    """

    def __init__(
        self,
        trainer: Trainer,
        gate: Gate,
        settings: Settings,
        progress: Callable[[], float],
        counts: Progress,
    ) -> None:
        self._trainer, self._gate, self._settings = trainer, gate, settings
        self._progress, self._counts = progress, counts
        self._readback = Readback()
        self._scores: Tensor | None = None  # behind what is being read back
        self.last: Evidence | None = None
        self.largest = 0
        self.batches = 0

    def note(self, size: int) -> None:
        """Take in the size of a batch that arrived."""
        self.largest = max(self.largest, size)
        self.batches += 1
        self._counts.batches += 1

    @property
    def presample_size(self) -> int:
        """Examples that an open step scores."""
        sampler = host.presample_sampler(self._trainer)
        return self.largest if sampler is None else sampler.presample_size

    def is_due(self) -> bool:
        """Whether a step should be looked at: for the gate, or for the logs."""
        due = self._counts.pending + 1 >= self._gate.interval
        return due or host.logs_now(self._trainer)

    def prospect(self, scores: Tensor) -> Tensor:
        """Return the moments of a uniform step, as if it had been drawn from."""
        if host.scales_gradients(self._trainer):
            usable = torch.isfinite(scores).all()  # the scaler skips this step
            scores = torch.where(usable, scores, 0.0)
        presample = max(self.presample_size, 1)
        share = self._wanted(presample) / presample
        drawn = min(max(1, round(share * len(scores))), len(scores))
        plan = self._settings.plan
        counts = plan.expected_counts(scores, drawn)
        return moments(scores, counts, drawn, plan.selection)

    def send(self, packed: Tensor | None, scores: Tensor | None) -> None:
        """Send the moments of a step on their way; every rank must, each step."""
        if self._trainer.world_size > 1:
            if packed is None:
                device = self._trainer.strategy.root_device
                packed = torch.zeros(6, dtype=torch.float64, device=device)
            # The size as well: ranks must not disagree on when a step pays.
            size = packed.new_full((1,), float(self.presample_size))
            packed = torch.cat([packed, size / self._trainer.world_size])
            reduced = self._trainer.strategy.reduce(packed, reduce_op="sum")
            packed = torch.as_tensor(reduced)
        self._counts.pending += 1
        if packed is not None:
            self._scores = scores
            self._readback.push(packed)

    def settle(self) -> None:
        """Hand the evidence of the last step to the gate.

        Raises:
            ValueError: If its scores were NaN, infinite or negative on an accelerator,
                where this is found out now.
        """
        arrived = self._readback.pop()
        if arrived is None:
            return
        packed = arrived.tolist()
        faults = packed[5]
        size = round(packed[6]) if len(packed) > 6 else self.presample_size
        if faults > 0:
            if self._scores is not None:
                check_scores(self._scores)
            raise ValueError(
                f"Scores must be finite and at least 0, got {faults:.0f} that are "
                "not on another rank. Its message says which."
            )
        found = evidence(packed[:6], size, self._wanted(size), self._counts.pending)
        if found is not None:
            self._counts.pending = 0
            self.last = replace(
                found, progress=self._progress(), epochs=host.epochs(self._trainer)
            )
            self._gate.observe(self.last)
        self.tell_sampler()

    def tell_sampler(self) -> None:
        """Let the loader know which batches are wanted next."""
        sampler = host.presample_sampler(self._trainer)
        if sampler is not None:
            sampler.is_open = self._gate.is_open
            sizes = self._gate.sizes(sampler.presample_size, sampler.batch_size)
            sampler.open_size = sizes.presample

    def _wanted(self, loaded: int) -> int:
        """Examples that an open step trains on, of as many loaded."""
        wanted = self._settings.wanted(loaded)
        return self._gate.sizes(loaded, min(wanted, loaded)).batch

    def check_loader(self) -> None:
        """Refuse a loader whose announced batch size leaves nothing to draw from.

        Raises:
            ValueError: If it does.
        """
        wanted = self._settings.batch_size
        sampler = host.presample_sampler(self._trainer)
        if sampler is not None and self._gate.chooses_size:
            raise ValueError(
                f"{type(self._gate).__name__} chooses a part of the loader's own "
                "batches, got presamples of an OversamplingDataModule. Pass the data "
                "module that it wraps."
            )
        if sampler is None and self._gate.needs_presamples:
            raise ValueError(
                f"{type(self._gate).__name__} must be able to ask for more examples "
                "than a batch has, got a loader of its own. Wrap the data in an "
                "OversamplingDataModule."
            )
        if wanted is None:
            return
        given = host.loader_batch_size(self._trainer)
        if sampler is not None and sampler.batch_size != wanted:
            raise ValueError(
                "The loader's batch size must be the callback's while presampling, got "
                f"{sampler.batch_size} and `batch_size={wanted}`. Make them equal."
            )
        if sampler is None and given is not None and given <= wanted:
            raise ValueError(_too_small(wanted, given))

    def check_epoch(self) -> None:
        """Refuse a loader none of whose batches was large enough to draw from.

        Raises:
            ValueError: If so.
        """
        wanted, largest = self._settings.batch_size, self.largest
        if wanted is None:
            return
        if self._trainer.world_size > 1:
            device = self._trainer.strategy.root_device
            sizes = torch.tensor(float(largest), device=device)
            largest = int(self._trainer.strategy.reduce(sizes, reduce_op="max"))
        # A run resumed at the end of an epoch sees few of its batches, or none.
        whole = self.batches > 1 and host.presample_sampler(self._trainer) is None
        if whole and largest <= wanted:
            raise ValueError(_too_small(wanted, largest))


def _too_small(wanted: int, got: int) -> str:
    return (
        "`batch_size` must be smaller than the batches of the loader, got "
        f"batch_size={wanted} and batches of at most {got}. Load larger batches (four "
        "times as large, say), lower `batch_size`, or wrap the data in an "
        "OversamplingDataModule."
    )
