"""Distributions: scores of a presample in, probabilities of its candidates out.

Shapes: ``B`` candidates of a presample.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling.numerics import normalise


@runtime_checkable
class Distribution(Protocol):
    """Turns scores into the probabilities by which candidates are drawn."""

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return probabilities of shape ``(B,)``, summing to 1."""
        ...


@dataclass(frozen=True)
class Proportional:
    """Draw candidates proportionally to their scores, as the paper does.

    Raises:
        ValueError: On call, if a score is NaN, infinite or negative (on an accelerator
            the draw turns uniform instead; see `normalise`).

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        Algorithm 1, line 7.

    Example:
        >>> Proportional()(torch.tensor([1.0, 1.0, 2.0]))
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return probabilities of shape ``(B,)``; uniform if every score is zero."""
        return normalise(scores)


@dataclass(frozen=True)
class Uniform:
    """Ignore the scores: every candidate is as likely as any other.

    Example:
        >>> Uniform()(torch.tensor([1.0, 7.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return ``1 / B`` for each of the ``B`` candidates."""
        return normalise(torch.ones_like(scores))


@dataclass(frozen=True)
class Mixed:
    r"""Mix a distribution with the uniform one: the defensive mixture.

    .. math:: p'_i = (1 - \lambda)\,p_i + \lambda / B

    Every unbiased weight is then at most :math:`1 / \lambda`, whatever the scores, so
    no example with a tiny score can blow up a step, and no example is ever ruled out.

    Args:
        base: The distribution to defend.
        share: The uniform share :math:`\lambda`, in ``[0, 1]``; 0 is ``base`` itself.

    Raises:
        ValueError: If ``share`` is outside ``[0, 1]``.

    References:
        Hesterberg, "Weighted average importance sampling and defensive mixture
        distributions", Technometrics 37, 1995.

    Example:
        >>> Mixed(share=0.5)(torch.tensor([0.0, 1.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    base: Distribution = field(default_factory=Proportional)
    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"`share` of the uniform distribution must be in [0, 1], got "
                f"{self.share}. Use 0.05 to bound every weight by 20."
            )

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the mixed probabilities, of shape ``(B,)``."""
        return (1 - self.share) * self.base(scores) + self.share / len(scores)
