"""Batch surgery: how many examples a batch holds, and a batch of some of them."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)


@dataclasses.dataclass
class SampledBatch:
    """A batch whose examples were drawn before they were loaded.

    The user's ``training_step`` receives ``data`` alone. Weights multiply those of a
    later draw from the same batch.

    Attributes:
        data: What the user's loader would have yielded.
        index: Position of each example in the dataset.
        weight: Unbiased weight of each example under that draw.
    """

    data: Any
    index: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def parts(self) -> tuple[Any, Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Return data, index and weight.

        Raises:
            ValueError: If the weight is in float16, in which large ones are infinite.
        """
        if self.weight.dtype == torch.float16:
            raise ValueError(
                "Weights must have the range of float32, got float16, in which none "
                "above 65504 exists. Trainer(precision='16-true') converts them as it "
                "does the data: use '16-mixed' or 'bf16-true'."
            )
        return self.data, self.index, self.weight

    def pin_memory(self) -> "SampledBatch":
        """Pin the tensors in it, as a loader with ``pin_memory=True`` asks for."""
        data = _walk(self.data, lambda r: r.pin_memory() if _is_tensor(r) else r)
        return SampledBatch(data, self.index.pin_memory(), self.weight.pin_memory())


def _is_tensor(rows: Any) -> bool:
    return isinstance(rows, Tensor)


def _is_rows(node: Any) -> bool:
    """Whether this is a list with one plain value per example, such as file names."""
    return (
        (isinstance(node, list) or type(node) is tuple)  # not the fields of a record
        and len(node) > 0
        and all(isinstance(item, _PLAIN) for item in node)
    )


def _walk(node: Any, leaf: Callable[[Any], Any]) -> Any:
    """Rebuild a batch with ``leaf`` applied to whatever has one row per example."""
    if isinstance(node, (Tensor, np.ndarray)):
        return leaf(node) if node.ndim else node
    if _is_rows(node):
        return leaf(node)
    if isinstance(node, _PLAIN):
        return node
    if isinstance(node, tuple) and type(node) is not tuple:  # a NamedTuple
        return type(node)(*(_walk(item, leaf) for item in node))
    if isinstance(node, (list, tuple)):
        return type(node)(_walk(item, leaf) for item in node)
    if isinstance(node, MutableMapping):
        changed = _copy(node)
        for key, value in node.items():
            changed[key] = _walk(value, leaf)
        return changed
    if isinstance(node, Mapping):
        return {key: _walk(value, leaf) for key, value in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        record = copy.copy(node)
        for field in dataclasses.fields(node):
            value = _walk(getattr(node, field.name), leaf)
            object.__setattr__(record, field.name, value)  # frozen ones too
        return record
    raise TypeError(
        "A batch must be built of tensors, arrays, lists, tuples, mappings and "
        f"dataclasses, got a {type(node).__qualname__} in it. Pass `index_fn=`, "
        "which picks examples from such a batch."
    )


def _copy(mapping: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
    """Copy a mapping and not its values; ``copy.copy`` of any may share its items."""
    if isinstance(mapping, (dict, UserDict)):
        return copy.copy(mapping)
    return copy.deepcopy(mapping, {id(value): value for value in mapping.values()})


def batch_size(batch: Any) -> int:
    """Count the examples of a batch: the leading size that all its parts share.

    Args:
        batch: Tensors with the examples along dimension 0, or lists with one plain
            value per example, nested in lists, tuples, NamedTuples, mappings and
            dataclasses. Scalars do not count.

    Raises:
        TypeError: If the batch holds an object of an unknown kind, or a nested or
            sparse tensor.
        ValueError: If nothing in it has a leading dimension, or the leading sizes
            differ.

    Example:
        >>> import torch
        >>> batch_size({"x": torch.zeros(4, 3), "name": ["a", "b", "c", "d"]})
        4
    """
    sizes: list[int] = []
    _walk(batch, lambda rows: sizes.append(_length(rows)))
    if len(set(sizes)) != 1:
        raise ValueError(
            "All parts of a batch must have one row per example, got leading sizes "
            f"{sizes or 'none'}. Put the examples along dimension 0, or pass "
            "`index_fn=`, which counts and picks examples."
        )
    return sizes[0]


def _length(rows: Any) -> int:
    """Count rows; refuse a tensor of whose rows some cannot be picked."""
    if _is_tensor(rows) and (rows.is_nested or rows.layout != torch.strided):
        kind = "nested" if rows.is_nested else str(rows.layout)
        raise TypeError(
            "Tensors of a batch must be dense, with one row per example to pick from, "
            f"got a {kind} one. Pad the examples, or pass `index_fn=`, which counts "
            "and picks them."
        )
    return len(rows)


def leaves(batch: Any) -> list[Any]:
    """List whatever has one row per example, in a fixed order."""
    found: list[Any] = []
    _walk(batch, found.append)
    return found


def with_leaves(batch: Any, rows: Sequence[Any]) -> Any:
    """Return a batch of the same structure with other rows, as `leaves` lists them."""
    remaining = iter(rows)
    return _walk(batch, lambda _: next(remaining))


def join(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Put the leaves of several batches of one structure one after the other.

    Raises:
        ValueError: If two cannot be joined, as their examples differ in shape.
    """
    return [_joined(parts) for parts in zip(*rows, strict=True)]


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], (list, tuple)):
        return [item for part in parts for item in part]
    arrays = isinstance(parts[0], np.ndarray)
    try:
        return np.concatenate(parts) if arrays else torch.cat(list(parts))
    except (RuntimeError, ValueError) as problem:
        shapes = sorted({str(tuple(part.shape[1:])) for part in parts})
        raise ValueError(
            "Examples of different batches must have one shape to be trained on "
            f"together, got {' and '.join(shapes)}. Collate to a fixed size."
        ) from problem


def rebuild(batch: Any, *, copies: bool = False) -> Any:
    """Return the same tensors, or copies, in new containers that may be changed."""
    return _walk(batch, lambda r: r.clone() if copies and _is_tensor(r) else r)


def versions(batch: Any) -> list[int]:
    """Return how often each tensor of a batch was written to in place."""
    found: list[int] = []
    _walk(batch, lambda r: found.append(r._version) if _counts(r) else None)
    return found


def _counts(rows: Any) -> bool:
    return isinstance(rows, Tensor) and not rows.is_inference()


def take(batch: Any, indices: Int[Tensor, " b"]) -> Any:
    """Return a batch of the same structure with the examples at ``indices``.

    Args:
        batch: As `batch_size` describes; it is left unchanged.
        indices: Positions of shape ``(b,)``, on the device of the batch; may repeat.

    Raises:
        TypeError: If the batch holds an object of an unknown kind.

    Example:
        >>> import torch
        >>> take([torch.tensor([5, 6, 7]), ("a", "b", "c")], torch.tensor([2, 0]))
        [tensor([7, 5]), ('c', 'a')]
    """

    def pick(rows: Any) -> Any:
        if isinstance(rows, Tensor):
            return rows[indices.to(rows.device)]  # keeps the memory format
        if isinstance(rows, np.ndarray):
            return rows[indices.cpu().numpy()]
        picked = [rows[i] for i in indices.tolist()]
        return tuple(picked) if isinstance(rows, tuple) else picked

    return _walk(batch, pick)
