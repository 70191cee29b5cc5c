"""Inspecting the batches of a fit: the first one whole, some later ones again."""

from contextlib import suppress
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_is.preparation import Trial, prepare
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Head, Settings

_CHECKED_AGAIN = (10, 100, 1000, 10_000)  # batches: a loss may gain terms in time


@final
class Inspector:
    """Finds the head on the first batch, and refuses what cannot work.

    Args:
        module: The user's module.
        settings: Of the callback.
        runner: Runs the user's step without a trace.

    Attributes:
        is_summed: Whether the loss is a sum over the examples.
    """

    def __init__(
        self, module: LightningModule, settings: Settings, runner: StepRunner
    ) -> None:
        self._module, self._settings, self._runner = module, settings, runner
        self.is_summed = False

    def prepare(self, batch: Any, size: int) -> HeadTap | None:
        """Put a tap on the head; None if the step returned no loss this time.

        Raises:
            RuntimeError: If something would be silently wrong.
            ValueError: If the scorer cannot score this step.
        """
        head = self._settings.head
        heads = None if head is None else resolve_heads(self._module, head)
        with torch.compiler.set_stance("force_eager"):  # inside it no hook tells much
            prepared = prepare(self._trial(batch, size), heads, self._settings.scorer)
        if prepared is None:
            return None
        torch.compiler.reset()  # what was traced before, in a sanity check, has no tap
        self._runner.settle()
        tap, self.is_summed = prepared
        return tap

    def check_again(self, tap: HeadTap, batch: Any, size: int, number: int) -> None:
        """Look again, at a few of the batches, for parameters around the head."""
        if number in _CHECKED_AGAIN:
            with suppress(NoLossError), torch.compiler.set_stance("force_eager"):
                self._trial(batch, size).refuse_bypass(tap)

    def _trial(self, batch: Any, size: int) -> Trial:
        # Two examples at least, or their order could not be told; four, to halve them.
        least = 4 if size >= 8 else 2
        part = min(max(least, min(self._settings.wanted(size), size // 2)), size)
        return Trial(
            module=self._module,
            step=self._runner.loss,
            losses=self._runner.losses,
            context=self._runner.traceless,
            take=self._settings.take,
            batch=batch,
            device=self._module.device,
            examples=part,
            parts=min(2, size // part),
        )


def resolve_heads(module: LightningModule, head: Head) -> list[nn.Module]:
    """Turn names and modules into modules.

    Raises:
        ValueError: If a name is no submodule, or a module no part of this one.
    """
    if isinstance(head, (str, nn.Module)):
        head = [head]
    parts: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        parts.setdefault(_plain(name), part)  # of a compiled part, what is called
    everything = set(module.modules())
    heads = []
    for wanted in head:
        found = parts.get(_plain(wanted)) if isinstance(wanted, str) else wanted
        if found not in everything:
            shown = ", ".join(list(parts)[1:9])
            raise ValueError(
                f"`head` must name a part of {type(module).__name__} by its dotted "
                f"name, or be one, got {wanted!r}. Its parts begin with: {shown}."
            )
        heads.append(found)
    return heads


def _plain(name: str) -> str:
    """Return a dotted name as it is without `torch.compile`."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
