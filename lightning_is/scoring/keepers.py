"""Things that a pass may change, and how each is put back."""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

_CONTAINERS = (list, deque, dict, OrderedDict, defaultdict, Counter, set)
_INTERNAL = frozenset(vars(nn.Module()))


class Kept(Protocol):
    """Something that a pass may change."""

    key: tuple[nn.Module | None, str]

    def restore(self) -> bool:
        """Put it back; tell whether that changed anything."""
        ...


class PythonStream:
    """The random stream of Python."""

    key: tuple[nn.Module | None, str] = (None, "python")

    def __init__(self) -> None:
        self._state = random.getstate()

    def restore(self) -> bool:
        """Put it back; tell whether that changed anything."""
        moved = random.getstate() != self._state
        random.setstate(self._state)
        return moved


class NumPyStream:
    """The random stream of NumPy's global generator."""

    key: tuple[nn.Module | None, str] = (None, "numpy")

    def __init__(self) -> None:
        self._state = np.random.get_state(legacy=False)  # noqa: NPY002

    def restore(self) -> bool:
        """Put it back; tell whether that changed anything."""
        before, now = self._state, np.random.get_state(legacy=False)  # noqa: NPY002
        np.random.set_state(before)  # noqa: NPY002
        return repr(now) != repr(before) or not np.array_equal(
            now["state"]["key"], before["state"]["key"]
        )


class Attributes:
    """A module's own attributes, and the items of the containers among them."""

    def __init__(self, module: nn.Module) -> None:
        self.key: tuple[nn.Module | None, str] = (module, "")
        self._module = module
        self._saved = dict(module.__dict__)
        self._items = [
            (value, copy.copy(value))
            for name, value in self._saved.items()
            if type(value) in _CONTAINERS and name not in _INTERNAL
        ]

    def restore(self) -> bool:
        """Put them back; tell whether that changed anything."""
        own = self._module.__dict__
        added = own.keys() - self._saved.keys()
        moved = any(own.get(name, own) is not v for name, v in self._saved.items())
        for name in added:
            del own[name]
        own.update(self._saved)
        spilt = [(c, items) for c, items in self._items if not _alike(c, items)]
        for container, items in spilt:
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(items)
            else:
                container.update(items)
        return bool(added or moved or spilt)


class Buffer:
    """A buffer of a module, and its values."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.key: tuple[nn.Module | None, str] = (module, name)
        self._module, self._name = module, name
        self._tensor: Tensor | None = getattr(module, name)
        # Inference tensors count no writes.
        self._counts = self._tensor is not None and not self._tensor.is_inference()
        if self._tensor is not None and self._counts:
            self._version, self._values = self._tensor._version, self._tensor.clone()

    def restore(self) -> bool:
        """Put it back; tell whether that changed anything."""
        module, name = self._module, self._name
        replaced = getattr(module, name) is not self._tensor
        if replaced:
            setattr(module, name, self._tensor)
        if self._tensor is None or not self._counts:
            return replaced
        written = self._tensor._version != self._version
        if written:
            self._tensor.copy_(self._values)
        return replaced or written


def _alike(container: Any, items: Any) -> bool:
    """Whether a container still holds the very same items."""
    if len(container) != len(items):
        return False
    if isinstance(container, dict):
        return all(items.get(k, items) is v for k, v in container.items())
    if isinstance(container, set):
        return bool(container == items)
    return all(a is b for a, b in zip(container, items, strict=True))
