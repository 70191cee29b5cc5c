"""The norm of each example's gradient: the oracle that cheap scores stand in for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_is.scoring.context import is_norm
from lightning_is.scoring.scorer import Reading, Scored, Step
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring.uneven_means import RefuseUnevenMeans
from lightning_is.scoring.upper_bound import UpperBound

Part = Literal["all", "last_layer"]
Method = Literal["vmap", "loop"]


@dataclass(frozen=True)
class GradientNorm:
    r"""Score by the norm of an example's gradient, :math:`\|\nabla_\theta L_i\|_2`.

    Sampling in proportion to it has the least variance there is. It costs about a
    backward pass of the whole batch and more, so it saves no time: it is there to
    measure how close the other scores come.

    The loss of an example is what the step returns for a batch of that example alone,
    in the mode in which the batch was scored, except that normalisation layers use
    their running statistics; batch normalisation without any cannot be scored. Before
    that the step runs once on the whole batch. Where the step draws random numbers,
    each example gets its own, as in training. Three things to know:

    * Alone in its batch, an example would get no class weight, and count as much as
      one with more valid tokens: such means are refused, with ``per_sample_loss=`` for
      a cure. An example whose labels are all ignored scores 0.
    * The upper bound comes for free from an ordinary step and this score does not:
      while the gate is closed, tau is read from the upper bound.
    * ``"vmap"`` needs a step that ``torch.func`` can take apart: no ``.item()``, no
      control flow on values, no metric updated in place, no lists of plain values in
      the batch. ``"loop"`` takes any step, and is slow: one backward pass per example.

    Args:
        parameters: ``"all"`` that are trained, or of those the heads' own
            (``"last_layer"``).
        method: ``"vmap"`` computes many gradients at once; ``"loop"`` one by one.
        memory: Bytes that the gradients of ``"vmap"`` may take at a time; those of one
            example always may. Activations come on top.

    Raises:
        ValueError: If an argument is not one of these.

    References:
        Katharopoulos & Fleuret, "Not All Samples Are Created Equal", ICML 2018,
        arXiv 1803.00942, section 3.1: the distribution of least variance.

    Example:
        >>> head, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0], [0, 0]])
        >>> run = lambda rows: head(rows).mean()
        >>> step = Step(run, x, head, take=lambda rows, positions: rows[positions])
        >>> GradientNorm().score(step, HeadTap([head]), examples=2).scores
        tensor([5., 0.])
    """

    parameters: Part = "all"
    method: Method = "vmap"
    memory: int = 256 * 2**20

    def __post_init__(self) -> None:
        _one_of("parameters", self.parameters, get_args(Part))
        _one_of("method", self.method, get_args(Method))
        if self.memory < 1:
            raise ValueError(
                f"`memory` must be at least 1 byte, got {self.memory}. 2**28 is a good "
                "start."
            )

    def score(self, step: Step, tap: HeadTap, examples: int) -> Scored:
        """Score a batch by the gradient of each of its examples.

        Raises:
            RuntimeError: If ``"vmap"`` cannot take the step apart.
            ValueError: If there is no parameter to take the gradient by, or the loss
                is a mean in which examples count unequally.
        """
        with torch.no_grad(), RefuseUnevenMeans(examples):
            loss = step().mean()
        chosen = self._chosen(step.module, tap)
        with _running_statistics(step.module):
            if self.method == "loop":
                norms = _one_by_one(step, list(chosen.values()), examples)
            else:
                norms = self._at_once(step, chosen, examples)
        return Scored(norms, loss.detach().float())

    def observing(self, tap: HeadTap) -> AbstractContextManager[Reading]:
        """Read the upper bound off an ordinary step, which leaves no gradient norms."""
        return UpperBound().observing(tap)

    def _chosen(self, module: nn.Module, tap: HeadTap) -> dict[str, nn.Parameter]:
        heads = {id(p) for head in tap.heads for p in head.parameters()}
        chosen = {
            name: p
            for name, p in module.named_parameters()
            if p.requires_grad and (self.parameters == "all" or id(p) in heads)
        }
        if not chosen:
            raise ValueError(
                "The gradient norm needs parameters that are trained, got none in "
                f'`parameters="{self.parameters}"`. Pass `parameters="all"` and train '
                "some."
            )
        return chosen

    def _at_once(
        self, step: Step, chosen: dict[str, nn.Parameter], examples: int
    ) -> Float[Tensor, " n"]:
        norm = _norm_of_one(step, chosen)
        device = next(iter(chosen.values())).device
        try:
            # Without grad, or what is not differentiated here keeps its graph. Fused
            # attention would run example by example.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                norms: Tensor = torch.func.vmap(
                    norm,
                    chunk_size=chunk_size(list(chosen.values()), self.memory),
                    randomness="different",
                )(torch.arange(examples, device=device))
        except RuntimeError as problem:
            first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            raise RuntimeError(
                "The gradients of many examples are computed at once, which needs a "
                f"step that torch.func.vmap can take apart, got '{first}'. Pass "
                '`GradientNorm(method="loop")`, which takes any step and is slow: one '
                "backward pass per example."
            ) from problem
        return norms


def chunk_size(parameters: Sequence[Tensor], memory: int) -> int:
    """Return how many gradients fit in some memory, at least 1.

    Args:
        parameters: What the gradients are taken by.
        memory: In bytes.

    Example:
        >>> chunk_size([torch.zeros(100), torch.zeros(25)], memory=1600)
        3
    """
    return max(1, memory // sum(p.numel() * p.element_size() for p in parameters))


class _Alone(nn.Module):
    """Runs the step on one example, with whatever parameters `functional_call` sets."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.module = step, step.module

    def forward(self, position: Tensor) -> Tensor:
        return _loss_of_one(self.step, position)


def _loss_of_one(step: Step, position: Tensor) -> Tensor:
    return step.run(step.take(step.batch, position[None])).mean()


def _norm_of_one(
    step: Step, chosen: dict[str, nn.Parameter]
) -> Callable[[Tensor], Tensor]:
    """Return a function from an example's position to the norm of its gradient."""
    alone = _Alone(step)
    values = {f"module.{name}": p.detach() for name, p in chosen.items()}

    def loss(values: dict[str, Tensor], position: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(alone, values, (position,))
        return found

    gradient = torch.func.grad(loss)
    return lambda position: _norm(list(gradient(values, position).values()))


def _one_by_one(
    step: Step, parameters: list[nn.Parameter], examples: int
) -> Float[Tensor, " n"]:
    norms = []
    for position in torch.arange(examples, device=parameters[0].device):
        # Casts of parameters that were cached without gradients would have none here.
        torch.clear_autocast_cache()
        with torch.enable_grad():
            loss = _loss_of_one(step, position)
        found: Sequence[Tensor | None] = []
        if loss.requires_grad:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        dense = [g.to_dense() for g in found if g is not None]  # embeddings may be not
        norms.append(_norm(dense) if dense else torch.zeros_like(loss).float())
    return torch.stack(norms)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of some tensors taken together, in float32."""
    norms = [
        torch.linalg.vector_norm(
            g.flatten(), dtype=torch.promote_types(g.dtype, torch.float32)
        ).float()
        for g in gradients
    ]
    joined: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return joined


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Let normalisation layers use running statistics: one example has none."""
    norms = [part for part in module.modules() if is_norm(part) and part.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        choices = " or ".join(f'"{choice}"' for choice in known)
        raise ValueError(
            f'`{name}` must be {choices}, got {value!r}. The default is "{known[0]}".'
        )
