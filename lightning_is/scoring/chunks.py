"""Scoring a batch a few examples at a time, where all at once would take too much."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_is.scoring.scorer import Scored, Scorer, Step
from lightning_is.scoring.tap import HeadTap

_NEEDS_TWO = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Sums(NamedTuple):
    """What of a step is a sum over the examples of its batch, and no mean.

    Attributes:
        trained: The loss that is trained on.
        scored: The loss that is scored by: the same, or the user's own.
        scores: The score of an example, which so grows with their number.
    """

    trained: bool = False
    scored: bool = False
    scores: bool = False


@dataclass(frozen=True)
class Chunked:
    """Scores a batch in parts, as the whole would be scored.

    Scores and loss are those of the whole to rounding, whatever the sizes of the parts,
    if the loss is a mean or a sum over examples computed on their own. Where it is
    divided by something else (class weights, valid tokens), that is of the part; so are
    what couples examples, and the statistics that a layer in train mode normalises by.
    Running statistics take in the average of the parts: together they move once.

    Args:
        scorer: Scores each part.
        count: Of parts, as even as can be. More than there are examples still run as
            many times: other ranks may wait for them.
        sums: What is summed.
        norms: Layers that keep running statistics.
        device: That batches are on; a sharded module may be elsewhere.
    """

    scorer: Scorer
    count: int
    sums: Sums
    norms: Sequence[nn.Module] = ()
    device: torch.device | None = None

    def score(self, step: Step, tap: HeadTap, examples: int) -> Scored:
        """Score a batch, as a `Scorer` does.

        Raises:
            RuntimeError: If batch normalisation would get a single example.
        """
        self._refuse_singles(examples)
        places = torch.arange(examples, device=self.device)
        average, scores, losses = _Average(self.norms), [], []
        for part in places.tensor_split(self.count):
            share = len(part) / examples
            used = part if len(part) else places[:1]
            batch = step.take(step.batch, used)
            found = self.scorer.score(replace(step, batch=batch), tap, len(used))
            found.check(len(used), places.device)
            average.take_in(share)
            grown = share if self.sums.scores and share else 1.0
            scores.append(found.scores[: len(part)] / grown)
            counts = float(share > 0) if self.sums.scored else share
            losses.append(found.loss * counts)
        average.settle()
        return Scored(torch.cat(scores), torch.stack(losses).sum())

    def _refuse_singles(self, examples: int) -> None:
        single = examples // self.count < 2 <= examples
        if single and any(n.training for n in self.norms if isinstance(n, _NEEDS_TWO)):
            raise RuntimeError(
                "Batch normalisation needs two examples at least, got parts of one, as "
                f"{examples} are scored in {self.count} parts. Pass a larger "
                "`score_chunk_size`."
            )


class _Average:
    """Running statistics of several parts, each of which begins with the same ones."""

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        live = [n for n in norms if n.training and n.track_running_stats]
        self._buffers = [buffer for norm in live for buffer in norm.buffers()]
        self._begun = [buffer.clone() for buffer in self._buffers]
        self._sums: list[Tensor] = [torch.zeros_like(b) for b in self._buffers]

    def take_in(self, share: float) -> None:
        """Take in what a part made of them, and begin anew."""
        rows = zip(self._buffers, self._begun, self._sums, strict=True)
        for buffer, begun, total in rows:
            if buffer.is_floating_point():
                total.add_(buffer, alpha=share)
            else:  # counts the passes, of which there will have been one
                total.copy_(buffer)
            buffer.copy_(begun)

    def settle(self) -> None:
        """Leave the average behind."""
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(total)
