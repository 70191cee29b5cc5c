"""Programs that take turns at the machine, so that its drifts hit all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from threading import Semaphore, Thread
from typing import TypeAlias, final


@final
class Turn:
    """The turns of one program: it waits for one, works, and says that it is over.

    Attributes:
        seconds: CPU time of each turn so far.
        is_over: Whether the program has ended.
        error: What it ended with, if that was no good.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.is_over = False
        self.error: BaseException | None = None
        self._granted, self._returned = Semaphore(0), Semaphore(0)
        self._begun = 0.0

    def begin(self) -> None:
        """Let the others work until it is this one's turn; start the clock."""
        self._returned.release()
        self._granted.acquire()
        self._begun = time.process_time()

    def end(self) -> None:
        """Stop the clock; what follows, until the next turn begins, does not count."""
        self.seconds.append(time.process_time() - self._begun)

    def grant(self) -> None:
        """Let the program work until it is ready for its next turn, or ends.

        Raises:
            BaseException: Whatever it raised.
        """
        self._granted.release()
        self._returned.acquire()
        if self.error is not None:
            raise self.error

    def run(self, arm: "Arm") -> None:
        """Run the program, in a thread of its own."""
        self._granted.acquire()
        try:
            arm(self)
        except BaseException as error:  # to be raised where someone sees it
            self.error = error
        finally:
            self.is_over = True
            self._returned.release()


Arm: TypeAlias = Callable[[Turn], None]


def interleaved(arms: Mapping[str, Arm], warm_up: int = 0) -> dict[str, list[float]]:
    """Run programs by turns: forwards, then backwards, then forwards again.

    Each has a thread of its own, but one alone works at any time, so the CPU time of
    the process is that of the program whose turn it is.

    Args:
        arms: By their names; all must take as many turns.
        warm_up: Turns of each that do not count.

    Returns:
        Seconds of CPU time of every turn that counts.

    Example:
        >>> def idle(turn: Turn) -> None:
        ...     for _ in range(3):
        ...         turn.begin()
        ...         turn.end()
        >>> {k: len(v) for k, v in interleaved({"a": idle, "b": idle}, 1).items()}
        {'a': 2, 'b': 2}
    """
    turns = {name: Turn() for name in arms}
    for name, turn in turns.items():
        Thread(target=turn.run, args=(arms[name],), daemon=True).start()
    waiting = list(turns.values())
    while waiting:
        for turn in waiting:
            turn.grant()
        waiting = [turn for turn in reversed(waiting) if not turn.is_over]
    return {name: turn.seconds[warm_up:] for name, turn in turns.items()}


def paired(above: list[float], below: list[float]) -> list[float]:
    """Return the ratio of each pair of turns."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Return the median under a name, and how far the middle half reaches."""
    enough = len(values) > 3
    low, high = quantiles(values, n=4)[::2] if enough else (min(values), max(values))
    return {name: median(values), f"{name} (low)": low, f"{name} (high)": high}
