"""What the stages of sampling cost, by the size of the batch and of the dataset."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lightning_is.data import Loading, PassSource
from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import fit, opened
from lightning_is.experiments.bench.networks import NETWORKS
from lightning_is.experiments.bench.turns import interleaved
from lightning_is.sampling import Draw, ImportancePlan, ImportanceSubset
from lightning_is.scoring import example_norms

BATCHES = (128, 512, 1024, 4096, 16_384, 65_536)
HISTORIES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCH = 128  # drawn from a history
LARGE = 1024  # batch whose open step the stages must be small beside


def stages(part: str, effort: Effort) -> list[Row]:
    """Time the stages between the scoring pass and the step, for a quarter of a batch.

    Args:
        part: The size ``B`` of the batch.
        effort: How often.

    Returns:
        A row: medians in microseconds, and nanoseconds an example.
    """
    times = _stage_times(int(part), 20 if effort.is_quick else 200)
    total = sum(times.values())
    rows = {f"{name} us": 1e6 * seconds for name, seconds in times.items()}
    each = {"all us": 1e6 * total, "ns an example": 1e9 * total / int(part)}
    return [{"B": int(part)} | rows | each]


def _stage_times(size: int, repeats: int) -> dict[str, float]:
    plan, wanted = ImportancePlan(), size // 4
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(size, 10, generator=generator)
    slopes *= torch.randn(size, 1, generator=generator).exp()
    scores = example_norms([slopes], size)
    probs = plan.distribution(scores)
    counts = plan.selection.expected_counts(probs, wanted)
    chosen = plan.selection.pick(counts, wanted, generator=generator)

    def weigh() -> Tensor:
        return plan.weights(Draw(chosen, counts[chosen]), size)

    runs: dict[str, Callable[[], Any]] = {
        "norms": lambda: example_norms([slopes], size),
        "probabilities": lambda: plan.distribution(scores),
        "counts": lambda: plan.selection.expected_counts(probs, wanted),
        "pick": lambda: plan.selection.pick(counts, wanted, generator=generator),
        "weights": weigh,
    }
    return {name: median(clocked(run, repeats)) for name, run in runs.items()}


def share(network: str, effort: Effort) -> list[Row]:
    """Compare these stages with an open step on a quarter of 1024 examples.

    Args:
        network: Of `NETWORKS`.
        effort: How often.

    Returns:
        A row.
    """
    rounds = min(effort.rounds, 5) + effort.warm_up
    steps = min(effort.steps, 4)
    arm = fit(NETWORKS[network], rounds, steps, opened(LARGE // 4), LARGE)
    step = median(interleaved({"open": arm}, effort.warm_up)["open"]) / steps
    sampling = sum(_stage_times(LARGE, 20 if effort.is_quick else 200).values())
    return [
        {
            "network": network,
            "B": LARGE,
            "open step ms": 1e3 * step,
            "stages us": 1e6 * sampling,
            "stages / open step": sampling / step,
        }
    ]


def history(part: str, effort: Effort) -> list[Row]:
    """Time choosing what to load by old scores, for batches of 128.

    Args:
        part: Examples ``N`` of the dataset.
        effort: How often.

    Returns:
        A row: the draw that begins a pass, spread over its batches; the median other
        draw; the observation of a batch; and what the source keeps.
    """
    size, repeats = int(part), 20 if effort.is_quick else 200
    source = PassSource(ImportanceSubset(), warm_passes=0)
    source.bind(Loading(None, size, seed=0, progress=lambda: 0.5, rescore=torch.abs))
    generator = torch.Generator().manual_seed(0)
    source.observe(torch.arange(size), torch.rand(size, generator=generator))
    first = clocked(lambda: source.draw(BATCH), 1)[0]
    within = max(min(repeats, source.pass_size // BATCH - 2), 1)
    other = median(clocked(lambda: source.draw(BATCH), within))
    drawn = torch.randint(size, (BATCH,), generator=generator)
    learnt = median(clocked(lambda: source.observe(drawn, torch.ones(BATCH)), repeats))
    kept = [v for v in source.state_dict().values() if isinstance(v, Tensor)]
    return [
        {
            "N": size,
            "pass ms": 1e3 * first,
            "pass us a batch": 1e6 * first * BATCH / source.pass_size,
            "other draw us": 1e6 * other,
            "observation us": 1e6 * learnt,
            "kept bytes an example": sum(v.nbytes for v in kept) / size,
        }
    ]


def clocked(run: Callable[[], Any], repeats: int) -> list[float]:
    """Return the CPU seconds of each of some repeats."""
    times: list[float] = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return times
