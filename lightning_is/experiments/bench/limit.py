"""Epochs a second of trimming, against what its separately measured parts allow."""

from statistics import median

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import fit, opened
from lightning_is.experiments.bench.loops import Loop, ready, repeated
from lightning_is.experiments.bench.networks import BATCH, NETWORKS, Problem
from lightning_is.experiments.bench.turns import Arm, interleaved, paired, spread

SIZES = (BATCH // 8, BATCH // 4, BATCH // 2)


def limit(network: str, effort: Effort) -> list[Row]:
    r"""Compare what trimming gains with ``step(B) / (score(B) + step(b))``.

    The parts are those of a loop written by hand, on batches that are there already;
    the gain is that of one fit by Lightning over another, loading included.

    Args:
        network: Of `NETWORKS`.
        effort: How often.

    Returns:
        A row for each of the sizes ``b = B/8, B/4, B/2``.
    """
    problem = NETWORKS[network]
    arms = {"uniform": fit(problem, effort.blocks, effort.steps)}
    for size in SIZES:
        trim = opened(size)
        arms[f"open {size}"] = fit(problem, effort.blocks, effort.steps, trim)
    times = interleaved(arms | _parts(problem, effort), effort.warm_up)
    ms = {k: [1e3 * s / effort.steps for s in v] for k, v in times.items()}
    return [_row(network, size, ms) for size in SIZES]


def _parts(problem: Problem, effort: Effort) -> dict[str, Arm]:
    """Return the parts of a step, each a program."""
    whole = ready(problem, effort.steps, BATCH)
    score = repeated(Loop(problem, BATCH).score, whole, effort.blocks)
    return {"score": score} | {
        f"step {size}": repeated(
            Loop(problem, size).step,
            ready(problem, effort.steps, size),
            effort.blocks,
        )
        for size in (*SIZES, BATCH)
    }


def _row(network: str, size: int, ms: dict[str, list[float]]) -> Row:
    whole, score, step = ms[f"step {BATCH}"], ms["score"], ms[f"step {size}"]
    parts = [a + b for a, b in zip(score, step, strict=True)]
    allowed, gained = paired(whole, parts), paired(ms["uniform"], ms[f"open {size}"])
    return {
        "network": network,
        "b": size,
        "step(B) ms": median(whole),
        "score(B) ms": median(score),
        "step(b) ms": median(step),
        "uniform ms": median(ms["uniform"]),
        "trim ms": median(ms[f"open {size}"]),
        "limit": median(allowed),
        "trim / uniform": median(gained),
    } | spread("gain / limit", paired(gained, allowed))
