"""The variance of a drawn batch's gradient, by the scheme that draws it."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_is.experiments.bench.effort import Effort, Row
from lightning_is.sampling import (
    Distribution,
    ImportancePlan,
    Mixed,
    Proportional,
    Selection,
    Uniform,
    multinomial,
    systematic,
    without_replacement,
)

SIZE, DRAWN, FEATURES = 384, 128, 64  # B, b and numbers in a gradient
SCHEMES: dict[str, tuple[Distribution, Selection]] = {
    "multinomial": (Proportional(), multinomial),
    "systematic": (Proportional(), systematic),
    "multinomial, 5 % uniform": (Mixed(), multinomial),
    "systematic, 5 % uniform": (Mixed(), systematic),
    "a uniform batch": (Uniform(), without_replacement),
}


def variance(part: str, effort: Effort) -> list[Row]:
    """Draw 128 of 384 gradients again and again, with norms ``exp(N(0, 1))``.

    Their directions are random. The same numbers come out of every run.

    Args:
        part: Not used: there is one.
        effort: How often.

    Returns:
        A row for each scheme: the mean squared distance of the drawn batch's gradient
        from that of all 384, in that of the paper's draw with replacement; and what the
        scheme predicts from the norms alone.
    """
    populations, draws = (4, 100) if effort.is_quick else (20, 500)
    found = {name: [0.0, 0.0] for name in SCHEMES}
    for seed in range(populations):
        generator = torch.Generator().manual_seed(seed)
        norms = torch.randn(SIZE, generator=generator).exp()
        rows = torch.randn(SIZE, FEATURES, generator=generator)
        rows = rows / rows.norm(dim=1, keepdim=True) * norms[:, None]
        for name, (distribution, selection) in SCHEMES.items():
            plan = ImportancePlan(distribution, selection)
            found[name][0] += _measured(plan, norms, rows, draws, generator) / SIZE
            counts = plan.expected_counts(norms, DRAWN)
            found[name][1] += float(selection.noise(norms, counts)) / SIZE
    measured, predicted = found["multinomial"]
    return [
        {
            "scheme": name,
            "variance / multinomial": noise / measured,
            "predicted": foreseen / predicted,
        }
        for name, (noise, foreseen) in found.items()
    ]


def _measured(
    plan: ImportancePlan,
    norms: Float[Tensor, " B"],
    rows: Float[Tensor, "B features"],
    draws: int,
    generator: Generator,
) -> float:
    """Return the mean squared error of the batches that a plan draws."""
    mean, errors = rows.mean(0), []
    for _ in range(draws):
        drawn = plan.draw(norms, DRAWN, generator=generator)
        batch = (drawn.weights[:, None] * rows[drawn.indices]).mean(0)
        errors.append((batch - mean).square().sum())
    return float(torch.stack(errors).mean())
