"""Three averages of cross-entropy over the tokens of padded sequences.

Labels of ``-100``, PyTorch's mark, are padding: they add no loss and no gradient. The
averages differ where sequences have different numbers of labels. Of ``B`` sequences
with ``n_i`` labels and summed losses ``s_i`` in rows of ``T`` positions they are

* `position_mean`: ``mean(s_i / T)``; every token counts the same;
* `sequence_mean`: ``mean(s_i / n_i)``; every sequence counts the same;
* `token_mean`: ``sum(s_i) / sum(n_i)``, the usual one.

The first two are means over the sequences of something that is each one's own, so a
weighted draw of sequences estimates them, and their gradient, without bias. The third
divides by the labels of whichever sequences were drawn. Long ones have larger scores
and are drawn more often, so that this number is larger than that of the batch on
average, and the step shorter.
"""

from typing import TypeAlias

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

PADDING = -100  # what `cross_entropy` ignores

Logits: TypeAlias = Float[Tensor, "B T vocabulary"]
Labels: TypeAlias = Int64[Tensor, "B T"]


def token_losses(logits: Logits, labels: Labels) -> Float[Tensor, "B T"]:
    """Return the cross-entropy of each token in nats; 0 where there is no label."""
    flat = functional.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=PADDING,
        reduction="none",
    )
    return flat.view_as(labels)


def position_mean(logits: Logits, labels: Labels) -> Float[Tensor, ""]:
    """Return the mean over all positions, padding counted as no loss.

    Equal to `token_mean` where nothing is padded; otherwise lower by the share of
    padding, on average, which the learning rate sees as well.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 4, 2), torch.tensor([[1, 0, -100, -100]])
        >>> position_mean(logits, labels), token_mean(logits, labels)
        (tensor(0.3466), tensor(0.6931))
    """
    return token_losses(logits, labels).mean()


def sequence_mean(logits: Logits, labels: Labels) -> Float[Tensor, ""]:
    """Return the mean over the sequences of the mean over each one's labels.

    A token of a short sequence counts for more than one of a long sequence. To score by
    the `Loss`, pass ``per_sample_loss=``, as no loss function sees this average.
    """
    return per_sequence(token_losses(logits, labels), labels).mean()


def token_mean(logits: Logits, labels: Labels) -> Float[Tensor, ""]:
    """Return the mean over all labels of the batch: biased under importance sampling.

    The bias is mostly one of size, towards short steps; see the module's description.
    """
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=PADDING
    )


def per_sequence(values: Float[Tensor, "B T"], labels: Labels) -> Float[Tensor, " B"]:
    """Return the mean of each sequence over its labels; 0 for one without any.

    Example:
        >>> import torch
        >>> values = torch.tensor([[2.0, 4.0, 9.0]])
        >>> per_sequence(values, torch.tensor([[7, 7, -100]]))
        tensor([3.])
    """
    counted = labels != PADDING
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)
