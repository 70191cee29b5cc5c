"""Whether scores that were had more cheaply are worth it: checked now and then."""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, final

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lightning_is.precision import Precision
from lightning_is.sampling.plan import ImportancePlan

_EVERY = 100  # uses: the cost of a check vanishes, what it shows changes slowly
_LEAST = 5  # checks before a judgement
_WINDOW = 21  # that count


def inflation(
    cheap: Tensor,
    full: Tensor,
    plan: ImportancePlan,
    batch_size: int,
    parts: int = 1,
) -> Tensor:
    r"""Return how much noisier a gradient is if drawn by cheap scores.

    .. math:: \frac{m_2 / B + \text{noise}(\pi_{cheap})}
                   {m_2 / B + \text{noise}(\pi_{full})}

    with the second moment :math:`m_2` and both noises by the full scores.

    Args:
        cheap: Scores to draw by, of shape ``(B,)``.
        full: Scores of the same examples to judge by.
        plan: Draws.
        batch_size: Examples drawn.
        parts: Batches that the cheap scores are shared by; they are drawn together.

    Example:
        >>> full = torch.tensor([1.0, 1.0, 8.0, 8.0])
        >>> inflation(full, full, ImportancePlan(), 2)
        tensor(1., dtype=torch.float64)
        >>> bool(inflation(full.flip(0), full, ImportancePlan(), 2) > 2)
        True
    """
    second = full.double().square().mean() / len(full)
    noise = []
    for scores, batches in ((cheap, parts), (full, 1)):
        counts = plan.expected_counts(scores, batch_size * batches)
        shares = torch.where(full > 0, full.double().square() / counts, 0.0)
        shared = (batches - 1) * shares.sum() / len(full) ** 2
        noise.append(plan.selection.noise(full, counts) + shared)
    tiny = torch.finfo(second.dtype).tiny
    return (second + noise[0]) / (second + noise[1]).clamp(min=tiny)


@final
class Fidelity:
    """Keeps the results of checks, and says when cheap scores do not pay.

    They do while the precision they lose is less than the time they save: while
    inflation times the cost of a step scored cheaply is below that of one scored fully.

    Args:
        what: The saving, to name it in a warning.
        must_save: Whether it also does not pay where it takes longer; else what the
            user asked for is left for what it loses alone.

    Attributes:
        is_worth: False once it was found not to pay, from then on.
    """

    def __init__(self, what: str, *, must_save: bool = False) -> None:
        self._what, self.is_worth = what, True
        self._least = 0.0 if must_save else 1.0
        self._uses = 0
        self._checks: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)

    def is_due(self) -> bool:
        """Count a use of cheap scores; return whether they are to be checked."""
        self._uses += self.is_worth
        return self.is_worth and self._uses % _EVERY == 0

    def judge(self, correlation: float, inflated: float, saving: float) -> None:
        """Take in a check; warn if that settles the matter.

        Args:
            correlation: Of the ranks of cheap and full scores.
            inflated: From `inflation`.
            saving: Cost of a step scored fully, in steps scored cheaply.
        """
        self._checks.append((correlation, inflated, saving))
        if len(self._checks) < _LEAST or not self.is_worth:
            return
        _, inflated, saving = (median(column) for column in self._columns())
        if inflated <= max(saving, self._least) * (1 + 1e-3):
            return
        self.is_worth = False
        rank_zero_warn(
            f"Scores by {self._what} are left for full ones, as they make the gradient "
            f"{inflated:.2f} times as noisy and save a factor of {saving:.2f} of the "
            f"time of a step. Drop {self._what}, or make it follow the full scores."
        )

    def metrics(self) -> dict[str, float]:
        """Return the medians of the latest checks, named ``is/...``."""
        if not self._checks:
            return {}
        correlation, inflated, _ = (median(column) for column in self._columns())
        return {"is/score_correlation": correlation, "is/noise_inflation": inflated}

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, and of what, in plain types."""
        checks = [list(check) for check in self._checks]
        found = {"uses": self._uses, "is_worth": self.is_worth, "checks": checks}
        return {"what": self._what, **found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; what was found of another saving says nothing."""
        if state["what"] == self._what:
            self._uses, self.is_worth = state["uses"], state["is_worth"]
            self._checks.clear()
            self._checks.extend(tuple(check) for check in state["checks"])

    def _columns(self) -> list[list[float]]:
        return [list(column) for column in zip(*self._checks, strict=True)]


@final
class Checks:
    """What was found of all ways to score less.

    Args:
        savings: What makes scores cost less than the user's step, by name.
        precision: That scores are computed in.

    Attributes:
        precision: As given.
        cheap: What was found of those savings.
        age: Of scores that serve for several steps.
    """

    def __init__(
        self, savings: Sequence[str] = (), precision: Precision | None = None
    ) -> None:
        self.precision = precision or Precision()
        found_out = self.precision.is_found_out
        self.cheap = Fidelity(" and ".join(savings), must_save=found_out)
        self.age = Fidelity("`score_every`")

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, in plain types."""
        return {
            "cheap": self.cheap.state_dict(),
            "age": self.age.state_dict(),
            "precision": self.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.cheap.load_state_dict(state["cheap"])
        self.age.load_state_dict(state["age"])
        if "precision" in state:  # older checkpoints do not have it
            self.precision.load_state_dict(state["precision"])


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of two lists of scores; 1 if one is constant.

    Example:
        >>> scores = torch.tensor([1.0, 2.0, 9.0])
        >>> round(float(rank_correlation(scores, scores.sqrt())), 3)
        1.0
    """
    if bool((first == first[0]).all() | (second == second[0]).all()):
        return torch.ones(())
    return torch.as_tensor(spearman_corrcoef(first.float(), second.float()))
