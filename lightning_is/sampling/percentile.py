"""Loss percentile: accept an example by where its loss stands among recent ones.

Shapes: ``n`` examples just scored, ``R`` losses remembered.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor


def share_below(
    values: Float[Tensor, " n"], ordered: Float[Tensor, " R"]
) -> Float[Tensor, " n"]:
    """Return the share of a sorted sample that lies strictly below each value.

    Args:
        values: To place, of shape ``(n,)``.
        ordered: The sample, ascending, of shape ``(R,)``, with ``R`` at least 1.

    Returns:
        Shares of shape ``(n,)``, in ``[0, 1]``, float32.

    Example:
        >>> share_below(torch.tensor([3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([0.5000])
    """
    return torch.searchsorted(ordered, values).float() / len(ordered)


def acceptance_chance(
    shares: Float[Tensor, " n"], beta: float, floor: float
) -> Float[Tensor, " n"]:
    """Return ``max(floor, share ** beta)``, the chance to be accepted."""
    return shares.pow(beta).clamp(min=floor)


def accepted_share(beta: float, floor: float) -> float:
    r"""Return the share of the examples that is accepted on average.

    .. math:: \int_0^1 \max(\text{floor}, u^\beta) \, du
              = \text{floor} \, u_0 + \frac{1 - u_0^{1 + \beta}}{1 + \beta},
              \qquad u_0^\beta = \text{floor}

    Example:
        >>> accepted_share(beta=1.0, floor=0.0)
        0.5
    """
    level = float(floor ** (1 / beta))
    return floor * level + (1 - float(level ** (1 + beta))) / (1 + beta)


def check_selectivity(beta: float, floor: float) -> None:
    """Refuse settings by which acceptance has no meaning.

    Raises:
        ValueError: If ``beta`` is not positive or ``floor`` is outside ``[0, 1]``.
    """
    if not 0 < beta < float("inf"):
        raise ValueError(
            f"`beta` must be a number above 0, got {beta}. 1 accepts about half of the "
            "examples, 2 a third, 3 a quarter."
        )
    if not 0 <= floor <= 1:
        raise ValueError(
            f"`floor` must be in [0, 1], got {floor}. It is the least chance of any "
            "example to be accepted; 0 has none."
        )


@final
class LossPercentile:
    r"""Accept examples of a high loss, as Selective-Backprop does with fresh losses.

    .. math:: P(\text{accept}) = \max\bigl(\text{floor}, \mathrm{CDF}(L)^\beta\bigr)

    with the CDF over the last :math:`R` losses, those being judged included, counting
    only what lies strictly below. About :math:`1 / (1 + \beta)` of the examples are
    accepted. They are not weighted, so training on them is biased by design. Where all
    recent losses are equal, none lies below another and nobody is accepted: a positive
    ``floor`` prevents that.

    Losses stay on their device, and nothing here waits for it.

    Args:
        beta: How selective to be, above 0.
        history: Losses to remember, :math:`R`, at least 1.
        floor: Least chance of any example, in ``[0, 1]``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Jiang et al., "Accelerating deep learning by focusing on the biggest losers",
        2019, arXiv 1910.00762; the rule and its defaults are those of the authors'
        code.

    Example:
        >>> acceptance = LossPercentile(floor=1.0)
        >>> acceptance.accept(torch.tensor([0.1, 2.0]), torch.Generator())
        tensor([True, True])
    """

    def __init__(
        self, beta: float = 1.0, history: int = 1024, floor: float = 0.0
    ) -> None:
        check_selectivity(beta, floor)
        if history < 1:
            raise ValueError(
                f"`history` must be at least 1, got {history}. 1024 losses are usual."
            )
        self.beta, self.history, self.floor = beta, history, floor
        self._losses = torch.empty(0)  # oldest first

    @property
    def share(self) -> float:
        """The share of the examples that it accepts on average."""
        return accepted_share(self.beta, self.floor)

    def accept(
        self, losses: Float[Tensor, " n"], generator: Generator
    ) -> Bool[Tensor, " n"]:
        """Remember losses, then decide on each of them.

        Args:
            losses: One per example, of shape ``(n,)``; any finite number.
            generator: The only source of random numbers; on any device.

        Returns:
            Whether each example is accepted, of shape ``(n,)``, on the losses' device.

        Raises:
            ValueError: On the CPU, if a loss is NaN or infinite.
        """
        fresh = losses.detach().float()
        _check_finite(fresh)
        before = self._losses.to(fresh.device, non_blocking=True)
        self._losses = torch.cat([before, fresh])[-self.history :]
        shares = share_below(fresh, self._losses.sort().values)
        chances = acceptance_chance(shares, self.beta, self.floor)
        units = torch.rand(len(fresh), generator=generator, device=generator.device)
        return units.to(fresh.device, non_blocking=True) < chances

    def state_dict(self) -> dict[str, Tensor]:
        """Return the remembered losses on the CPU, oldest first."""
        return {"losses": self._losses.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``; of a longer history, the latest losses count.

        Raises:
            ValueError: If ``state`` is not one of this kind.
        """
        if set(state) != {"losses"}:
            raise ValueError(
                "LossPercentile continues from a state with the keys ['losses'], got "
                f"{sorted(state)}. Start afresh, or resume from a run that had one."
            )
        self._losses = state["losses"].float()[-self.history :].clone()


def _check_finite(losses: Float[Tensor, " n"]) -> None:
    """Refuse, on the CPU where looking is free, what cannot be ranked."""
    if losses.device.type != "cpu" or bool(torch.isfinite(losses).all()):
        return
    where = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
    shown = ", ".join(f"{i}: {float(losses[i]):.3g}" for i in where[:5])
    more = ", ..." if len(where) > 5 else ""
    raise ValueError(
        f"Losses must be finite, got {len(where)} of {len(losses)} that are not, at "
        f"positions {{{shown}{more}}}. Look at these examples (overflow, log of 0, bad "
        "labels)."
    )
