"""Measuring draws from one set of examples, by the library's own parts.

Shapes: ``B`` examples, ``b`` of which are drawn, ``P`` parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from lightning import LightningModule, Trainer
from torch import Tensor

from lightning_is import host
from lightning_is.experiments.variance.closed_form import expected_square
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.draws import (
    ORACLE,
    UNIFORM,
    Arm,
    arms,
    scorers,
)
from lightning_is.experiments.variance.preconditions import (
    plain_settings,
    refuse_trainer,
)
from lightning_is.experiments.variance.record import Measurement, Row
from lightning_is.fidelity import Checks
from lightning_is.inspection import Inspector
from lightning_is.monitor import Stopwatch
from lightning_is.runner import StepRunner
from lightning_is.sampling import check_scores, tau
from lightning_is.sampling.numerics import precise
from lightning_is.sampling.randomness import draw_generator
from lightning_is.scoring import HeadTap, Scored, Scorer
from lightning_is.scoring.upper_bound import refuse_silence
from lightning_is.scoring_pass import ScoringPass

Tell = Callable[[str], None]
"""Is told what is being measured."""


@final
class Measurer:
    """Scores examples, draws some of them, and compares gradients.

    Scores, draws and weights are made by the parts that `ImportanceSamplingCallback`
    is made of. Every gradient is that of the user's ``training_step``, with dropout off
    and batch normalisation by its running statistics, so that examples do not depend on
    one another. Nothing of the fit changes.

    Args:
        trainer: Runs the fit, on one device.
        module: The user's.
        batch: The ``B`` examples, on the device.
        design: What is measured.

    Attributes:
        device: That all is computed on.

    Raises:
        RuntimeError: If something in the fit does not work with importance sampling.
        ValueError: If the loss is no mean of what each example adds.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        batch: Any,
        design: Design,
    ) -> None:
        refuse_trainer(trainer)
        host.refuse_unsupported(trainer, module)
        self._trainer, self._batch, self._design = trainer, batch, design
        self._settings = plain_settings(design.batch_size)
        self._examples = self._settings.count(batch)
        self._runner = StepRunner(trainer, module, self._settings)
        self.device = self._runner.device
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._arms = arms(design.distribution)
        self._tap = self._tapped(module)

    def _tapped(self, module: LightningModule) -> HeadTap:
        """Find the head, and refuse losses of which no draw gives the gradient."""
        inspector = Inspector(module, self._settings, self._runner)
        tap = inspector.prepare(self._batch, self._examples)
        if tap is None:
            raise RuntimeError(
                "Measuring gradients needs the loss of a batch, got None from "
                "`training_step`. Return the loss."
            )
        tap.detach()
        if inspector.loss not in ("mean", "unknown"):
            raise ValueError(
                "The loss must be a mean over the examples of a batch, each computed "
                f"on its own, got one found to be of the kind `{inspector.loss}`. Use "
                '`reduction="mean"`, and no normalisation over the batch.'
            )
        return tap

    def rehearse(self) -> None:
        """Score two examples in every way, and keep nothing of it.

        A step that gradient norms cannot be taken of shows here, before a long run.
        """
        few = min(2, self._examples)
        some = self._settings.take(self._batch, torch.arange(few, device=self.device))
        with self._watching():
            for scorer in scorers(self._design.norms).values():
                self._scored(scorer, some, few)

    def measure(self, step: int, tell: Tell = lambda _: None) -> Measurement:
        """Draw by every score and selection, and compare with the whole gradient.

        Args:
            step: Optimizer steps so far; draws depend on it and the seed alone.
            tell: Is told what is being done.
        """
        with self._watching():
            return self._measured(step, tell)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._tap.attach()
        try:
            yield
        finally:
            self._tap.detach()

    def _measured(self, step: int, tell: Tell) -> Measurement:
        scored = {}
        for name, scorer in scorers(self._design.norms).items():
            tell(f"scoring by {name}")
            scored[name] = self._scored(scorer, self._batch, self._examples)
        scores = {name: found.scores for name, found in scored.items()}
        chances = {name: self._design.distribution(s) for name, s in scores.items()}
        tell("gradient of all")
        whole = self._whole_gradient()
        return Measurement(
            step=step,
            loss=float(scored[ORACLE].loss),
            norm=float(whole.norm()),
            probabilities={name: each.cpu() for name, each in chances.items()},
            taus={name: float(tau(each)) for name, each in scores.items()},
            rows=self._rows(step, scores, whole, tell),
        )

    def _rows(
        self, step: int, scores: Mapping[str, Tensor], whole: Tensor, tell: Tell
    ) -> tuple[Row, ...]:
        """Draw in every way."""
        norms, norm, rows = scores[ORACLE], float(whole.norm()), []
        scores = {UNIFORM: torch.ones_like(norms), **scores}
        for number, arm in enumerate(self._arms):
            tell(f"{arm.selection} draws by {arm.score}")
            by, first = scores[arm.score], step * len(self._arms) + number
            squares = self._squares(arm, by, whole, first * self._design.repeats)
            size = self._design.batch_size
            expected = expected_square(
                arm.plan, by, norms=norms, whole=norm, batch_size=size
            )
            rows.append(Row(arm.selection, arm.score, squares, expected))
        return tuple(rows)

    def _scored(self, scorer: Scorer, batch: Any, examples: int) -> Scored:
        """Score examples as the callback would, in parts of ``b``.

        Raises:
            ValueError: If a score is NaN, infinite or negative.
        """
        settings = replace(self._settings, scorer=scorer)
        watch = Stopwatch(self.device)
        scoring = ScoringPass(self._trainer, settings, self._runner, Checks(), watch)
        found = scoring.run(self._tap, batch, examples, update_statistics=False)
        if found is None:
            raise RuntimeError(
                "Measuring gradients needs the loss of every batch, got None from "
                "`training_step`. Return the loss."
            )
        check_scores(found.scores)
        return found

    def _squares(
        self, arm: Arm, scores: Float[Tensor, " B"], whole: Tensor, first: int
    ) -> tuple[float, ...]:
        """Return the squared distances of some draws, of which one is the first."""
        design, found = self._design, []
        for counter in range(first, first + design.repeats):
            generator = draw_generator(design.seed, 0, counter)
            drawn = arm.plan.draw(scores, design.batch_size, generator=generator)
            gradient = self._gradient(drawn.indices, drawn.weights)
            found.append((gradient - whole).square().sum())
        squares: list[float] = torch.stack(found).tolist()
        return tuple(squares)

    def _whole_gradient(self) -> Float[Tensor, " P"]:
        """Return the mean gradient of all examples, no more of which run than drawn."""
        rows = torch.arange(self._examples, device=self.device)
        total = precise(torch.zeros((), device=self.device))
        for part in torch.split(rows, self._design.batch_size):
            ones = torch.ones(len(part), device=self.device)
            share = len(part) / self._examples
            total = total + share * self._gradient(part, ones)
        return total

    def _gradient(
        self, rows: Int[Tensor, " b"], weights: Float[Tensor, " b"]
    ) -> Float[Tensor, " P"]:
        """Return the gradient of the weighted mean loss of some examples."""
        part = self._settings.take(self._batch, rows)
        context, weighting = self._runner.traceless(), self._tap.weighting(weights)
        with torch.enable_grad(), context, weighting:
            loss = self._runner.loss(part).mean()
            refuse_silence(self._tap.has_fired)
            found = torch.autograd.grad(
                loss, self._parameters, allow_unused=True, materialize_grads=True
            )
        return precise(torch.cat([gradient.reshape(-1) for gradient in found]))
