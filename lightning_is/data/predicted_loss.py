"""A source that draws by losses which a small model predicts."""

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional
from typing_extensions import override

from lightning_is.data.auxiliary import MOST, Correlation, LossHistories, LossModel
from lightning_is.data.pass_source import PassSource
from lightning_is.data.source import IndexSource, Loading
from lightning_is.sampling.numerics import check_scores, normalise
from lightning_is.sampling.passes import Pass, Shuffled
from lightning_is.sampling.selection import multinomial
from lightning_is.sampling.weights import rescaled_power

_INITIALS = 1 << 40  # in place of a counter, for the weights the model begins with
_PROBES = 256  # examples that all ranks predict alike, to know the mean
_KEEP = 0.9  # of the average, at each draw


@final
class PredictedLoss(IndexSource):
    r"""Draws by the losses that a model, trained alongside, predicts from past ones.

    The network itself is not run to choose a batch. At each draw, uniform candidates
    without repeats get a predicted loss :math:`s`, and the batch is drawn from them,
    with replacement, by :math:`p \propto s + c\,\bar s`, with :math:`\bar s` a moving
    average of the mean prediction. The weights are :math:`(1 / (B p))^k`, rescaled so
    that the total of weighted predictions stays (`rescaled_power`); with ``k = 1`` they
    are unbiased however wrong the predictions, below they stress hard examples. The
    first batches are shuffled passes, shared among the ranks.

    Args:
        presample_size: Candidates of each draw, at most the dataset.
        k: Power of the weights, at most 1.
        smoothing: Added to every prediction, at least 0. It bounds the weights: with
            0.5, and ``adaptive``, those of ``k = 1`` stay below about 3.
        adaptive: Measure ``smoothing`` in mean predictions rather than in losses.
        slots: Past losses the model sees of an example.
        hidden: Size of its layers.
        log: Learn logarithms of losses, for losses of very different sizes.
        learning_rate: Of its optimizer, Adam.
        labels: Gives the class of every example of a dataset, int64 of shape ``(N,)``,
            without loading them; None where there are no classes.
        warmup: Batches drawn uniformly at first.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Katharopoulos & Fleuret, "Biased Importance Sampling for Deep Neural Network
        Training", 2017, arXiv 1706.00043. Only its abstract was read, not its
        algorithm; this follows the authors' program, and an early version of it in the
        uniform beginning. The mean is of other candidates, alike on every rank.

    Example:
        >>> source = PredictedLoss(warmup=0, labels=lambda data: torch.tensor(data))
        >>> source.bind(Loading([0, 1, 1, 0], 4, seed=0, progress=float, rescore=abs))
        >>> drawn = source.draw(2)
        >>> source.observe(drawn.indices, torch.tensor([0.3, 2.0]))
        >>> drawn.weights.shape
        torch.Size([2])
    """

    def __init__(
        self,
        presample_size: int = 2048,
        *,
        k: float = 0.5,
        smoothing: float = 0.5,
        adaptive: bool = True,
        slots: int = 10,
        hidden: int = 32,
        log: bool = False,
        learning_rate: float = 1e-3,
        labels: Callable[[Any], Tensor] | None = None,
        warmup: int = 100,
    ) -> None:
        size, rate = presample_size, learning_rate
        _check("presample_size", size, size >= 1, "at least 1", "2048 is usual.")
        _check("k", k, k <= 1, "at most 1", "1 is unbiased, 0 unweighted.")
        _check("smoothing", smoothing, smoothing >= 0, "at least 0", "0 adds nothing.")
        _check("slots", slots, slots >= 1, "at least 1", "10 is usual.")
        _check("hidden", hidden, hidden >= 1, "at least 1", "32 is usual.")
        _check("learning_rate", rate, rate > 0, "above 0", "0.001 is usual.")
        _check("warmup", warmup, warmup >= 0, "at least 0", "0 leaves it out.")
        self.presample_size, self.k, self.warmup = presample_size, k, warmup
        self.smoothing, self.adaptive, self.labels = smoothing, adaptive, labels
        self.slots, self.hidden, self.log, self.learning_rate = slots, hidden, log, rate
        self._run: _Run | None = None
        self._saved: dict[str, Any] = {}  # until there is a run

    @override
    def bind(self, loading: Loading) -> None:
        classes = None if self.labels is None else _checked(self.labels, loading)
        run, before = _Run(self, loading, classes), self.state_dict()
        if before:
            run.load_state_dict(before)
        self._run, self._saved = run, {}

    @override
    def draw(self, batch_size: int) -> Pass:
        run = self._bound()
        run.draws += 1
        if run.draws <= self.warmup:
            return run.passes.draw(batch_size)
        generator = run.loading.generator(run.draws, shared=False)
        candidates = run.uniform(self.presample_size, generator)
        unit = run.average() if self.adaptive else 1.0
        smooth = run.predict(candidates) + self.smoothing * unit
        probs = normalise(smooth)
        drawn = multinomial(probs, batch_size, generator=generator).indices
        weights = rescaled_power(probs[drawn], smooth[drawn], len(probs), self.k)
        return Pass(candidates[drawn], weights)

    @override
    def observe(self, indices: Int[Tensor, " k"], scores: Float[Tensor, " k"]) -> None:
        check_scores(scores)
        if len(indices):
            self._bound().learn(indices, scores.float().clamp(max=MOST))

    @override
    def metrics(self) -> dict[str, float]:
        """Return how well the predictions of the last batches followed the losses."""
        known = 0.0 if self._run is None else self._run.correlation.value
        return {"is/prediction_correlation": known}

    @override
    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self._run.state_dict() if self._run else self._saved)

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._run is None:
            self._saved = copy.deepcopy(state)
        elif state:
            self._run.load_state_dict(copy.deepcopy(state))

    def _bound(self) -> "_Run":
        if self._run is None:
            raise RuntimeError(
                "A source must be bound to a dataset before it draws or observes. Pass "
                "it to ImportanceSamplingCallback(source=...), which binds it."
            )
        return self._run


class _Run:
    """What a source knows of one dataset: histories, the model, and where it stands."""

    def __init__(
        self, source: PredictedLoss, loading: Loading, labels: Tensor | None
    ) -> None:
        self.loading, self.labels = loading, labels
        self.histories = LossHistories(loading.examples, source.slots)
        self.model = LossModel(
            None if labels is None else int(labels.max()) + 1,
            hidden=source.hidden,
            log=source.log,
            seed=loading.generator(_INITIALS, shared=True).initial_seed(),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), source.learning_rate)
        self.correlation = Correlation()
        self.passes = PassSource(Shuffled())
        self.passes.bind(loading)
        self.warmup, self.draws = source.warmup, 0
        self.mean: float | None = None  # moving average; None before the first

    def uniform(self, wanted: int, generator: Generator) -> Int[Tensor, " k"]:
        """Draw examples without repeats, in a time that the dataset does not raise."""
        examples = self.loading.examples
        if examples < 8 * wanted:
            return torch.randperm(examples, generator=generator)[:wanted]
        found = torch.empty(0, dtype=torch.int64)
        while len(found) < wanted:
            more = torch.randint(examples, (2 * wanted,), generator=generator)
            found = torch.unique(torch.cat([found, more]))
        return found[torch.randperm(len(found), generator=generator)[:wanted]]

    def average(self) -> float:
        """Move the average of the mean prediction on by a draw, and return it."""
        generator = self.loading.generator(self.draws, shared=True)
        mean = float(self.predict(self.uniform(_PROBES, generator)).mean())
        before = mean if self.mean is None else self.mean
        self.mean = _KEEP * before + (1 - _KEEP) * mean
        return self.mean

    def predict(self, indices: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Predict losses from what is known now."""
        return self.model.predict(*self.histories.read(indices), self._of(indices))

    def learn(self, indices: Int[Tensor, " k"], losses: Float[Tensor, " k"]) -> None:
        """Make one step of the model towards losses, and remember them."""
        past = self.histories.read(indices)
        with torch.enable_grad():
            guess = self.model(*past, self._of(indices))
            error = functional.mse_loss(guess, self.model.target(losses))
            self.optimizer.zero_grad()
            torch.autograd.backward(error)
        self.optimizer.step()
        self.correlation.observe(self.model.loss(guess.detach()), losses)
        self.histories.observe(indices, losses)

    def _of(self, indices: Int[Tensor, " k"]) -> Int[Tensor, " k"] | None:
        return None if self.labels is None else self.labels[indices]

    def state_dict(self) -> dict[str, Any]:
        return {
            "histories": self.histories.state_dict(),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "correlation": self.correlation.moments,
            "passes": self.passes.state_dict() if self.draws < self.warmup else None,
            "draws": self.draws,
            "mean": self.mean,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, which is given away."""
        self.histories.load_state_dict(state["histories"])
        self.model.restore(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.correlation.moments = state["correlation"]
        if state["passes"] is not None:
            self.passes.load_state_dict(state["passes"])
        self.draws, self.mean = int(state["draws"]), state["mean"]


def _checked(labels: Callable[[Any], Tensor], loading: Loading) -> Int[Tensor, " N"]:
    """Return the class of every example."""
    known, integers = torch.as_tensor(labels(loading.dataset)).cpu(), torch.int64
    fits = known.shape == (loading.examples,) and torch.can_cast(known.dtype, integers)
    if fits and bool((known >= 0).all()):
        return known.long()
    least = f", the least {known.min()}" if known.numel() else ""
    raise ValueError(
        f"`labels` must return an integer of at least 0 for each of {loading.examples} "
        f"examples, got {known.dtype} of shape {tuple(known.shape)}{least}. Return "
        "positions of classes, or leave `labels` out."
    )


def _check(name: str, value: int | float, allowed: bool, rule: str, cure: str) -> None:
    if not allowed:
        raise ValueError(f"`{name}` must be {rule}, got {value}. {cure}")
