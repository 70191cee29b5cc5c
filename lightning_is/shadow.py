"""Standing in for a method of one object, and leaving it as it was."""

from collections.abc import Callable
from typing import Any, final


@final
class Shadow:
    """Replaces a method of one object, until undone."""

    def __init__(
        self, target: object, name: str, replacement: Callable[..., Any]
    ) -> None:
        self.original: Callable[..., Any] = getattr(target, name)
        self._own, self._name = vars(target), name
        self._before = self._own.get(name)
        self._own[name] = replacement

    def undo(self) -> None:
        """Put the method back, and an instance attribute that was there before."""
        if self._before is None:
            self._own.pop(self._name, None)
        else:
            self._own[self._name] = self._before
