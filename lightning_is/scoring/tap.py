"""The head tap: where the loss meets the network.

A forward hook on the module whose output the loss is computed from. There the gradient
of each example's loss is one row, so it can be read (its norm is the score) and
weighted (which weights the example's whole gradient) without touching the loss or the
user's code. Shapes: ``n`` examples in a batch, ``rows`` of a head's output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@final
class HeadTap:
    """Hooks one head, or several that do not feed one another.

    The tap is off, and the forward pass untouched, outside the two context managers:
    `probing` makes the gradient at the heads readable, `weighting` scales it row by
    row. They may be nested; what is read is then the gradient before weighting.

    Args:
        heads: Modules whose output is a tensor with the examples along dimension 0.

    Attributes:
        stacked: Where a head has ``k * n`` rows, whether they are ``k`` batches one
            after the other (two augmented views, say); otherwise the ``k`` rows of an
            example are neighbours (a sequence flattened batch-first).
        live: For each call of a head in a step, whether it carries a gradient; empty
            means that all do. One under the user's own ``no_grad`` does not.
        scale: Factor that the loss of a step carries into its backward pass.
        examples: Of the batch that is trained on; 0 if nobody said.
        has_fired: Whether a head ran since the last context began.
        seen: The same of the calls under the last `probing`, as they happen.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        self.heads = tuple(heads)
        self.stacked = False
        self.live: tuple[bool, ...] = ()
        self.scale: float | Tensor = 1.0
        self.examples = 0
        self.has_fired = False
        self._handles: list[RemovableHandle] = []
        self._probes: list[Tensor] | None = None
        self._ready: list[Tensor] = []
        self._forms: dict[bool, list[_Form]] = {False: [], True: []}
        self._cuts = False
        self.seen: list[bool] = []
        self._weights: Tensor | None = None

    def attach(self) -> None:
        """Put the hooks on the heads; they do nothing until asked."""
        self.detach()
        self._handles = [m.register_forward_hook(self._on_forward) for m in self.heads]

    def detach(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def probing(
        self, *, cut: bool = False, examples: int = 0
    ) -> Iterator[list[Tensor]]:
        """Add a probe of zeros to each head's output, to receive its gradient.

        Args:
            cut: Also cut the graph there and record it from there on, even under
                ``no_grad``: the backbone then keeps no activations.
            examples: In the batch, if known: probes like the last ones are then made
                beforehand, as a network that is compiled in one piece wants them.

        Yields:
            The probes, one per call of a head, appended as the calls happen.
        """
        probes: list[Tensor] = []
        self._probes = probes
        self._cuts, self.seen, self.has_fired = cut, [], False
        self._ready = [form.probe(examples) for form in self._forms[cut] if examples]
        try:
            yield probes
        finally:
            self._probes, self._cuts, self._ready = None, False, []
        if examples:
            self._forms[cut] = [_Form.of(probe, examples) for probe in probes]

    @contextmanager
    def weighting(self, weights: Float[Tensor, " n"]) -> Iterator[None]:
        """Multiply the gradient of each example at the heads by its weight.

        The forward pass is unchanged. The gradient of the parameters becomes that of
        the weighted mean of the examples' losses; terms of the loss that do not pass
        through a head, such as a penalty on the parameters, keep theirs.

        Args:
            weights: One weight per example, of shape ``(n,)``, in float32: products are
                computed in it, whatever the gradient comes in.
        """
        self._weights, self.has_fired = weights, False
        try:
            yield
        finally:
            self._weights = None

    def _on_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._probes is None and self._weights is None:
            return None
        if not isinstance(output, Tensor):
            raise TypeError(
                "The output of the head must be a tensor, got a "
                f"{type(output).__name__} from {type(module).__name__}. Pass `head=` "
                "with the module whose output is the logits."
            )
        self.has_fired = True
        if self._weights is not None and output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                _Scale(self._weights, self.stacked)
            )
        if self._probes is None:
            return None
        self.seen.append(output.requires_grad)
        if self._cuts:
            if self.live and not self.live[(len(self.seen) - 1) % len(self.live)]:
                return None  # computed under the user's own no_grad: no gradient
            output = output.detach()
            torch.set_grad_enabled(True)  # undone as the caller's no_grad ends
        probe = self._probe(len(self._probes), output)
        self._probes.append(probe)
        return output + probe

    def _probe(self, call: int, output: Tensor) -> Tensor:
        """Return the probe for a call of a head: a leaf of zeros like its output."""
        if call < len(self._ready):
            ready = self._ready[call]
            if ready.shape == output.shape and ready.dtype == output.dtype:
                return ready
        return torch.zeros_like(output, requires_grad=True)


class _Form(NamedTuple):
    """What the output of a head looks like in one call.

    Attributes:
        rows: Of each example; not whole where examples do not have as many.
        tail: The other dimensions.
        dtype: Of the numbers.
        device: Where they are.
    """

    rows: float
    tail: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, probe: Tensor, examples: int) -> "_Form":
        """Return the form of a probe, for a batch of so many examples."""
        rows = probe.shape[0] / examples if probe.ndim else 0.0
        return cls(rows, probe.shape[1:], probe.dtype, probe.device)

    def probe(self, examples: int) -> Tensor:
        """Make a probe of this form."""
        return torch.zeros(
            (round(self.rows * examples), *self.tail),
            dtype=self.dtype,
            device=self.device,
            requires_grad=True,
        )


class _Scale:
    """Gradient hook: scales each example's rows by its weight."""

    def __init__(self, weights: Tensor, stacked: bool) -> None:
        self.weights, self.stacked = weights, stacked

    def __call__(self, gradient: Tensor) -> Tensor:
        copies = rows_per_example(gradient, len(self.weights))
        weights = self.weights
        if copies > 1:
            repeat = weights.repeat if self.stacked else weights.repeat_interleave
            weights = repeat(copies)
        shape = (-1,) + (1,) * (gradient.ndim - 1)
        # A weight may exceed what half precision holds where its product does not: the
        # less likely an example is drawn, the smaller is its gradient.
        return (gradient * weights.view(shape)).to(gradient.dtype)


def rows_per_example(output: Tensor, examples: int) -> int:
    """Return how many rows of a head's output belong to one example.

    Raises:
        ValueError: If the rows do not divide evenly among the examples.
    """
    rows = int(output.shape[0]) if output.ndim else 0
    if rows == 0 or rows % examples:
        raise ValueError(
            "The output of the head must have the examples along dimension 0, got "
            f"shape {tuple(output.shape)} for a batch of {examples} examples. Pass "
            "`head=` with a module that is batch-first."
        )
    return rows // examples


def example_norms(
    gradients: Sequence[Tensor], examples: int, *, stacked: bool = False
) -> Float[Tensor, " n"]:
    """Return the norm of each example's part of some gradients, in float32.

    Args:
        gradients: Of shape ``(k * n, ...)`` each, one per call of a head.
        examples: The number ``n`` of examples.
        stacked: As in `HeadTap`.

    Raises:
        ValueError: If the rows do not divide evenly among the examples.

    Example:
        >>> example_norms([torch.tensor([[3.0, 4.0], [0.0, 1.0]])], 2)
        tensor([5., 1.])
    """
    norms: list[Tensor] = [
        torch.linalg.vector_norm(
            by_example(gradient.detach(), examples, stacked=stacked),
            dim=1,
            dtype=torch.promote_types(gradient.dtype, torch.float32),
        ).float()
        for gradient in gradients
    ]
    if len(norms) == 1:
        return norms[0]
    joined: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return joined


def by_example(gradient: Tensor, examples: int, *, stacked: bool) -> Tensor:
    """Bring the rows of each example together, of shape ``(n, ...)``."""
    copies = rows_per_example(gradient, examples)
    if stacked and copies > 1:
        gradient = gradient.reshape(copies, examples, -1).transpose(0, 1)
    return gradient.reshape(examples, -1)
