"""The few formulas that every stage of sampling shares.

Shapes: ``B`` candidates of a presample, ``b`` examples to train on. Nothing here waits
for the device, except `check_scores`, which says so.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_FLOOR = 1e-30  # of a probability: far below rounding, but above zero


def precise(values: Tensor) -> Tensor:
    """Return ``values`` in the widest float of their device.

    Sums over thousands of candidates drift in float32; Apple's MPS has nothing wider.
    """
    return values.float() if values.device.type == "mps" else values.double()


def faults(scores: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Mark the scores that are no scores: NaN, infinite or negative.

    Example:
        >>> faults(torch.tensor([1.0, float("nan"), -2.0, float("inf"), 0.0]))
        tensor([False,  True,  True,  True, False])
    """
    return ~(torch.isfinite(scores) & (scores >= 0))


def even_unless_finite(
    scores: Float[Tensor, " B"],
) -> tuple[Float[Tensor, " B"], Bool[Tensor, ""]]:
    """Return scores to go on with: as they are if all are finite, otherwise all 1.

    Nothing is known of the order of a presample in which overflow or NaN was seen; even
    scores make its draw uniform, whatever the device, without waiting for it.

    Args:
        scores: One score per candidate, of shape ``(B,)``.

    Returns:
        Scores of shape ``(B,)``, and whether they are those given.

    Example:
        >>> even_unless_finite(torch.tensor([3.0, float("nan")]))
        (tensor([1., 1.]), tensor(False))
    """
    finite = torch.isfinite(scores).all()
    return torch.where(finite, scores, torch.ones_like(scores)), finite


def seen_finite(scores: Float[Tensor, " B"]) -> bool:
    """Whether all scores are seen to be finite: on a CPU, where looking is free.

    Example:
        >>> seen_finite(torch.tensor([3.0, float("nan")]))
        False
    """
    return scores.device.type == "cpu" and bool(torch.isfinite(scores).all())


def check_scores(scores: Float[Tensor, " B"]) -> None:
    """Refuse scores that are NaN, infinite or negative. Waits for the device.

    Args:
        scores: One score per candidate, of shape ``(B,)``.

    Raises:
        ValueError: If any score is at fault; says how many, where and what they are.

    Example:
        >>> check_scores(torch.tensor([0.5, 0.0]))
    """
    bad = faults(scores)
    if not bool(bad.any()):
        return
    where = bad.nonzero()[:, 0].tolist()
    shown = ", ".join(f"{i}: {float(scores[i]):.3g}" for i in where[:5])
    more = ", ..." if len(where) > len(shown.split(", ")) else ""
    raise ValueError(
        f"Scores must be finite and at least 0, got {len(where)} of {len(scores)} that "
        f"are not, at positions {{{shown}{more}}}. Look at the loss of these examples "
        "(overflow, log of 0, bad labels); a negative loss needs another scorer."
    )


def normalise(scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Turn scores into probabilities proportional to them.

    Scores that sum to zero carry no preference, so they become the uniform
    distribution. So do scores at fault on an accelerator, where looking at them here
    would stall it: the draw stays harmless and the caller reports them with
    `check_scores`, as `ImportanceSamplingCallback` does one step later.

    Args:
        scores: One score per candidate, of shape ``(B,)``, at least 0.

    Returns:
        Probabilities of shape ``(B,)`` in the device's widest float, summing to 1.

    Raises:
        ValueError: On the CPU, if a score is NaN, infinite or negative.

    Example:
        >>> normalise(torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
        >>> normalise(torch.zeros(2))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    wide = precise(scores)
    low, high = wide.aminmax()
    scaled = wide / high  # the largest is 1: no sum or square over- or underflows
    probs, even = scaled / scaled.sum(), 1 / len(scores)
    if scores.device.type == "cpu":
        if low.item() >= 0 and 0 < high.item() < torch.inf:  # false for NaN too
            return probs
        check_scores(scores)  # raises, unless they are all zero
        return torch.full_like(probs, even)
    usable = (low >= 0) & (high > 0) & (high < torch.inf)
    return torch.where(usable, probs, even)


def tau(scores: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    r"""Equivalent increase of the batch size, as the paper measures it.

    .. math:: \tau = \bigl(1 - \lVert g - u\rVert^2 / \lVert g\rVert^2\bigr)^{-1/2}
              = \sqrt{B \sum_i g_i^2}, \qquad 1 \le \tau \le \sqrt{B}

    with :math:`g` the normalised scores and :math:`u` uniform. It is scale free, 1 for
    equal scores, and 1 for scores that are all zero. It measures how uneven the scores
    are; only for scores that follow the gradient norm is that the variance removed.

    Args:
        scores: One score per candidate, of shape ``(B,)``, at least 0.

    Returns:
        A scalar in the device's widest float.

    Raises:
        ValueError: On the CPU, if a score is NaN, infinite or negative.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        arXiv 1803.00942, section 3.3.

    Example:
        >>> tau(torch.tensor([1.0, 1.0, 1.0, 1.0]))
        tensor(1., dtype=torch.float64)
        >>> tau(torch.tensor([0.0, 0.0, 5.0, 0.0]))
        tensor(2., dtype=torch.float64)
    """
    probs = normalise(scores)
    return (len(probs) * probs.square().sum()).sqrt()


def capped_inclusion(
    probs: Float[Tensor, " B"], batch_size: int
) -> Float[Tensor, " B"]:
    r"""Inclusion probabilities proportional to ``probs``, none above 1.

    .. math:: \pi_i = \min(1, c\,p_i), \qquad \sum_i \pi_i = b

    Candidates that would be included more than once are included for certain, and the
    rest share what is left. Where fewer than ``b`` candidates have any probability, the
    others share the remaining places evenly. One sort, :math:`O(B \log B)`.

    Args:
        probs: Probability of each candidate, of shape ``(B,)``, at least 0.
        batch_size: Examples to include, in ``[1, B]``.

    Returns:
        Inclusion probabilities of shape ``(B,)`` in the device's widest float.

    Raises:
        ValueError: If ``batch_size`` is not in ``[1, B]``.

    Example:
        >>> capped_inclusion(torch.tensor([0.7, 0.1, 0.1, 0.1]), batch_size=2)
        tensor([1.0000, 0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    check_batch_size(batch_size, len(probs))
    wide = precise(probs) + _FLOOR
    size = len(wide)
    ordered = wide.sort().values  # ascending, so sums begin at the smallest: exact
    places = torch.arange(batch_size - size + 1, batch_size + 1, device=wide.device)
    scales = places / ordered.cumsum(0)  # c, were all beyond this candidate capped
    capped = (scales * ordered > 1).sum()
    scale = scales.gather(0, (size - 1 - capped).view(1))
    return (scale * wide).clamp(max=1.0)


def check_probs(probs: Float[Tensor, " B"]) -> None:
    """Refuse what is no distribution. Waits for the device.

    Raises:
        ValueError: If ``probs`` has a negative or NaN entry or does not sum to 1.

    Example:
        >>> check_probs(torch.tensor([0.5, 0.5]))
    """
    low, total = torch.stack([probs.min(), probs.sum()]).tolist()
    if not (low >= 0 and abs(total - 1) < 1e-4):  # phrased so that NaN is refused too
        raise ValueError(
            f"`probs` must be at least 0 and sum to 1, got minimum {low:.3g} and sum "
            f"{total:.6g} over {len(probs)} candidates. Normalise the scores first."
        )


def check_batch_size(batch_size: int, candidates: int) -> None:
    """Refuse to draw more examples without repeats than there are, or none."""
    if not 1 <= batch_size <= candidates:
        raise ValueError(
            f"`batch_size` must be between 1 and the {candidates} candidates, got "
            f"{batch_size}. Draw fewer, or hand over a larger presample."
        )
