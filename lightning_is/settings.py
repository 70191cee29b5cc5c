"""What the user asked for, checked, and what survives a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_is.arguments import check_acceptance, check_kinds
from lightning_is.data.batch import batch_size, take
from lightning_is.data.source import IndexSource
from lightning_is.precision import ScorePrecision
from lightning_is.sampling.efficiency import AdaptiveSize, EfficiencyGate
from lightning_is.sampling.gate import Gate
from lightning_is.sampling.gates import NeverOpen
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.sampling.window import Window
from lightning_is.scoring.context import ScoreMode
from lightning_is.scoring.gradient_norm import GradientNorm
from lightning_is.scoring.scorer import Scorer

Head = str | nn.Module | Sequence[str | nn.Module]
ExampleLosses = Callable[[LightningModule, Any], Tensor]
IndexFunction = Callable[[Any, Tensor | None], Any]
WhenClosed = Literal["all", "subset"]
BadScores = Literal["skip", "raise"]


@dataclass(frozen=True)
class Settings:
    """The arguments of `ImportanceSamplingCallback`, which explains them.

    Raises:
        TypeError: If one is of the wrong kind.
        ValueError: If one is out of range.
    """

    batch_size: int | None
    scorer: Scorer
    plan: ImportancePlan
    when_closed: WhenClosed
    head: Head | None
    per_sample_loss: ExampleLosses | None
    index_fn: IndexFunction | None
    score_mode: ScoreMode
    scale_factor: float
    score_precision: ScorePrecision | None = None
    proxy: LightningModule | None = None
    bad_scores: BadScores = "skip"
    score_chunk_size: int | None = None
    report: bool = True

    def __post_init__(self) -> None:
        check_kinds(vars(self))
        size = 1 if self.batch_size is None else self.batch_size
        if not isinstance(size, int) or size is True or size < 1:
            raise ValueError(
                f"`batch_size` must be a whole number of at least 1, got "
                f"{self.batch_size!r}. A quarter of the loader's is a good start."
            )
        chunk = 1 if self.score_chunk_size is None else self.score_chunk_size
        if not isinstance(chunk, int) or chunk is True or chunk < 1:
            raise ValueError(
                "`score_chunk_size` must be a whole number of at least 1, got "
                f"{chunk!r}. None scores as many at a time as an ordinary step has."
            )
        if self.when_closed not in ("all", "subset"):
            raise ValueError(
                f'`when_closed` must be "all" or "subset", got {self.when_closed!r}. '
                '"all" trains on whatever was loaded.'
            )
        if self.score_mode not in ("eval", "train"):
            raise ValueError(
                f'`score_mode` must be "eval" or "train", got {self.score_mode!r}. '
                '"eval" scores without dropout noise.'
            )
        if not 0 < self.scale_factor <= 1:
            raise ValueError(
                f"`scale_factor` must be in (0, 1], got {self.scale_factor}. 0.5 "
                "scores images of half the height and width; 1 leaves them."
            )
        if self.score_precision not in (None, *get_args(ScorePrecision)):
            raise ValueError(
                '`score_precision` must be "auto", "bf16", "fp16" or None, got '
                f"{self.score_precision!r}. None scores in the Trainer's precision."
            )
        if self.bad_scores not in ("skip", "raise"):
            raise ValueError(
                f'`bad_scores` must be "skip" or "raise", got {self.bad_scores!r}. '
                '"skip" goes on without the scores of such a step.'
            )
        if self.index_fn is not None and self.scale_factor < 1:
            raise ValueError(
                "`scale_factor` looks for images in the batch by itself, got an "
                "`index_fn` for batches only you can take apart. Drop one of them."
            )

    def check_parts(
        self,
        gate: Gate | None,
        source: IndexSource | None,
        acceptance: LossPercentile | None,
        plan: ImportancePlan | None,
    ) -> None:
        """Refuse parts, as the user gave them, that do not go together.

        Raises:
            TypeError: If one is no such part.
            ValueError: If so.
        """
        check_kinds({"gate": gate, "source": source, "acceptance": acceptance})
        nobody = self.batch_size is None and source is None and acceptance is None
        sizes = nobody if gate is None else gate.chooses_size  # by the default gate
        draws = self.batch_size is not None or acceptance is not None or sizes
        if not draws and source is None:
            raise ValueError(
                "Someone must choose how many examples to train on, got a "
                f"{type(gate).__name__}, which does not, and no `batch_size`. Pass "
                "`batch_size=32` to backpropagate 32 examples of every batch, or "
                "`gate=AdaptiveSize()`."
            )
        if not draws and gate is not None:
            raise ValueError(
                "A gate says when to draw from what was loaded, got one with a source "
                "alone, which chooses what to load. Give `PassSource` a `start` and an "
                "`end` instead, or pass `batch_size` to draw as well."
            )
        if sizes and self.batch_size is not None:
            raise ValueError(
                f"{type(gate).__name__} chooses how many examples to train on, got "
                f"`batch_size={self.batch_size}` as well. Drop one of them."
            )
        if self.when_closed == "subset" and self.batch_size is None:
            raise ValueError(
                "A closed gate takes a subset of `batch_size` examples, got none. Pass "
                'it, or leave `when_closed="all"`.'
            )
        planned = plan is not None
        if planned and (acceptance is not None or not draws):
            raise ValueError(
                "A `plan` is one of draws from what was loaded, got it where there are "
                "none. Pass `batch_size` to draw, or drop it."
            )
        if source is not None and isinstance(self.scorer, GradientNorm):
            raise ValueError(
                "A source needs the scores that every step leaves behind, got "
                "GradientNorm, whose steps leave another score, the upper bound. Pass "
                "`scorer=UpperBound()` or `Loss()`."
            )
        if acceptance is not None:
            check_acceptance(source, self.batch_size, self.index_fn)

    def default_gate(
        self, source: IndexSource | None, acceptance: LossPercentile | None
    ) -> Gate:
        """Return the gate of a user who gave none."""
        if acceptance is not None:
            return Window()
        if self.batch_size is not None:
            return EfficiencyGate()
        return AdaptiveSize() if source is None else NeverOpen()

    @property
    def savings(self) -> list[str]:
        """What makes scores cheaper than the user's step, by the argument's name."""
        used = {
            "`scale_factor`": self.scale_factor < 1,
            "`score_precision`": self.score_precision is not None,
            "`proxy`": self.proxy is not None,
        }
        return [name for name, is_used in used.items() if is_used]

    @property
    def reduces(self) -> bool:
        """Whether something smaller than what is trained on, or by, is scored."""
        return self.scale_factor < 1 or self.proxy is not None

    @property
    def forgives(self) -> bool:
        """Whether steps whose scores are not finite are skipped."""
        return self.bad_scores == "skip"

    def wanted(self, loaded: int) -> int:
        """Examples to train on of those loaded, as far as the user said."""
        return loaded if self.batch_size is None else self.batch_size

    def count(self, batch: Any) -> int:
        """Count the examples of a batch, by the user's function if there is one.

        Raises:
            TypeError: If that function does not count.
            ValueError: If the parts of the batch disagree, or it is empty.
        """
        size = batch_size(batch) if self.index_fn is None else self._counted(batch)
        if size < 1:
            raise ValueError(
                f"A batch must hold at least one example, got {size}. Leave empty ones "
                "out where they are collated."
            )
        return size

    def _counted(self, batch: Any) -> int:
        assert self.index_fn is not None  # noqa: S101  or nobody would ask
        size = self.index_fn(batch, None)
        if not isinstance(size, int):
            raise TypeError(
                "`index_fn(batch, None)` must return the number of examples in the "
                f"batch, got a {type(size).__name__}. Start it with `if indices is "
                "None: return ...`."
            )
        return size

    def take(self, batch: Any, indices: Tensor) -> Any:
        """Pick examples from a batch, by the user's function if there is one."""
        return (self.index_fn or take)(batch, indices)
