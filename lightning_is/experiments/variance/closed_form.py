"""The variance of a drawn gradient in closed form, where there is one.

Shapes: ``B`` examples, ``b`` of which are drawn.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling import ImportancePlan, Multinomial, WithoutReplacement
from lightning_is.sampling.numerics import precise


def expected_square(
    plan: ImportancePlan,
    scores: Float[Tensor, " B"],
    *,
    norms: Float[Tensor, " B"],
    whole: float,
    batch_size: int,
) -> float | None:
    r"""Return the expected squared distance of a drawn gradient from the whole one.

    .. math:: \frac{1}{b} \Bigl(\frac{1}{B^2} \sum_i \frac{n_i^2}{p_i}
              - \lVert\bar G\rVert^2\Bigr) \quad\text{with replacement,}\qquad
              \Bigl(\frac{1}{b} - \frac{1}{B}\Bigr) \frac{\sum_i n_i^2
              - B \lVert\bar G\rVert^2}{B - 1} \quad\text{uniformly, without}

    The first is the trace of the paper's variance divided by ``b``. Examples of
    probability zero are left out: they are never drawn, and have gradients of about
    zero where the score deserves its name.

    Args:
        plan: Draws; its weights must be the unbiased ones.
        scores: Of the examples, that the plan draws by.
        norms: Of the gradient of each example, :math:`n_i`.
        whole: Norm of the mean gradient, :math:`\lVert\bar G\rVert`.
        batch_size: Examples drawn, ``b``.

    Returns:
        None for selections whose variance depends on pairs of examples.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        arXiv 1803.00942, equations 20 to 26.

    Example:
        >>> from lightning_is.sampling import Uniform, multinomial
        >>> plan, norms = ImportancePlan(Uniform(), multinomial), torch.ones(2)  # 1, -1
        >>> expected_square(plan, norms, norms=norms, whole=0.0, batch_size=1)
        1.0
    """
    size, selection = len(norms), plan.selection
    counts = plan.expected_counts(scores, batch_size)
    drawable = torch.where(counts > 0, precise(norms), 0.0)
    noise = float(selection.noise(drawable, counts))
    if isinstance(selection, Multinomial):
        return noise - whole**2 / batch_size
    if isinstance(selection, WithoutReplacement):
        shared = (1 / batch_size - 1 / size) * whole**2
        return (noise - shared) * size / (size - 1)
    return None
