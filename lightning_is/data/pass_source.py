"""A source that chooses whole passes at a time, by the last known scores."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_is.data.source import IndexSource, Loading
from lightning_is.sampling.gate import check_part_of_run, is_within
from lightning_is.sampling.numerics import check_scores
from lightning_is.sampling.passes import Pass, PassScheme, Shuffled


@final
class PassSource(IndexSource):
    """Keeps the last known score of every example, and draws pass after pass by them.

    A pass is drawn in one go, so its cost is spread over all its batches and no step
    pays for the size of the dataset. Batches are always full: what is left of a pass
    begins the first batch of the next. All ranks draw the same pass and take turns in
    it, so they share the examples out among them. To score everything afresh every
    ``r`` batches take ``redraw_every=r, rescore_every=1``.

    Args:
        scheme: Scores to passes.
        warm_passes: Passes over everything, shuffled, before the scheme begins.
        redraw_every: Batches after which a pass is given up for a new one by newer
            scores; None uses every pass up.
        rescore_every: Passes of the scheme after which the scores are computed afresh,
            by a forward pass over the dataset; None never does. Those of the examples
            trained on are always kept, for free.
        rescore_share: Share of the dataset to score afresh, the highest scores first.
        start: Share of the run from which on passes go by the scheme, in ``[0, end)``;
            before and after they hold everything once, shuffled.
        end: Share of the run until which they do, in ``(start, 1]``.

    Raises:
        TypeError: If ``scheme`` is none.
        ValueError: If an argument is out of range.

    Example:
        >>> source = PassSource(Shuffled())
        >>> source.bind(Loading("abcd", 4, seed=0, progress=float, rescore=abs))
        >>> drawn = [source.draw(2).indices for _ in range(2)]
        >>> sorted(torch.cat(drawn).tolist())
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        scheme: PassScheme,
        *,
        warm_passes: int = 1,
        redraw_every: int | None = None,
        rescore_every: int | None = None,
        rescore_share: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        if isinstance(scheme, type) or not callable(scheme):
            raise TypeError(
                f"`scheme` must draw passes, got {scheme!r}. Pass `Prioritized()`, say."
            )
        _at_least("warm_passes", warm_passes, 0)
        _at_least("redraw_every", redraw_every, 1)
        _at_least("rescore_every", rescore_every, 1)
        if not 0 < rescore_share <= 1:
            raise ValueError(
                f"`rescore_share` must be in (0, 1], got {rescore_share}. 1 scores the "
                "whole dataset afresh."
            )
        check_part_of_run(start, end)
        self.start, self.end = start, end
        self.scheme, self.warm_passes = scheme, warm_passes
        self.redraw_every, self.rescore_every = redraw_every, rescore_every
        self.rescore_share = rescore_share
        self._loading: Loading | None = None
        self._scores = torch.empty(0)  # infinite: never seen
        self._pass = Pass(torch.empty(0, dtype=torch.int64), torch.empty(0))
        self._part: Pass | None = None  # of the pass: this rank's
        self._passes = 0  # begun
        self._taken = 0  # of this rank's part of the pass
        self._batches = 0  # that the pass began

    @property
    def scores(self) -> Float[Tensor, " N"]:
        """Last known score of every example; infinite where there is none."""
        return self._scores

    @property
    def pass_size(self) -> int:
        """Examples of the current pass, on all ranks together."""
        return len(self._pass.indices)

    @override
    def bind(self, loading: Loading) -> None:
        known = len(self._scores)
        if known and known != loading.examples:
            raise ValueError(
                "A checkpoint must come from the same dataset, got scores of "
                f"{known} examples for {loading.examples}. Resume with the data it "
                "was written with, or start afresh."
            )
        self._loading = loading
        if not known:
            self._scores = torch.full((loading.examples,), torch.inf)

    @override
    def draw(self, batch_size: int) -> Pass:
        if self._batches == self.redraw_every and self._passes > self.warm_passes:
            self._begin_pass()
        parts: list[Pass] = []
        missing = batch_size
        while missing:
            if self._taken >= len(self._mine().indices):
                self._begin_pass()
            part = self._take(missing)
            parts.append(part)
            missing -= len(part.indices)
        self._batches += 1
        indices, weights = zip(*parts, strict=True)
        return Pass(torch.cat(indices), torch.cat(weights))

    def _take(self, most: int) -> Pass:
        mine, first = self._mine(), self._taken
        self._taken = min(first + most, len(mine.indices))
        return Pass(*(part[first : self._taken] for part in mine))

    def _mine(self) -> Pass:
        """This rank's part of the pass: as long as every other's."""
        if self._part is None:
            self._part = _shard(self._pass, self._loading)
        return self._part

    def _begin_pass(self) -> None:
        loading = self._loading
        if loading is None:
            raise RuntimeError(
                "A source must be bound to a dataset before it draws. Pass it to "
                "ImportanceSamplingCallback(source=...), which binds it."
            )
        ours, progress = self._passes - self.warm_passes, loading.progress()
        chooses = ours >= 0 and is_within(progress, self.start, self.end)
        if self.rescore_every and chooses and ours % self.rescore_every == 0:
            self._rescore(loading)
        scheme = self.scheme if chooses else Shuffled()
        generator = loading.generator(self._passes, shared=True)
        self._pass = scheme(self._scores, progress, generator)
        self._part = None
        self._passes += 1
        self._taken = self._batches = 0

    def _rescore(self, loading: Loading) -> None:
        wanted = max(1, round(self.rescore_share * loading.examples))
        chosen = self._scores.topk(wanted).indices.sort().values
        scores = loading.rescore(chosen)
        known = scores != torch.inf
        self.observe(chosen[known], scores[known])

    @override
    def observe(self, indices: Int[Tensor, " k"], scores: Float[Tensor, " k"]) -> None:
        check_scores(scores)
        self._scores[indices] = scores.float()

    @override
    def metrics(self) -> dict[str, float]:
        return {"is/keep": self.pass_size / max(len(self._scores), 1)}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": self._scores.clone(),
            "indices": self._pass.indices,
            "weights": self._pass.weights,
            "passes": self._passes,
            "taken": self._taken,
            "batches": self._batches,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scores = state["scores"].clone()
        self._pass, self._part = Pass(state["indices"], state["weights"]), None
        self._passes, self._taken = int(state["passes"]), int(state["taken"])
        self._batches = int(state["batches"])


def _shard(whole: Pass, loading: Loading | None) -> Pass:
    """Take every ``world_size``-th example of a pass."""
    if loading is None or loading.world_size == 1:
        return whole
    size, world = len(whole.indices), loading.world_size
    # The last round begins again at the first, so that all ranks have as many.
    places = torch.arange(-(-size // world)) * world + loading.rank
    return Pass(*(part[places % max(size, 1)] for part in whole))


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}, got {value}."
            f"{' None turns it off.' if name != 'warm_passes' else ' 1 is usual.'}"
        )
