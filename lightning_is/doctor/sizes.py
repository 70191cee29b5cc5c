"""What steps of a fit will load, score and train on, and how to call that."""

from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_is import host
from lightning_is.data.pass_source import PassSource
from lightning_is.sampling.gate import Sizes
from lightning_is.sampling.opening import Gatekeeper, Opening
from lightning_is.sampling.prospects import Prospect
from lightning_is.sampling.subset import ImportanceSubset
from lightning_is.settings import Settings
from lightning_is.state import State

_RAREST = 1e-3  # of the examples, accepted: few would wait for more


@dataclass(frozen=True)
class Course:
    """What steps do, closed and open.

    Args:
        ordinary: Examples that a closed step loads, and trains on.
        presample: Examples that an open step scores, at most.
        parts: Steps that share a presample; ``presample`` is what each of them bears.
        settings: Of the callback.
        state: Of its parts; only read.
    """

    ordinary: Sizes
    presample: int
    parts: int
    settings: Settings
    state: State

    @classmethod
    def of(
        cls, trainer: Trainer, settings: Settings, state: State, arrived: int
    ) -> "Course":
        """Tell it by the loader, and by a batch of ``arrived`` examples from it."""
        sampler = host.presample_sampler(trainer)
        loaded = arrived if sampler is None else sampler.batch_size
        subset = settings.when_closed == "subset"
        trained = min(settings.wanted(loaded), loaded) if subset else loaded
        ordinary = Sizes(loaded, trained)
        if sampler is None:
            return cls(ordinary, loaded, 1, settings, state)
        presample = sampler.presample_size // sampler.score_every
        return cls(ordinary, presample, sampler.score_every, settings, state)

    @property
    def draws(self) -> bool:
        """Whether steps may train on a part of what was loaded."""
        state = self.state
        given = self.settings.batch_size is not None or state.gate.chooses_size
        return given or state.acceptance is not None

    @property
    def is_one_pass(self) -> bool:
        """Whether an epoch passes over the data once, as always."""
        return self.state.source is None and self.presample == self.ordinary.presample

    @property
    def keep(self) -> float | None:
        """Share of the data that a pass loads, where that is fixed."""
        source = self.state.source
        scheme = source.scheme if isinstance(source, PassSource) else None
        fixed = isinstance(scheme, ImportanceSubset) and scheme.keep != "auto"
        return float(scheme.keep) if fixed else None  # type: ignore[union-attr]

    def open_steps(self) -> list[Sizes]:
        """Return what open steps score, and train on; none where nothing is drawn."""
        acceptance = self.state.acceptance
        if acceptance is not None:
            scored = round(self.presample / max(acceptance.share, _RAREST))
            return [Sizes(scored, self.presample)]
        return self._gatekeeper().sizes() if self.draws else []

    def opening(
        self, prospects: tuple[Prospect, ...]
    ) -> tuple[Opening | None, tuple[Prospect, ...]]:
        """Ask the gate when it opens; None where nothing is drawn, or with a bias."""
        if not prospects or self.state.acceptance is not None:
            return None, prospects
        opening, told = self._gatekeeper(prospects).opening()
        return opening, tuple(told)

    def _gatekeeper(self, prospects: tuple[Prospect, ...] = ()) -> Gatekeeper:
        wanted = min(self.settings.wanted(self.presample), self.presample)
        return Gatekeeper(self.state.gate, self.presample, wanted, prospects)

    def __str__(self) -> str:
        state, sizes, loaded = self.state, self.open_steps(), self.ordinary.presample
        scorer, source = type(self.settings.scorer).__name__, self._source()
        by = f"by {scorer}, {type(state.gate).__name__}"
        if state.acceptance is not None:
            return f"acceptance: {loaded} of about {sizes[0].presample} scored, {by}"
        if not sizes:
            return f"source alone: {source} chooses what is loaded, by {scorer}"
        menu = _listed([str(size.batch) for size in sizes])
        if source is not None:
            return f"two stages: {menu} of every {loaded} that {source} loads, {by}"
        if sizes[0].presample != loaded:
            scored = sizes[0].presample
            return (
                f"presample: {menu} of {scored} loaded, or {loaded} while closed, {by}"
            )
        return f"trim: {menu} of every {loaded} loaded, {by}"

    def _source(self) -> str | None:
        source = self.state.source
        if source is None:
            return None
        return type(
            source.scheme if isinstance(source, PassSource) else source
        ).__name__


def _listed(words: list[str]) -> str:
    """Join words.

    Example:
        >>> _listed(["16", "32", "64"]), _listed(["16"])
        ('16, 32 or 64', '16')
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
