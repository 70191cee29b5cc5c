"""Per-example losses, and the loss as a score."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import isnan
from typing import Any, final

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
        F.cross_entropy,
        F.gaussian_nll_loss,
        F.hinge_embedding_loss,
        F.huber_loss,
        F.kl_div,
        F.l1_loss,
        F.mse_loss,
        F.nll_loss,
        F.poisson_nll_loss,
        F.smooth_l1_loss,
        F.soft_margin_loss,
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
        self._found: list[tuple[Tensor, Tensor]] = []

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
            bound = _signature(func).bind(*args, **kwargs)
            bound.arguments["reduction"] = "none"
            with torch.no_grad():
                unreduced = func(*bound.args, **bound.kwargs)
            self._found.append((unreduced, result.detach().mean()))
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
        for unreduced, reduced in self._found:
            rows = unreduced.shape[0] if unreduced.ndim else 0
            if rows == 0 or rows % examples:
                shape = tuple(unreduced.shape)
                raise ValueError(_explain(f"losses of shape {shape} for {examples}"))
            unreduced = by_example(unreduced, examples, stacked=self._stacked)
            sums = unreduced.float().sum(1)
            whole = sums.sum()
            share = torch.where(whole == 0, torch.zeros_like(sums), sums / whole)
            total = total.to(share.device) + share * reduced.float() * examples
        self._check(total, loss)
        return total

    def _check(self, losses: Tensor, loss: Tensor | None) -> None:
        if loss is None or loss.device.type != "cpu":
            return
        tolerance = _TOLERANCE.get(loss.dtype, 1e-4)
        mean, expected = losses.mean().item(), loss.detach().float().item()
        if isnan(mean) and isnan(expected):
            return  # whoever draws by these will say which they are
        if not abs(mean - expected) <= tolerance * max(abs(expected), 1e-6):
            raise ValueError(
                _explain(f"a mean of {mean:.6g} and a loss of {expected:.6g}")
            )


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
