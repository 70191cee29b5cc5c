"""Inspecting the batches of a fit: the first one whole, some later ones again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_is.preparation import Trial, prepare
from lightning_is.runner import NoLossError, StepRunner
from lightning_is.scoring.chunks import Sums
from lightning_is.scoring.scorer import LossKind
from lightning_is.scoring.tap import HeadTap
from lightning_is.settings import Head, Settings

_WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
_ENOUGH = 8  # examples: halves of a half of them tell a sum from a mean
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
        sums: What of the step is a sum over the examples.
        loss: Its kind, once it was seen.
        examine: Is shown the first batch, the head and the loss, once they are found.
    """

    def __init__(
        self, module: LightningModule, settings: Settings, runner: StepRunner
    ) -> None:
        self._module, self._settings, self._runner = module, settings, runner
        self.sums, self._later = Sums(), list(_CHECKED_AGAIN)
        self.loss: LossKind = "unknown"
        self._has_asked = False  # enough examples to know
        self.examine: Examine | None = None

    def prepare(self, batch: Any, size: int) -> HeadTap | None:
        """Put a tap on the head; None if the step returned no loss this time.

        Raises:
            RuntimeError: If something would be silently wrong.
            ValueError: If the scorer cannot score this step.
        """
        head = self._settings.head
        heads = None if head is None else resolve_heads(self._module, head)
        trial = self._trial(batch, size)
        with torch.compiler.set_stance("force_eager"):  # inside it no hook tells much
            try:
                prepared = prepare(trial, heads, self._settings.scorer)
            except Exception as problem:
                _refuse_whole_only(trial, size, problem)
                raise
        if prepared is None:
            return None
        torch.compiler.reset()  # what was traced before, in a sanity check, has no tap
        self._runner.settle()
        tap, self.loss = prepared
        self._note(trial, tap)
        if self.examine is not None:
            self.examine(tap, batch, self._runner, self.loss)
        return tap

    def _note(self, trial: Trial, tap: HeadTap) -> None:
        """Learn from the kind of loss what is summed, as far as it could be told."""
        self._has_asked = trial.examples >= _ENOUGH // 2
        if self.loss in ("sum", "coupled sum"):
            own = self._settings.per_sample_loss is not None
            self.sums = Sums(True, not own, self._grow(trial, tap))
        elif self.loss != "unknown":
            self.sums = Sums()

    def _grow(self, trial: Trial, tap: HeadTap) -> bool:
        """Whether scores grow with the batch, as those by a summed loss may."""
        half = torch.arange(trial.examples // 2, device=trial.device)
        alone = trial.scores(tap, self._settings.scorer, half).sum()
        beside = trial.scores(tap, self._settings.scorer)[half].sum()
        return bool(beside > 1.4 * alone)  # twice as large, or the same

    def check_again(self, tap: HeadTap, batch: Any, size: int, number: int) -> None:
        """Look again, at a few of the batches, for parameters around the head."""
        first = self._runner.is_first_of_step
        # All ranks are asked for their size, and find the same.
        if not self._has_asked and first and self._runner.least(size) >= _ENOUGH:
            trial = self._trial(batch, size)
            with suppress(NoLossError):
                self.loss = trial.loss_kind(tap)
                self._note(trial, tap)
        due = bool(self._later) and number >= self._later[0]
        if due and first:
            self._later.pop(0)
            with suppress(NoLossError), torch.compiler.set_stance("force_eager"):
                self._trial(batch, size).refuse_bypass(tap)

    def _trial(self, batch: Any, size: int) -> Trial:
        size = self._runner.least(size)
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
            device=self._runner.device,
            examples=part,
            parts=min(2, size // part),
            sharded=self._runner.is_sharded,
        )


def _refuse_whole_only(trial: Trial, size: int, problem: Exception) -> None:
    """Explain a step that runs on a batch as it was loaded, and on no part of it.

    Raises:
        RuntimeError: If that is what it does.
    """
    whole = replace(trial, examples=size, take=lambda batch, _: batch)
    if _runs(trial) or not _runs(whole):
        return
    raise RuntimeError(
        "A step must run on a part of its batch, got one that runs on all of "
        f"{size} examples and not on {trial.examples}: {problem} Load batches with one "
        "row per example in every part, do not fix their size in the step, or pass "
        "`index_fn=`, which counts and picks examples."
    ) from problem


def _runs(trial: Trial) -> bool:
    try:
        with torch.no_grad():
            trial.run()
    except Exception:
        return False
    return True


def resolve_heads(module: LightningModule, head: Head) -> list[nn.Module]:
    """Turn names and modules into modules.

    Raises:
        ValueError: If a name is no submodule, or a module no part of this one.
    """
    if isinstance(head, (str, nn.Module)):
        head = [head]
    # Strategies and compilers wrap parts of the module, named by the user without.
    parts: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if not name.endswith("_orig_mod"):  # of a compiled part, what is called
            parts[_plain(name)] = part
    heads = []
    for wanted in head:
        found = parts.get(_plain(wanted)) if isinstance(wanted, str) else wanted
        if found is None or not any(found is part for part in module.modules()):
            shown = ", ".join(list(parts)[1:9])
            raise ValueError(
                f"`head` must name a part of {type(module).__name__} by its dotted "
                f"name, or be one, got {wanted!r}. Its parts begin with: {shown}."
            )
        heads.append(found)
    return heads


def _plain(name: str) -> str:
    """Return a dotted name without those of wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)
