"""Per-example losses, and the loss as a score."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_is.scoring.scorer import Reading, Scored
from lightning_is.scoring.tap import HeadTap, by_example

_LOSSES = frozenset(
    {
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cosine_embedding_loss,
        F.cross_entropy,
        F.ctc_loss,
        F.gaussian_nll_loss,
        F.hinge_embedding_loss,
        F.huber_loss,
        F.kl_div,
        F.l1_loss,
        F.margin_ranking_loss,
        F.mse_loss,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.multilabel_soft_margin_loss,
        F.nll_loss,
        F.poisson_nll_loss,
        F.smooth_l1_loss,
        F.soft_margin_loss,
        F.triplet_margin_loss,
        F.triplet_margin_with_distance_loss,
    }
)
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Loss:
    """Score an example by its loss: the ``loss`` baseline of the paper.

    The losses of ``torch.nn.functional`` (and so those of ``torch.nn``) are found as
    the step calls them. Where the step's loss is not their mean over the examples,
    `ImportanceSamplingCallback` takes ``per_sample_loss=`` instead.

    The loss orders examples well but its size does not follow the gradient norm: tau
    overstates what sampling by it gains.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        section 4.
    """

    def score(self, step: Callable[[], Tensor], tap: HeadTap, examples: int) -> Scored:
        """Score a batch by one forward pass.

        Raises:
            ValueError: If the step's loss is not the mean of the losses found.
        """
        with torch.no_grad(), LossRecorder(stacked=tap.stacked) as recorder:
            loss = step().detach()
        given = loss.ndim > 0  # one loss per example, by the user's own function
        losses = loss.float() if given else recorder.example_losses(examples, loss)
        return Scored(losses, loss.mean().float())

    @contextmanager
    def observing(self, tap: HeadTap) -> Iterator[Reading]:
        """Record the losses that an ordinary step computes anyway."""
        with LossRecorder(stacked=tap.stacked) as recorder:
            yield recorder.example_losses


@final
class LossRecorder(TorchFunctionMode):
    """Records per-example values of the losses computed while it is active.

    What the step computes stays as it is. Each recorded value is an example's share of
    the reduced loss times the number of examples, so their mean is the reduced loss,
    with class weights, ``ignore_index`` and padding as the loss itself counts them.

    Args:
        stacked: As in `HeadTap`, where there are ``k * n`` rows of losses.

    Example:
        >>> z, y = torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0])
        >>> with LossRecorder() as recorder:
        ...     loss = F.cross_entropy(z, y)
        >>> recorder.example_losses(2, loss)
        tensor([6.9315e-01, 1.2337e-04])
    """

    def __init__(self, *, stacked: bool = False) -> None:
        super().__init__()
        self._stacked = stacked
        self._found: list[_Found] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let every call through; keep the unreduced values of a loss."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _LOSSES:
            self._found.append(_found(func, args, kwargs, result.detach().mean()))
        return result

    def example_losses(
        self, examples: int, loss: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """Return one loss per example, of shape ``(n,)``, in float32.

        Args:
            examples: The number ``n`` of examples in the batch.
            loss: What the step returned; compared with the mean of the result.

        Raises:
            ValueError: If no loss was recorded, one has no rows per example, or their
                mean is not ``loss``.
        """
        if not self._found:
            raise ValueError(_explain("no call of a known loss function"))
        total = torch.zeros(())
        for found in self._found:
            rows = found.unreduced.shape[0] if found.unreduced.ndim else 0
            if rows == 0 or rows % examples:
                shape = tuple(found.unreduced.shape)
                raise ValueError(_explain(f"losses of shape {shape} for {examples}"))
            terms = by_example(found.unreduced, examples, stacked=self._stacked)
            shares = _shares(terms.float().sum(1), found.reduced.float(), found.terms)
            total = total.to(shares.device) + shares * examples
        self._check(total, loss)
        return total

    def _check(self, losses: Tensor, loss: Tensor | None) -> None:
        if loss is None or loss.device.type != "cpu":
            return
        tolerance = _TOLERANCE.get(loss.dtype, 1e-4)
        mean, expected = losses.mean().item(), loss.detach().float().item()
        if not isfinite(mean) and not isfinite(expected):
            return  # whoever draws by these will say which they are
        size = max(losses.abs().mean().item(), abs(expected), 1e-6)
        if not abs(mean - expected) <= tolerance * size:
            raise ValueError(
                _explain(f"a mean of {mean:.6g} and a loss of {expected:.6g}")
            )


class _Found(NamedTuple):
    """A loss that a step computed.

    Attributes:
        unreduced: With a row, or several, per example.
        reduced: What the step saw, or the mean of it.
        terms: What a sum of the unreduced losses is divided by, but for weights.
    """

    unreduced: Tensor
    reduced: Tensor
    terms: int


def _found(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reduced: Tensor,
) -> _Found:
    """Compute a loss again, unreduced."""
    bound = _signature(func).bind(*args, **kwargs)
    reduction = bound.arguments.get("reduction", "mean")
    for deprecated in bound.arguments.keys() & {"size_average", "reduce"}:
        bound.arguments[deprecated] = None  # would overrule the reduction
    bound.arguments["reduction"] = "none"
    with torch.no_grad():
        unreduced = func(*bound.args, **bound.kwargs)
    if func is F.ctc_loss and reduction == "mean":
        lengths = torch.as_tensor(bound.arguments["target_lengths"])
        unreduced = unreduced / lengths.to(unreduced).clamp(min=1)
    if reduction == "sum":
        return _Found(unreduced, reduced, 1)
    by_rows = reduction == "batchmean" and unreduced.ndim
    return _Found(unreduced, reduced, len(unreduced) if by_rows else unreduced.numel())


def _shares(sums: Tensor, reduced: Tensor, terms: int) -> Tensor:
    """Divide a reduced loss among the examples.

    In proportion to their own sums, as only the loss itself knows the weights it
    divides by. Where losses of both signs cancel, their whole is no measure; those
    losses divide by the number of terms.
    """
    whole, size = sums.sum(), sums.abs().sum()
    factor = torch.where(whole.abs() > 1e-2 * size, reduced / whole, 1 / terms)
    # Where there is nothing to share, this is 0, or NaN of a mean over nothing.
    return sums * torch.where(size == 0, reduced, factor)


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _explain(got: str) -> str:
    return (
        "Scoring by the loss needs a step whose loss is the mean over the examples of "
        f"losses of torch.nn.functional, got {got}. Pass `per_sample_loss=lambda "
        "module, batch: ...` returning one loss per example, or use the UpperBound "
        "scorer, which takes any loss."
    )
