"""Selection schemes: which candidates of a presample make up the batch.

Shapes: ``B`` candidates, ``b`` nominal batch size. Random numbers come from the given
generator alone and may live on the CPU while the candidates live elsewhere.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from typing_extensions import override

from lightning_is.sampling.numerics import (
    capped_inclusion,
    check_batch_size,
    check_probs,
    precise,
)
from lightning_is.sampling.scheme import Selection


def _check(probs: Float[Tensor, " B"], batch_size: int, most: int) -> None:
    """Refuse an impossible size; on the CPU, where looking is free, bad ``probs``."""
    if probs.device.type == "cpu":
        check_probs(probs)
    check_batch_size(batch_size, most)


def _uniform(
    count: int, generator: Generator | None
) -> tuple[Float[Tensor, " count"], torch.device]:
    """Draw from ``[0, 1)`` on the generator's device, finely enough to be unbiased."""
    device = generator.device if generator is not None else torch.device("cpu")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(count, generator=generator, dtype=dtype, device=device), device


def _pointers(
    weights: Float[Tensor, " B"], units: Float[Tensor, " b"]
) -> Int[Tensor, " b"]:
    """Find the candidates that pointers in ``[0, 1)`` meet on the scale of weights."""
    edges = precise(weights).cumsum(0)
    total = edges[-1]
    # Rounding can place a pointer on the last edge, past every candidate.
    reach = torch.nextafter(total, torch.zeros_like(total))
    points = (units.to(edges, non_blocking=True) * total).minimum(reach)
    return torch.searchsorted(edges, points, right=True)


@final
@dataclass(frozen=True)
class Multinomial(Selection):
    """Draw with replacement, each of the ``b`` draws by ``probs``: the paper's scheme.

    Candidates may repeat. At mildly uneven scores its variance exceeds that of plain
    uniform batches; by the norms alone (`noise`), `Systematic` never has more.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        Algorithm 1, line 8.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> Multinomial()(torch.tensor([0.0, 1.0]), 3, generator=generator).indices
        tensor([1, 1, 1])
    """

    @override
    def expected_counts(
        self, probs: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Return ``b * p_i``."""
        _check(probs, batch_size, most=max(batch_size, len(probs)))
        return batch_size * probs

    @override
    def pick(
        self,
        counts: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Int[Tensor, " b"]:
        """Draw ``batch_size`` positions independently."""
        units, _ = _uniform(batch_size, generator)
        return _pointers(counts, units)

    @override
    def noise(
        self, scores: Float[Tensor, " B"], counts: Float[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        r"""Return :math:`\frac{1}{b B^2} \sum_i s_i^2 / p_i`."""
        squares = precise(scores).square()
        shares = torch.where(squares > 0, squares / precise(counts), squares)
        return shares.sum() / len(scores) ** 2


@final
@dataclass(frozen=True)
class Systematic(Selection):
    r"""Draw without repeats by ``b`` evenly spaced pointers and one random shift.

    Inclusion probabilities are proportional to ``probs``, capped at 1 and sum to ``b``
    (`capped_inclusion`); candidates stand in random order. The batch always has ``b``
    members, each candidate at most once. The variance was below the multinomial
    scheme's wherever we measured it.

    References:
        Madow, "On the theory of systematic sampling, II", Ann. Math. Stat. 20, 1949;
        Horvitz & Thompson, "A generalization of sampling without replacement from a
        finite universe", JASA 47, 1952.

    Example:
        >>> draw = Systematic()(torch.tensor([0.5, 0.0, 0.5]), batch_size=2)
        >>> sorted(draw.indices.tolist()), draw.expected_counts.tolist()
        ([0, 2], [1.0, 1.0])
    """

    @override
    def expected_counts(
        self, probs: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Return the inclusion probabilities."""
        _check(probs, batch_size, most=len(probs))
        return capped_inclusion(probs, batch_size)

    @override
    def pick(
        self,
        counts: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Int[Tensor, " b"]:
        """Draw ``batch_size`` distinct positions."""
        shift, device = _uniform(1, generator)
        # On an edge, rounding could draw a candidate twice, or one of chance zero.
        shift = shift.clamp(2**-32, 1 - 2**-32)
        # Neighbours exclude one another, so their order must be random.
        order = torch.randperm(len(counts), generator=generator, device=device)
        units = (shift + torch.arange(batch_size, device=device)) / batch_size
        order = order.to(counts.device, non_blocking=True)
        return order[_pointers(counts[order], units)]

    @override
    def noise(
        self, scores: Float[Tensor, " B"], counts: Float[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        r"""Return :math:`\frac{1}{B^2} \sum_i \frac{1 - \pi_i}{\pi_i} s_i^2`."""
        return _inclusion_noise(scores, counts)


@final
@dataclass(frozen=True)
class WithoutReplacement(Selection):
    """Draw ``b`` distinct candidates uniformly; the probabilities are ignored.

    Example:
        >>> draw = WithoutReplacement()(torch.tensor([0.9, 0.1]), batch_size=2)
        >>> sorted(draw.indices.tolist()), draw.expected_counts.tolist()
        ([0, 1], [1.0, 1.0])
    """

    @override
    def expected_counts(
        self, probs: Float[Tensor, " B"], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Return ``b / B`` for each candidate."""
        check_batch_size(batch_size, len(probs))
        return torch.full_like(precise(probs), batch_size / len(probs))

    @override
    def pick(
        self,
        counts: Float[Tensor, " B"],
        batch_size: int,
        *,
        generator: Generator | None = None,
    ) -> Int[Tensor, " b"]:
        """Draw ``batch_size`` distinct positions, each set as likely as any other."""
        device = generator.device if generator is not None else torch.device("cpu")
        order = torch.randperm(len(counts), generator=generator, device=device)
        return order[:batch_size].to(counts.device, non_blocking=True)

    @override
    def noise(
        self, scores: Float[Tensor, " B"], counts: Float[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        r"""Return :math:`(\frac{1}{b} - \frac{1}{B}) \, \overline{s^2}`."""
        return _inclusion_noise(scores, counts)


def _inclusion_noise(
    scores: Float[Tensor, " B"], inclusion: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Return the Horvitz-Thompson variance without the terms that pair examples."""
    shares = (1 - inclusion) / inclusion * precise(scores).square()
    return shares.sum() / len(scores) ** 2


multinomial = Multinomial()
systematic = Systematic()
without_replacement = WithoutReplacement()


def effective_batch(
    scores: Float[Tensor, " B"],
    probs: Float[Tensor, " B"],
    batch_size: int,
    selection: Selection = systematic,
) -> Float[Tensor, ""]:
    r"""How many times larger a uniform batch with the same gradient noise would be.

    .. math:: M = \frac{m_2 / b}{m_2 / B + V}, \qquad M \le B / b

    with :math:`m_2` the mean of the squared scores and :math:`V` the noise that the
    selection adds. Unlike `tau` it counts the noise of the presample itself and the
    scheme by which candidates are drawn; below 1 the draw is worse than a uniform one.

    Args:
        scores: Gradient norms, or a bound that follows them, of shape ``(B,)``.
        probs: Probability of each candidate, of shape ``(B,)``.
        batch_size: Examples drawn, in ``[1, B]``.
        selection: The scheme that draws them.

    Returns:
        A scalar in the device's widest float; 1 if every score is zero.

    Example:
        >>> scores = torch.tensor([1.0, 1.0, 1.0, 9.0])
        >>> probs = scores / scores.sum()
        >>> effective_batch(scores, probs, 2)
        tensor(1.8667, dtype=torch.float64)
        >>> effective_batch(scores, probs, 2, multinomial)
        tensor(1.0769, dtype=torch.float64)
    """
    wide = precise(scores)
    wide = wide / wide.max().clamp(min=torch.finfo(wide.dtype).tiny)
    second = wide.square().mean()
    noise = selection.noise(wide, selection.expected_counts(probs, batch_size))
    ratio = (second / batch_size) / (second / len(wide) + noise)
    return torch.where(second > 0, ratio, torch.ones_like(ratio))
