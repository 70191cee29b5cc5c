"""Drawing from what was loaded: score it, pick, weight."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.monitor import Stopwatch
from lightning_is.runner import StepRunner
from lightning_is.sampling.numerics import even_unless_finite
from lightning_is.sampling.randomness import draw_generator
from lightning_is.sampling.selection import without_replacement
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring.upper_bound import refuse_silence
from lightning_is.scoring_pass import ScoringPass
from lightning_is.settings import Settings
from lightning_is.state import State
from lightning_is.step import Step


@final
class Drawer:
    """Scores batches and draws from them, as the settings say.

    Args:
        trainer: Runs the fit.
        settings: Of the callback.
        runner: Runs the user's step without a trace.
        state: Seed and number of draws, and checks of scores, updated in place.
        watch: Measures scoring.

    Attributes:
        scoring: Scores.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: Settings,
        runner: StepRunner,
        state: State,
        watch: Stopwatch,
    ) -> None:
        self._trainer, self._settings = trainer, settings
        self._runner, self._progress, self._watch = runner, state.draws, watch
        self.scoring = ScoringPass(*(trainer, settings, runner, state.checks, watch))
        self._kept: deque[_Part] = deque()
        self._left = state.kept  # by a checkpoint, without their presample
        self._parts: int | None = None

    def generator(self) -> torch.Generator:
        """Make the generator of the next draw."""
        self._progress.draws += 1
        rank = self._trainer.global_rank
        return draw_generator(self._progress.seed, rank, self._progress.draws - 1)

    @contextmanager
    def training(self, step: Step, tap: HeadTap, *, watched: bool) -> Iterator[None]:
        """Train on a batch under its weights; watch an ordinary one if asked to."""
        tap.examples = step.examples
        with ExitStack() as stack:
            stack.enter_context(self._runner.training())
            if step.weights is not None:
                stack.enter_context(tap.weighting(step.weights))
            if step.is_sampled or step.is_scored:
                # The scoring pass took them in, of everything that was loaded.
                frozen = self.scoring.sees_everything
                statistics = self._runner.context.frozen_statistics(active=frozen)
                stack.enter_context(statistics)
            # A closure may be evaluated again, at other parameters.
            unread = not step.is_sampled and step.scores is None
            if unread and watched and self._settings.per_sample_loss is None:
                step.read = stack.enter_context(self._settings.scorer.observing(tap))
            yield

    def read(self, step: Step, tap: HeadTap) -> None:
        """Read the scores that the backward pass of an ordinary step left behind.

        Raises:
            RuntimeError: If the step had weights, and no head ran to apply them.
        """
        if step.weights is not None:
            refuse_silence(tap.has_fired)
        if step.read is not None:
            tap.scale = host.gradient_scale(self._trainer)
            step.scores = step.read(step.examples)
            step.read = None

    def probe(self, step: Step, tap: HeadTap, batch: Any) -> bool:
        """Score an ordinary step apart from it; return whether that could be done."""
        size = step.examples
        scored = self.scoring.run(tap, batch, size, update_statistics=False)
        step.scores = None if scored is None else scored.scores
        return scored is not None

    @property
    def parts(self) -> int:
        """Batches that are drawn from one presample."""
        if self._parts is None:
            self._parts = host.steps_of_a_presample(self._trainer)
        return self._parts

    def sample(self, step: Step, tap: HeadTap, batch: Any, wanted: int) -> Any:
        """Score a presample, draw ``wanted`` from it, and arrange for the weights."""
        start, size = self._watch.mark(), step.examples
        with host.profiled(self._trainer, "score"):
            scored = self.scoring.run(tap, batch, size, update_statistics=True)
        self.scoring.check(tap, batch, scored, wanted)
        if scored is None:
            return batch if self.parts == 1 else self.subset(step, batch, wanted)
        plan, before = self._settings.plan, step.weights
        scores = scored.scores if before is None else scored.scores * before
        counts = self._expected_counts(scores, wanted * self.parts)
        generator = self.generator()
        drawn = plan.pick(counts, wanted * self.parts, generator=generator)
        weights = drawn.weights * self._rescaling(size, wanted)
        if before is not None:
            weights = weights * before[drawn.indices]
        step.drawn_from = scores
        step.scores = scored.scores
        step.loss = scored.loss if before is None else None
        step.is_sampled = True
        found = self._shared_out(step, batch, drawn.indices, weights, generator)
        step.scoring = (start, self._watch.mark())
        return found

    def must_skip(self, scores: Tensor) -> bool:
        """Whether scores are of no use, and that is forgiven; waits for the device."""
        return self._settings.forgives and not bool(torch.isfinite(scores).all())

    def _expected_counts(self, scores: Tensor, wanted: int) -> Tensor:
        """Return the plan's; even ones where scores are not finite, if that may be."""
        plan = self._settings.plan
        if not self._settings.forgives:
            return plan.expected_counts(scores, wanted)
        kept, finite = even_unless_finite(scores)
        counts = plan.expected_counts(kept, wanted)
        # A plan may rank even scores by their position.
        return torch.where(finite, counts, wanted / len(scores))

    def _shared_out(
        self,
        step: Step,
        batch: Any,
        indices: Tensor,
        weights: Tensor | None,
        generator: torch.Generator,
    ) -> Any:
        """Share what was drawn out among batches; return the first, keep the others."""
        scores, drawn = step.scores, step.is_sampled
        parts = [_Part(batch, indices, weights, drawn, scores)]
        if self.parts > 1:
            # A selection may list them in any order: each batch gets any of them.
            order = torch.randperm(len(indices), generator=generator).to(
                indices.device, non_blocking=True
            )
            parts = [
                _Part(
                    *(batch, indices[some]),
                    None if weights is None else weights[some],
                    *(drawn, scores),
                )
                for some in order.chunk(self.parts)
            ]
        self._kept = deque(parts[1:])
        return self._used(step, parts[0])

    def waiting(self) -> list[Any]:
        """List what is kept, but for the presample, in tensors and plain types."""
        return self._left or [list(part[1:]) for part in self._kept]

    def keeps_for(self, batch: Any, examples: int) -> bool:
        """Whether a batch stands in for one that is kept."""
        if self._left:
            self._take_up(batch)
            return bool(self._kept)
        if examples > 1 and self._kept:
            # The epoch ended before they were used, or no more are wanted.
            self._kept.clear()
            self._parts = None
        return bool(self._kept)

    def _take_up(self, presample: Any) -> None:
        """Go on with what a checkpoint left, if its presample was loaded once more."""
        sampler, device = host.presample_sampler(self._trainer), self._runner.device
        if sampler is not None and sampler.epoch.loads_again:
            rows = [[_moved(each, device) for each in part] for part in self._left]
            self._kept = deque(_Part(presample, *row) for row in rows)
        self._left = []

    def use_kept(self, step: Step, tap: HeadTap) -> Any:
        """Return the next batch of an earlier presample."""
        step.is_kept = True
        part = self._kept.popleft()
        if part.scores is not None and not self._kept:
            self._check_age(tap, part, part.scores)
        return self._used(step, part)

    def _check_age(self, tap: HeadTap, part: "_Part", scores: Tensor) -> None:
        """See whether scores still serve for the last batch drawn by them."""
        size, parts = len(part.indices), self.parts
        self.scoring.check_age(tap, part.batch, scores, size, parts)
        if not self.scoring.may_age:
            host.score_every_step(self._trainer)

    def _used(self, step: Step, part: "_Part") -> Any:
        step.weights, step.is_sampled = part.weights, part.is_sampled
        step.examples = len(part.indices)
        return self._settings.take(part.batch, part.indices)

    def _rescaling(self, loaded: int, wanted: int) -> float:
        """Make up for a summed loss, which has fewer terms when fewer are drawn."""
        if not self.scoring.sums.trained:
            return 1.0
        return self.scoring.chunking.ordinary(loaded) / wanted

    def subset(self, step: Step, batch: Any, wanted: int) -> Any:
        """Take a uniform batch out of a presample that came while the gate is shut."""
        size, drawn = step.examples, wanted * self.parts
        even = torch.full((size,), 1 / size, device=self._runner.device)
        generator = self.generator()
        indices = without_replacement(even, drawn, generator=generator).indices
        weights = None if step.weights is None else step.weights[indices]
        if step.index is not None:
            step.index = step.index[indices.to(step.index.device)]
        return self._shared_out(step, batch, indices, weights, generator)


def _moved(part: Any, device: torch.device) -> Any:
    return part.to(device) if isinstance(part, Tensor) else part


class _Part(NamedTuple):
    """A batch that was drawn from a presample."""

    batch: Any
    indices: Tensor
    weights: Tensor | None
    is_sampled: bool
    scores: Tensor | None  # of the whole presample
