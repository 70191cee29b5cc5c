"""Finding the head of a network nobody described, and checking that it is one."""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from lightning_is.scoring.tap import HeadTap

_INTERNAL = frozenset(vars(nn.Module()))
Owners = dict[Node, nn.Module]


@contextmanager
def traced_outputs(
    module: nn.Module, parts: Sequence[nn.Module] | None = None
) -> Iterator[Owners]:
    """Record which module made which node of the autograd graph.

    Args:
        module: What is run.
        parts: The modules to watch; those with parameters of their own by default.
    """
    owners: Owners = {}

    def note(made_by: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            owners.setdefault(output.grad_fn, made_by)  # the innermost comes first

    watched = _parametrised(module) if parts is None else parts
    handles = [part.register_forward_hook(note) for part in watched]
    try:
        yield owners
    finally:
        for handle in handles:
            handle.remove()


def _parametrised(module: nn.Module) -> list[nn.Module]:
    """List the parts with parameters of their own, also reparametrised ones."""
    return [
        part
        for part in module.modules()
        if not isinstance(part, parametrize.ParametrizationList)
        and (
            parametrize.is_parametrized(part)
            or next(part.parameters(recurse=False), None) is not None
        )
    ]


def find_heads(loss: Tensor, owners: Owners) -> list[nn.Module]:
    """Find the modules that the loss was computed from.

    Walks the autograd graph back from the loss to the nearest outputs of modules with
    parameters of their own. Several are fine (two heads, one head called twice) unless
    one feeds another, where no single cut separates loss and network.

    Args:
        loss: A loss with its graph.
        owners: From `traced_outputs`, around the computation of the loss.

    Raises:
        RuntimeError: If no head is found, or one feeds another.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> with traced_outputs(net) as owners:
        ...     loss = net(torch.ones(4, 2)).square().mean()
        >>> find_heads(loss, owners)
        [Linear(in_features=3, out_features=1, bias=True)]
    """
    start = [] if loss.grad_fn is None else [loss.grad_fn]
    found = _reach(start, owners)
    heads = list(dict.fromkeys(owners[node] for node in found))
    if not heads:
        raise RuntimeError(
            "The loss must be computed from the output of a module with parameters, "
            "got a loss that reaches none (is every parameter frozen, or the network "
            "exported or scripted, so that its parts run no hooks?). Pass `head=` with "
            "the module that gives the logits, the whole of such a network."
        )
    behind = [child for node in found for child in _children(node)]
    if _reach(behind, set(found)):
        names = sorted({type(owners[node]).__name__ for node in found})
        raise RuntimeError(
            "One module must separate the loss from the rest of the network, got "
            f"several that feed one another ({', '.join(names)}), as residual "
            "connections around the last layer do. Pass `head=` with the module whose "
            "output alone determines the loss."
        )
    return heads


def _children(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _reach(start: list[Node], stops: Container[Node]) -> list[Node]:
    """Walk back breadth-first; return the nodes of ``stops`` where the walk ends."""
    queue, seen, found = deque(start), set(start), []
    while queue:
        node = queue.popleft()
        if node in stops:
            found.append(node)
            continue
        for child in _children(node):
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return found


def bypassing_parameters(
    module: nn.Module,
    tap: HeadTap,
    steps: tuple[Callable[[], Tensor], ...],
    *,
    sharded: bool = False,
) -> list[str]:
    """Name the parameters whose data-dependent gradient does not pass the head.

    Such gradients would escape the weights: a learnable temperature after the head, a
    weight tied to it by hand, a second head. A penalty on the parameters also bypasses
    the head, rightly: its gradient does not depend on the data, so it is the same for
    both steps.

    Args:
        module: Holds the parameters.
        tap: On the head.
        steps: Two functions that compute the loss on different examples.
        sharded: Whether the module's own parameters are gathered into others, without
            its names, whenever it computes.
    """
    seen: list[dict[nn.Parameter, Tensor | None]] = []
    for step in steps:
        with torch.enable_grad(), tap.probing(cut=True):
            loss = step()
        reached = _parameters_behind(loss)
        found = torch.autograd.grad(loss, reached, allow_unused=True) if reached else ()
        seen.append(dict(zip(reached, found, strict=True)))
        if not any(gradient is not None for gradient in found):
            break
    one, other = seen[0], seen[-1]
    names = {p: name for name, p in module.named_parameters() if p.requires_grad}
    if sharded:
        for p in (*one, *other):
            names.setdefault(p, f"a shard of shape {tuple(p.shape)}")
    return [n for p, n in names.items() if not _same(one.get(p), other.get(p))]


def _parameters_behind(loss: Tensor) -> list[nn.Parameter]:
    """List the parameters that a loss was computed from, as its graph has them."""
    queue = deque([] if loss.grad_fn is None else [loss.grad_fn])
    seen = set(queue)
    while queue:
        children = [c for c in _children(queue.popleft()) if c not in seen]
        seen.update(children)
        queue.extend(children)
    leaves = [getattr(node, "variable", None) for node in seen]
    return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if isinstance(a, DTensor) and isinstance(b, DTensor):
        a, b = a.to_local(), b.to_local()
    return torch.allclose(a, b, rtol=1e-3, atol=1e-7, equal_nan=True)


def kept_tensors(module: nn.Module) -> dict[str, list[tuple[Tensor, int]]]:
    """Return the tensors that a module and its parts keep, with their versions.

    Plain attributes, also in lists and mappings, and buffers; scalars do not count.
    """
    attributes = {
        f"{path}.{name}".lstrip("."): _tensors(value)
        for path, part in module.named_modules()
        for name, value in part.__dict__.items()
        if name not in _INTERNAL
    }
    buffers = {name: _tensors(buffer) for name, buffer in module.named_buffers()}
    return {
        name: [(t, -1 if t.is_inference() else t._version) for t in tensors]
        for name, tensors in {**attributes, **buffers}.items()
        if tensors
    }


def changed_tensors(
    before: dict[str, list[tuple[Tensor, int]]], module: nn.Module
) -> list[str]:
    """Name the kept tensors that were replaced or written to since ``before``."""
    return [
        name
        for name, now in kept_tensors(module).items()
        if [(id(t), version) for t, version in now]
        != [(id(t), version) for t, version in before.get(name, [])]
    ]


def _tensors(value: object, depth: int = 0) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)) and depth < 3:  # it may contain itself
        return [t for item in value for t in _tensors(item, depth + 1)]
    return []
