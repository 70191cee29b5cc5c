"""Moments of the scores: all that gates and ranks need to know, in one small tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.sampling.gate import Evidence
from lightning_is.sampling.numerics import faults, precise
from lightning_is.sampling.scheme import Selection


def moments(
    scores: Float[Tensor, " n"],
    counts: Float[Tensor, " n"],
    batch_size: int,
    selection: Selection,
) -> Float[Tensor, " 6"]:
    """Pack what the scores of one presample show, so that ranks can add theirs up.

    Args:
        scores: One per example, of shape ``(n,)``.
        counts: How often each of them is drawn on average, or would be.
        batch_size: Examples drawn from them, in ``[1, n]``.
        selection: Draws them.

    Returns:
        ``n``, ``batch_size``, the sums of the scores and of their squares, the noise of
        the draw times ``n`` squared, and the number of scores at fault.
    """
    wide = precise(scores)
    noise = selection.noise(wide, counts)
    # Filled, not copied: a copy from the host would wait for the device.
    sizes = [wide.new_full((), float(size)) for size in (len(scores), batch_size)]
    sums = [wide.sum(), wide.square().sum(), noise * len(scores) ** 2]
    return torch.stack([*sizes, *sums, faults(scores).sum().to(wide)])


def evidence(
    packed: Sequence[float], presample_size: int, batch_size: int, steps: int = 1
) -> Evidence | None:
    """Unpack moments, of one rank or summed over several.

    Args:
        packed: From `moments`.
        presample_size: Examples that an open step scores, on one rank.
        batch_size: Examples that an open step trains on, on one rank.
        steps: Steps that these moments stand for.

    Returns:
        Tau and effective batch over all the ranks; None if there were no scores.

    Example:
        >>> from lightning_is.sampling import multinomial
        >>> scores, even = torch.tensor([0.0, 0.0, 5.0, 0.0]), torch.full((4,), 0.25)
        >>> evidence(moments(scores, even, 1, multinomial).tolist(), 4, 1).tau
        2.0
    """
    n, drawn, total, squares, noise, _ = packed
    if n == 0:
        return None
    tau = (n * squares) ** 0.5 / total if total > 0 else 1.0
    gain = n / drawn * squares / (squares + noise) if squares > 0 else 1.0
    return Evidence(tau, gain, presample_size, batch_size, steps)
