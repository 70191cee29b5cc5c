"""What choosing before loading costs, by the size of the dataset."""

from collections.abc import Callable
from statistics import median

import torch

from lightning_is.data import IndexSource, Loading, PassSource, PredictedLoss
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.stages import BATCH, clocked
from lightning_is.sampling import (
    ImportanceSubset,
    OnlineBatchSelection,
    Prioritized,
    RandomSubset,
    Shuffled,
    SoftPruned,
    StaleSelection,
)

SOURCES: dict[str, Callable[[], IndexSource]] = {
    "shuffled": lambda: PassSource(Shuffled()),
    "importance_subset": lambda: PassSource(ImportanceSubset(), warm_passes=0),
    "rs2": lambda: PassSource(RandomSubset(), warm_passes=0),
    "online_batch_selection": lambda: PassSource(OnlineBatchSelection(), warm_passes=0),
    "prioritized": lambda: PassSource(Prioritized(), warm_passes=0),
    "prioritized_rank": lambda: PassSource(Prioritized(by="rank"), warm_passes=0),
    "soft_pruning": lambda: PassSource(SoftPruned(), warm_passes=0),
    "stale_selective_backprop": lambda: PassSource(StaleSelection(), warm_passes=0),
    "biased": lambda: PredictedLoss(warmup=0),
}
SIZES = (15_000, 150_000, 1_500_000)


def passes(name: str, effort: Effort) -> list[Row]:
    """Time the draws of a source, and what it learns from a step.

    Args:
        name: Of `SOURCES`.
        effort: How often.

    Returns:
        A row for each size of the dataset, in milliseconds: the first draw, which draws
        the pass; the median other draw; the median observation of a batch; and the pass
        spread over its batches, where there are passes.
    """
    sizes = (200, 400) if effort.is_quick else SIZES
    repeats = 3 if effort.is_quick else 150
    return [_time(name, size, repeats) for size in sizes]


def _time(name: str, size: int, repeats: int) -> Row:
    source = SOURCES[name]()
    source.bind(Loading(None, size, seed=0, progress=lambda: 0.5, rescore=torch.abs))
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(size, generator=generator)
    if isinstance(source, PassSource):  # the other would learn from all of it
        source.observe(torch.arange(size), losses)
    first = clocked(lambda: source.draw(BATCH), 1)[0]
    draws = clocked(lambda: source.draw(BATCH), repeats)
    drawn = source.draw(BATCH).indices
    observed = clocked(lambda: source.observe(drawn, losses[drawn]), repeats)
    spread = None
    if isinstance(source, PassSource):
        spread = 1e3 * first * BATCH / source.pass_size
    return {
        "source": name,
        "N": size,
        "first draw ms": 1e3 * first,
        "other draws ms": 1e3 * median(draws),
        "observation ms": 1e3 * median(observed),
        "pass per batch ms": spread,
    }
