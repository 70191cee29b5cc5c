"""The upper bound of the gradient norm: Katharopoulos & Fleuret's score."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_is.scoring.scorer import Reading, Scored
from lightning_is.scoring.tap import HeadTap, example_norms


@dataclass(frozen=True)
class UpperBound:
    r"""Score an example by the norm of its loss gradient at the head's output.

    .. math:: \sup_i \lVert\nabla_\theta L_i\rVert \le
              L\rho\,\bigl\lVert \nabla_{z_i} L_i \bigr\rVert_2 =: \hat G_i

    with :math:`z_i` the pre-activations of the last layer; the constant cancels in the
    probabilities. It works for any loss and any shape of head, by autograd from the
    loss to the head alone. For softmax cross-entropy it equals
    :math:`\lVert \mathrm{softmax}(z_i) - y_i \rVert_2`. Scores are per example of a
    loss that is the mean over the batch; a sum gives scores ``n`` times as large, which
    changes no draw.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        arXiv 1803.00942, equation 19.

    Example:
        >>> from torch import nn
        >>> head, z = nn.Identity(), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> tap = HeadTap([head])
        >>> tap.attach()
        >>> step = lambda: nn.functional.mse_loss(head(z), torch.zeros(2, 2))
        >>> UpperBound().score(step, tap, examples=2)
        Scored(scores=tensor([2., 0.]), loss=tensor(1.))
    """

    def score(self, step: Callable[[], Tensor], tap: HeadTap, examples: int) -> Scored:
        """Score a batch; the backbone runs without grad and keeps no activations.

        Raises:
            RuntimeError: If no head ran, or the loss does not depend on it.
            ValueError: If a head's rows do not divide among the examples.
        """
        with torch.no_grad(), tap.probing(cut=True, examples=examples) as probes:
            loss = step().mean()
        gradients = head_gradients(loss, probes, examples)
        scores = example_norms(gradients, examples, stacked=tap.stacked)
        return Scored(scores, loss.detach().float())

    @contextmanager
    def observing(self, tap: HeadTap) -> Iterator[Reading]:
        """Read the same gradients off an ordinary step's backward pass.

        The factor that the loss was scaled by (gradient accumulation, mixed precision)
        is taken out again.
        """
        with tap.probing(examples=tap.examples) as probes:

            def read(examples: int) -> Float[Tensor, " n"] | None:
                found = [p.grad for p in probes if p.grad is not None]
                if not found:
                    return None
                norms = example_norms(found, examples, stacked=tap.stacked)
                return norms * examples / tap.scale

            yield read


def head_gradients(loss: Tensor, probes: list[Tensor], examples: int) -> list[Tensor]:
    """Return ``examples`` times the gradient of a mean loss at each probe.

    Raises:
        RuntimeError: If there is no probe, or the loss depends on none of them.
    """
    refuse_silence(bool(probes))
    gradients: list[Tensor] = []
    if loss.requires_grad:
        # Scaled before the backward pass, or small gradients vanish in half precision.
        scale = torch.full_like(loss, examples)
        found = torch.autograd.grad(loss, probes, grad_outputs=scale, allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        raise RuntimeError(
            "The loss must be computed from the output of the head, got one that does "
            "not depend on it. Pass `head=` with the module that gives the logits."
        )
    return gradients


def refuse_silence(has_fired: bool) -> None:
    """Refuse a step in which no head ran.

    Raises:
        RuntimeError: If so.
    """
    if not has_fired:
        raise RuntimeError(
            "The head must run in every training step, got a step in which it did "
            "not. Pass `head=` with the module that gives the logits; of an exported "
            "or scripted network, whose parts run no hooks, with the whole of it."
        )
