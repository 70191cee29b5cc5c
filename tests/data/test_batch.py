"""Batches of every kind are counted and taken apart, and left as they were."""

import copy
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_is.data import SampledBatch, batch_size, take

N = 4


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Record:
    x: Any
    y: Any


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    y: Any


class Encoding(UserDict):
    """Like the batches of a tokeniser: a mapping with attributes of its own."""

    def __init__(self, data: Any, source: str) -> None:
        super().__init__(data)
        self.source = source


class Store(MutableMapping):
    """A mapping whose plain copy shares its items with the original."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.items_of_mine = items

    def __getitem__(self, key: str) -> Any:
        return self.items_of_mine[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.items_of_mine[key] = value

    def __delitem__(self, key: str) -> None:
        del self.items_of_mine[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_of_mine)

    def __len__(self) -> int:
        return len(self.items_of_mine)


def x() -> Tensor:
    return torch.arange(N * 3.0).view(N, 3)


def y() -> Tensor:
    return torch.tensor([10, 11, 12, 13])


STRUCTURES = {
    "list": lambda: [x(), y()],
    "tuple": lambda: (x(), y()),
    "NamedTuple": lambda: Pair(x(), y()),
    "dict": lambda: {"x": x(), "y": y()},
    "OrderedDict": lambda: OrderedDict(y=y(), x=x()),
    "UserDict": lambda: UserDict({"x": x(), "y": y()}),
    "UserDict with attributes": lambda: Encoding({"x": x()}, source="text"),
    "other mutable mapping": lambda: Store({"x": x(), "y": y()}),
    "read-only mapping": lambda: MappingProxyType({"x": x(), "y": y()}),
    "dataclass": lambda: Record(x(), y()),
    "frozen dataclass": lambda: Frozen(x(), y()),
    "frozen dataclass with slots": lambda: Slotted(x(), y()),
    "bare tensor": x,
    "array": lambda: x().numpy(),
    "strings": lambda: ["a", "b", "c", "d"],
    "tuple of strings": lambda: ("a", "b", "c", "d"),
    "numbers": lambda: [x(), [1, 2.0, True, None]],
    "numbers of NumPy": lambda: [x(), list(np.arange(N, dtype=np.int32))],
    "bytes": lambda: {"x": x(), "raw": [b"a", b"b", b"c", b"d"]},
    "scalars beside": lambda: {
        "x": x(),
        "epoch": 3,
        "name": "train",
        "rate": torch.tensor(0.5),
        "norm": np.array(2.0),
        "share": np.float32(0.25),
        "missing": None,
        "flag": True,
    },
    "scalars in a NamedTuple": lambda: {"x": x(), "meta": Pair(1.5, "train")},
    "empty containers beside": lambda: {"x": x(), "list": [], "dict": {}, "tuple": ()},
    "nested": lambda: [
        {"x": x(), "more": (y(), Pair(x(), ["a", "b", "c", "d"]))},
        Record(Frozen(x(), y()), [y().numpy(), 7]),
    ],
    "sampled batch": lambda: SampledBatch([x()], y(), torch.rand(N)),
}


def expected(node: Any, indices: list[int]) -> Any:
    """What is left of a batch, by its own plain rules, row by row."""
    if isinstance(node, Tensor) and node.ndim:
        return torch.stack([node[i] for i in indices])
    if isinstance(node, np.ndarray) and node.ndim:
        return np.stack([node[i] for i in indices])
    if isinstance(node, Pair):
        return Pair(expected(node.x, indices), expected(node.y, indices))
    if isinstance(node, (list, tuple)):
        if len(node) == N and not isinstance(node[0], (Tensor, np.ndarray)):
            return type(node)(node[i] for i in indices)
        return type(node)(expected(item, indices) for item in node)
    if isinstance(node, Mapping):
        return {key: expected(value, indices) for key, value in node.items()}
    if isinstance(node, (Record, Frozen, Slotted)):
        return {name: expected(getattr(node, name), indices) for name in ("x", "y")}
    if isinstance(node, SampledBatch):
        return [expected(part, indices) for part in (node.data, node.index)]
    return node


def same(a: Any, b: Any) -> bool:
    """Compare what `take` gave with what was `expected`."""
    if isinstance(b, Tensor):
        return isinstance(a, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, (Record, Frozen, Slotted)):
        return same(a.x, b["x"]) and same(a.y, b["y"])
    if isinstance(a, SampledBatch):
        return same([a.data, a.index], b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def batch(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_examples_are_counted_in_every_kind_of_batch(batch: Any):
    assert batch_size(batch) == N


@pytest.mark.parametrize(
    "indices",
    [[2, 0], [3], [1, 1, 3], [0, 1, 2, 3, 0, 1]],
    ids=["some", "one", "repeated", "more than there are"],
)
def test_examples_are_taken_from_every_kind_of_batch(batch: Any, indices: list[int]):
    taken = take(batch, torch.tensor(indices))
    assert same(taken, expected(batch, indices))
    assert batch_size(taken) == len(indices)


def test_the_type_of_the_batch_is_kept(batch: Any):
    kept = dict if isinstance(batch, MappingProxyType) else type(batch)
    assert type(take(batch, torch.tensor([0]))) is kept


def test_the_batch_itself_is_left_unchanged(batch: Any):
    untouched = list(range(N))
    before = expected(batch, untouched)
    batch_size(batch)
    assert same(batch, before) or isinstance(batch, MappingProxyType)
    take(batch, torch.tensor([1, 1]))
    assert same(expected(batch, untouched), before)


def test_a_mapping_keeps_the_attributes_of_its_own():
    taken = take(Encoding({"x": x()}, source="text"), torch.tensor([0]))
    assert taken.source == "text"


def test_other_memory_than_the_batch_is_returned():
    original = [x(), y().numpy()]
    taken = take(original, torch.arange(N))
    taken[0].zero_()
    taken[1].fill(0)
    assert torch.equal(original[0], x())
    assert np.array_equal(original[1], y().numpy())


def test_gradients_flow_to_the_rows_taken():
    source = x().requires_grad_()
    take([source], torch.tensor([1, 1]))[0].sum().backward()
    assert source.grad.tolist() == [[0.0] * 3, [2.0] * 3, [0.0] * 3, [0.0] * 3]


def test_taking_nothing_leaves_a_batch_of_none():
    taken = take([x(), ["a", "b", "c", "d"]], torch.tensor([], dtype=torch.int64))
    assert taken[0].shape == (0, 3)
    assert taken[1] == []


@pytest.mark.parametrize(
    ("broken", "sizes"),
    [
        pytest.param([torch.ones(4), torch.ones(3)], r"\[4, 3\]", id="two sizes"),
        pytest.param({"x": torch.ones(4), "n": ["a"]}, r"\[4, 1\]", id="few names"),
        pytest.param([torch.ones(()), 3, "name"], "none", id="no rows"),
        pytest.param([], "none", id="nothing"),
        pytest.param({}, "none", id="no keys"),
    ],
)
def test_a_batch_whose_parts_disagree_is_refused(broken: Any, sizes: str):
    message = rf"one row per example, got leading sizes {sizes}\. .*`index_fn=`"
    with pytest.raises(ValueError, match=message):
        batch_size(broken)


@pytest.mark.parametrize(
    ("unknown", "name"),
    [
        pytest.param(object(), "object", id="object"),
        pytest.param({1, 2}, "set", id="set"),
        pytest.param(Record, "type", id="class of a dataclass"),
        pytest.param(range(4), "range", id="range"),
    ],
)
def test_a_batch_with_unknown_objects_is_refused(unknown: Any, name: str):
    message = rf"mappings and dataclasses, got a {name} in it\. Pass `index_fn=`"
    with pytest.raises(TypeError, match=message):
        batch_size([x(), unknown])
    with pytest.raises(TypeError, match=message):
        take({"x": x(), "more": unknown}, torch.tensor([0]))


def test_a_mapping_that_cannot_be_walked_is_left_whole():
    batch = {"x": x(), "more": object()}
    before = copy.copy(batch)
    with pytest.raises(TypeError, match="got a object"):
        batch_size(batch)
    assert batch == before


leaves = st.sampled_from(["tensor", "array", "names", "scalar"])
shapes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, inner),
    ),
    max_leaves=6,
)


def filled(shape: Any, rows: list[int]) -> Any:
    """Build a batch in which every leaf names the example that it belongs to."""
    if isinstance(shape, list):
        # A leading tensor keeps a list of scalars from reading as one row each.
        return [torch.tensor(rows), *(filled(item, rows) for item in shape)]
    if isinstance(shape, dict):
        return {key: filled(item, rows) for key, item in shape.items()}
    if isinstance(shape, (Pair, Record)):
        return type(shape)(filled(shape.x, rows), filled(shape.y, rows))
    return {
        "tensor": torch.tensor(rows),
        "array": np.array(rows),
        "names": [str(row) for row in rows],
        "scalar": 7,
    }[shape]


def plain(node: Any) -> Any:
    """Reduce a batch to values that can be compared."""
    if isinstance(node, (Tensor, np.ndarray)):
        return node.tolist()
    if isinstance(node, (list, tuple)):
        return [plain(item) for item in node]
    if isinstance(node, dict):
        return {key: plain(item) for key, item in node.items()}
    return [plain(node.x), plain(node.y)] if isinstance(node, Record) else node


@given(shape=shapes, indices=st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_whatever_the_nesting_each_leaf_keeps_the_same_examples(
    shape: Any, indices: list[int]
):
    batch = [torch.arange(5), filled(shape, list(range(5)))]
    assert batch_size(batch) == 5
    taken = take(batch, torch.tensor(indices))
    assert plain(taken) == plain([torch.tensor(indices), filled(shape, indices)])
