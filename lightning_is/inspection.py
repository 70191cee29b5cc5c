"""Inspecting the batches of a fit: the first one whole, some later ones again."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import nn

from lightning_is.preparation import Trial, prepare
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.scoring.scorer import LossKind
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Head, Settings

_CHECKED_AGAIN = (10, 100, 1000, 10_000)  # batches: a loss may gain terms in time

Examine = Callable[[HeadTap, Any, StepRunner, LossKind], None]


@final
class Inspector:
    """Finds the head on the first batch, and refuses what cannot work.

    Args:
        module: The user's module.
        settings: Of the callback.
        runner: Runs the user's step without a trace.

    Attributes:
        loss: Its kind, once it was seen.
        examine: Is shown the first batch, the head and the loss, once they are found.
    """

    def __init__(
        self, module: LightningModule, settings: Settings, runner: StepRunner
    ) -> None:
        self._module, self._settings, self._runner = module, settings, runner
        self.loss: LossKind = "unknown"
        self.examine: Examine | None = None

    @property
    def is_summed(self) -> bool:
        """Whether the loss is a sum over the examples."""
        return self.loss in ("sum", "coupled sum")

    def prepare(self, batch: Any, size: int) -> HeadTap | None:
        """Put a tap on the head; None if the step returned no loss this time.

        Raises:
            RuntimeError: If something would be silently wrong.
            ValueError: If the scorer cannot score this step.
        """
        head = self._settings.head
        heads = None if head is None else resolve_heads(self._module, head)
        prepared = prepare(self._trial(batch, size), heads, self._settings.scorer)
        if prepared is None:
            return None
        self._runner.settle()
        tap, self.loss = prepared
        if self.examine is not None:
            self.examine(tap, batch, self._runner, self.loss)
        return tap

    def check_again(self, tap: HeadTap, batch: Any, size: int, number: int) -> None:
        """Look again, at a few of the batches, for parameters around the head."""
        if number in _CHECKED_AGAIN:
            with suppress(NoLossError):
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
    parts = dict(module.named_modules())
    heads = []
    for wanted in head:
        found = parts.get(wanted) if isinstance(wanted, str) else wanted
        if found is None or not any(found is part for part in parts.values()):
            shown = ", ".join(list(parts)[1:9])
            raise ValueError(
                f"`head` must name a part of {type(module).__name__} by its dotted "
                f"name, or be one, got {wanted!r}. Its parts begin with: {shown}."
            )
        heads.append(found)
    return heads
