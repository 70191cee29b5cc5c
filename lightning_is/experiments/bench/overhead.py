"""What the callback costs: off, closed and open, against loops written by hand."""

from statistics import median

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.experiments.bench.fits import fit, opened, shut
from lightning_is.experiments.bench.loops import loop
from lightning_is.experiments.bench.networks import BATCH, NETWORKS
from lightning_is.experiments.bench.turns import interleaved, paired, spread

SIZE = BATCH // 4


def overhead(network: str, effort: Effort) -> list[Row]:
    """Compare fits without the callback, with it closed and open, and two loops.

    Lightning has a cost of its own, which a loop by hand has not. The two are told
    apart: what the callback adds to an open step is what the fit takes beyond the loop
    that does the same, less what Lightning takes beyond the loop without sampling.

    Args:
        network: Of `NETWORKS`.
        effort: How often.

    Returns:
        A row: medians in milliseconds and of paired ratios.
    """
    problem, size = NETWORKS[network], (effort.blocks, effort.steps)
    times = interleaved(
        {
            "loop": loop(problem, *size),
            "lightning": fit(problem, *size),
            "closed": fit(problem, *size, shut()),
            "open loop": loop(problem, *size, SIZE),
            "open": fit(problem, *size, opened(SIZE)),
        },
        effort.warm_up,
    )
    ms = {k: [1e3 * s / effort.steps for s in v] for k, v in times.items()}
    rounds = range(effort.rounds)
    excess = [ms["open"][i] - ms["open loop"][i] for i in rounds]
    hosts = [ms["lightning"][i] - ms["loop"][i] for i in rounds]
    own = [e - h for e, h in zip(excess, hosts, strict=True)]
    closed = [c - p for c, p in zip(ms["closed"], ms["lightning"], strict=True)]
    return [
        {"network": network}
        | {f"{name} ms": median(values) for name, values in ms.items()}
        | {"lightning / loop": median(paired(ms["lightning"], ms["loop"]))}
        | spread("closed / lightning", paired(ms["closed"], ms["lightning"]))
        | spread("open / open loop", paired(ms["open"], ms["open loop"]))
        | {"lightning adds us": 1e3 * median(hosts)}
        | {"closed adds us": 1e3 * median(closed)}
        | {"open adds us": 1e3 * median(excess)}
        | {"of them ours us": 1e3 * median(own)}
    ]
