"""What survives a checkpoint: every part that learns from the run, and some counts."""

from dataclasses import dataclass, field
from typing import Any, final

from lightning_is.data.source import IndexSource
from lightning_is.fidelity import Checks
from lightning_is.progress import Progress
from lightning_is.sampling.gate import Gate
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.scoring.chunks import Sums

_VERSION = 3  # 1 had no source and no acceptance, 2 no checks


@final
@dataclass
class State:
    """The parts of the callback that change during a run.

    Attributes:
        gate: Decides when to sample.
        draws: Seed and counts.
        sums: What of the user's step is a sum over the examples.
        source: Chooses what to load, if there is one.
        acceptance: Accepts examples one by one, if there is one.
        checks: Whether it pays to score less.
        under_way: Batches that were drawn and not yet trained on, for the next feed.
        kept: Draws from a presample that were not yet trained on, without its data.
        queued: Leaves of examples that were accepted and not yet trained on, for the
            next queue.
    """

    gate: Gate
    draws: Progress
    source: IndexSource | None = None
    acceptance: LossPercentile | None = None
    checks: Checks = field(default_factory=Checks)
    sums: Sums = field(default_factory=Sums)
    under_way: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    queued: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Forget what was seen of another fit: its loader and its loss."""
        self.draws.largest, self.sums = 0, Sums()

    def save(self) -> dict[str, Any]:
        """Return all of it in tensors and plain types."""
        state: dict[str, Any] = {
            "version": _VERSION,
            "seed": self.draws.seed,
            "draws": self.draws.draws,
            "batches": self.draws.batches,
            "pending": self.draws.pending,
            "skipped": self.draws.skipped,
            "largest": self.draws.largest,
            "sums": list(self.sums),
            "gate": self.gate.state_dict(),
            "checks": self.checks.state_dict(),
            "kept": self.kept,
        }
        if self.source is not None:
            state["source"] = self.source.state_dict()
            state["under_way"] = self.under_way
        if self.acceptance is not None:
            state["acceptance"] = self.acceptance.state_dict()
            state["queued"] = self.queued
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `save` returned.

        Raises:
            ValueError: If it comes from a newer version or from other parts.
        """
        if state["version"] > _VERSION:
            raise ValueError(
                f"A checkpoint must be of version {_VERSION} or older, got "
                f"{state['version']}. Upgrade lightning_is."
            )
        for name in ("source", "acceptance"):
            ours = getattr(self, name) is not None
            if (name in state) != ours:
                raise ValueError(
                    f"A checkpoint must be resumed with the same parts, got one with"
                    f"{'out' if ours else ''} a `{name}` for a callback with"
                    f"{'' if ours else 'out'} one. Pass the same arguments as before, "
                    "or start afresh."
                )
        if "gate" in state:  # else somebody took it out, to start that afresh
            self.gate.load_state_dict(state["gate"])
        self.draws.seed, self.draws.draws = state["seed"], state["draws"]
        # Older checkpoints do not have them all.
        self.draws.batches = state.get("batches", 0)
        self.draws.pending = state.get("pending", 0)
        self.draws.skipped = state.get("skipped", 0)
        self.draws.largest = state.get("largest", 0)
        self.sums = Sums(*state.get("sums", ()))
        self.kept = list(state.get("kept", []))
        if "checks" in state:
            self.checks.load_state_dict(state["checks"])
        if self.source is not None:
            self.source.load_state_dict(state["source"])
            self.under_way = list(state["under_way"])
        if self.acceptance is not None:
            self.acceptance.load_state_dict(state["acceptance"])
            self.queued = list(state["queued"])
