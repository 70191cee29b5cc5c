"""Moments of the scores: all that gates and ranks need to know, in one small tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling.gate import Evidence
from lightning_is.sampling.numerics import faults, precise
from lightning_is.sampling.scheme import Selection

_POWER = 0.4  # of the largest number: squared, over a small chance, still a number


def moments(
    scores: Float[Tensor, " n"],
    draws: Sequence[tuple[int, Float[Tensor, " n"]]],
    selection: Selection,
    *,
    several: bool = True,
) -> Float[Tensor, " k"]:
    """Pack what the scores of one presample show, so that ranks can add theirs up.

    Args:
        scores: One per example, of shape ``(n,)``; what exceeds every float32 by far
            is cut, so that no square overflows.
        draws: Of each size, in ``[1, n]``, how often every example is drawn on average;
            in several batches together, if that comes to as many times the size.
        selection: Draws them.
        several: Whether a draw may be of several batches; False saves a look at that.

    Returns:
        ``n``, the sums of the scores and of their squares, the number of scores at
        fault, and 0 for those forgiven; then each size and the noise of its draw times
        ``n`` squared.
    """
    wide = precise(scores)
    wide = wide.clamp(max=torch.finfo(wide.dtype).max ** _POWER)
    # Filled, not copied: a copy from the host would wait for the device.
    packed = [wide.new_full((), float(len(scores))), wide.sum(), wide.square().sum()]
    packed += [faults(scores).sum().to(wide), wide.new_zeros(())]
    for size, counts in draws:
        packed.append(wide.new_full((), float(size)))
        noise = selection.noise(wide, counts) * len(scores) ** 2
        packed.append(noise + _picking(wide, size, counts) if several else noise)
    return torch.stack(packed)


def _picking(
    scores: Float[Tensor, " n"], size: int, counts: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Noise of being picked from several batches, for one of them; 0 if it is alone."""
    shared = (counts.sum() / size).round() - 1
    squares = torch.where(scores > 0, scores.square() / precise(counts), 0.0)
    return shared * squares.sum()


def only_faults(
    scores: Float[Tensor, " n"], sizes: int, *, forgiving: bool = False
) -> Float[Tensor, " k"]:
    """Pack the number of scores at fault alone, as long as `moments` of some sizes.

    Args:
        scores: One per example, of shape ``(n,)``.
        sizes: How many.
        forgiving: Count those that are not finite as forgiven, the negative as faults.
    """
    packed = no_moments(sizes, scores.device)
    bad = faults(scores)
    finite = torch.isfinite(scores) if forgiving else torch.ones_like(bad)
    packed[3], packed[4] = (bad & finite).sum(), (bad & ~finite).sum()
    return packed


def no_moments(sizes: int, device: torch.device) -> Float[Tensor, " k"]:
    """Pack that there were no scores, as long as `moments` of some sizes."""
    return precise(torch.zeros(5 + 2 * sizes, device=device))


def evidence(
    packed: Sequence[float], presample_size: int, batch_size: int, place: int = 0
) -> Evidence | None:
    """Unpack moments, of one rank or summed over several.

    Args:
        packed: From `moments`.
        presample_size: Examples that an open step scores, on one rank.
        batch_size: Examples that an open step trains on, on one rank.
        place: Of that size among those packed.

    Returns:
        Tau and effective batch over all the ranks; None if there were no scores.

    Example:
        >>> from lightning_is.sampling import multinomial
        >>> scores, even = torch.tensor([0.0, 0.0, 5.0, 0.0]), torch.full((4,), 0.25)
        >>> packed = moments(scores, [(1, even)], multinomial)
        >>> evidence(packed.tolist(), 4, 1).tau
        2.0
    """
    n, total, squares, _, _, *rest = packed
    if n == 0:
        return None
    # Squares may vanish where sums do not, and rounding pass either bound.
    tau = min(max((n * squares) ** 0.5 / total, 1.0), n**0.5) if total > 0 else 1.0
    gains = tuple(
        n / drawn * squares / (squares + noise) if squares > 0 else 1.0
        for drawn, noise in zip(rest[::2], rest[1::2], strict=True)
    )
    return Evidence(tau, gains[place], presample_size, batch_size, gains=gains)
