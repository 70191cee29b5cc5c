"""The precision that scores are computed in: as asked for, or whatever is faster."""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_is import host
from lightning_is.monitor import Stopwatch
from lightning_is.scoring.scorer import Scored
from lightning_is.strategies import shards

ScorePrecision = Literal["auto", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDS = 3  # timings of each, of which the median counts; what comes first warms up
_GAIN = 0.95  # of the time: what saves less is not worth having

Score = Callable[[torch.dtype | None], Scored | None]


@final
class Precision:
    """What scoring computes in, which ``"auto"`` finds out on the first scored batch.

    Scores in bfloat16 have two or three digits, which is as many as a draw needs, and
    cost half as much or less where the processor computes with it. Elsewhere they cost
    several times more, so it is tried, once a run: a resumed one goes on with what was
    found.

    Args:
        asked: By the user; None is the Trainer's own.

    Attributes:
        dtype: What to compute in; None leaves that to the Trainer.
        is_settled: Whether that is known.
        is_found_out: Whether it is up to this class at all.

    Example:
        >>> Precision("bf16").dtype
        torch.bfloat16
    """

    def __init__(self, asked: ScorePrecision | None = None) -> None:
        self.dtype = None if asked is None else DTYPES.get(asked)
        self.is_found_out = asked == "auto"
        self.is_settled = not self.is_found_out

    def settle(self, score: Score | None, watch: Stopwatch) -> None:
        """Score a batch both ways a few times, and stay with the faster one.

        Args:
            score: Scores it with a precision, without a trace, or returns None without
                a loss, which settles nothing; None leaves it to the Trainer.
            watch: Measures both.

        Raises:
            Exception: Whatever goes wrong in full; in bfloat16 it settles the matter.
        """
        full = None if score is None else score(None)
        self.is_settled = score is None or full is not None
        if score is None or full is None:
            return
        try:
            narrow = score(torch.bfloat16)
        except Exception as problem:
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            rank_zero_info(f"Scores are computed in full, not in bfloat16: {reason}")
            return
        if narrow is None or _spoils(full, narrow):
            return
        before, after = _seconds(score, watch)
        if after < _GAIN * before:
            self.dtype = torch.bfloat16

    def state_dict(self) -> dict[str, Any]:
        """Return what was found out, in plain types."""
        narrow = self.dtype is torch.bfloat16
        return {"is_settled": self.is_settled, "is_narrow": narrow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, if it was to be found out here too."""
        if self.is_found_out:
            self.is_settled = state["is_settled"]
            self.dtype = torch.bfloat16 if state["is_narrow"] else None


def can_try(trainer: Trainer, module: LightningModule) -> bool:
    """Whether bfloat16 could be faster, and can be tried without harm.

    Several processes would have to agree, what is compiled would be compiled for both,
    and only the clocks of a CPU and of CUDA tell when work is over.
    """
    alone = trainer.world_size == 1 and not shards(trainer)
    timed = trainer.strategy.root_device.type in ("cpu", "cuda")
    full = trainer.precision == "32-true"
    return alone and timed and full and not host.is_compiled(module)


def _spoils(full: Scored, narrow: Scored) -> bool:
    """Whether scores are not finite that are so in full."""
    return bool((full.scores.isfinite() & ~narrow.scores.isfinite()).any())


def _seconds(score: Score, watch: Stopwatch) -> list[float]:
    """Return how long scores in full and in bfloat16 take, by medians in turn."""
    rounds = []
    for _ in range(_ROUNDS):
        marks = [watch.mark()]
        for dtype in (None, torch.bfloat16):
            score(dtype)
            marks.append(watch.mark())
        rounds.append([watch.seconds(*pair) for pair in pairwise(marks)])
    return [median(times) for times in zip(*rounds, strict=True)]
