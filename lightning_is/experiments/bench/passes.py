"""What choosing before loading costs, by the size of the dataset."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from rich.progress import track

from lightning_is.data import IndexSource, Loading, PassSource, PredictedLoss
from lightning_is.sampling import (
    OnlineBatchSelection,
    Prioritized,
    RandomSubset,
    Shuffled,
    SoftPruned,
    StaleSelection,
)

BATCH = 128
SOURCES: dict[str, Callable[[], IndexSource]] = {
    "shuffled": lambda: PassSource(Shuffled()),
    "rs2": lambda: PassSource(RandomSubset(), warm_passes=0),
    "online_batch_selection": lambda: PassSource(OnlineBatchSelection(), warm_passes=0),
    "prioritized": lambda: PassSource(Prioritized(), warm_passes=0),
    "prioritized_rank": lambda: PassSource(Prioritized(by="rank"), warm_passes=0),
    "soft_pruning": lambda: PassSource(SoftPruned(), warm_passes=0),
    "stale_selective_backprop": lambda: PassSource(StaleSelection(), warm_passes=0),
    "biased": lambda: PredictedLoss(warmup=0),
}


def passes(sizes: Sequence[int], steps: int) -> dict[str, Any]:
    """Time the draws of every source, and what they learn from a step.

    Args:
        sizes: Numbers of examples in the dataset.
        steps: Batches of 128 to draw after the first.

    Returns:
        For each source and size: milliseconds of the first draw, which draws the pass;
        of the median other draw; of the median observation of a batch; and of a pass
        spread over its batches, where there are passes.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in track(SOURCES, "sources"):
        found[name] = {str(size): _time(SOURCES[name](), size, steps) for size in sizes}
    return found


def _time(source: IndexSource, size: int, steps: int) -> dict[str, float]:
    source.bind(Loading(None, size, seed=0, progress=lambda: 0.5, rescore=torch.abs))
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(size, generator=generator)
    if isinstance(source, PassSource):  # the other would learn from all of it
        source.observe(torch.arange(size), losses)
    first = _clocked(lambda: source.draw(BATCH))
    draws = [_clocked(lambda: source.draw(BATCH)) for _ in range(steps)]
    drawn = source.draw(BATCH).indices
    observed = [_clocked(lambda: source.observe(drawn, losses[drawn])) for _ in draws]
    times = {
        "first draw ms": first,
        "other draws ms": median(draws),
        "observation ms": median(observed),
    }
    if isinstance(source, PassSource):
        times["pass per batch ms"] = first * BATCH / source.pass_size
    return times


def _clocked(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return 1e3 * (time.process_time() - begin)
