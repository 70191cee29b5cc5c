"""Arguments of the wrong kind, refused at once and not in the middle of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import nn

from lightning_is.data.source import IndexSource
from lightning_is.sampling.gate import Gate
from lightning_is.sampling.percentile import LossPercentile
from lightning_is.sampling.plan import ImportancePlan
from lightning_is.scoring.scorer import Scorer


class _Kind(NamedTuple):
    """What an argument must be."""

    fits: Callable[[Any], bool]
    rule: str
    cure: str


def _one_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, type)


def _names_modules(head: Any) -> bool:
    if isinstance(head, (str, nn.Module)):
        return True
    several = isinstance(head, Sequence) and len(head) > 0
    return several and all(isinstance(part, (str, nn.Module)) for part in head)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_FUNCTION = "a function `(module, batch) -> losses`"
_PICKS = "a function `(batch, indices) -> batch`"
_HEAD = "a module, its dotted name, or a list of them that is not empty"
_KINDS = {
    "scorer": _Kind(_one_of(Scorer), "a Scorer", "Pass `UpperBound()` or `Loss()`."),
    "plan": _Kind(
        _one_of(ImportancePlan),
        "an ImportancePlan",
        "Pass `ImportancePlan(distribution, selection, weights)`.",
    ),
    "gate": _Kind(_one_of(Gate), "a Gate", "Pass `TauGate(1.5)`, say."),
    "source": _Kind(
        _one_of(IndexSource),
        "an IndexSource",
        "Pass `PassSource(scheme)`, which makes one of a scheme.",
    ),
    "acceptance": _Kind(
        _one_of(LossPercentile), "a LossPercentile", "Pass `LossPercentile()`."
    ),
    "head": _Kind(_names_modules, _HEAD, 'Pass `head="net.fc"`, say.'),
    "per_sample_loss": _Kind(callable, _FUNCTION, "Return one loss per example."),
    "index_fn": _Kind(callable, _PICKS, "Count the examples if `indices` is None."),
    "scale_factor": _Kind(_is_number, "a number", "0.5 halves height and width."),
    "proxy": _Kind(
        _one_of(LightningModule),
        "a LightningModule",
        "Pass one whose `training_step` returns the loss.",
    ),
    "seed": _Kind(_is_count, "a whole number", "0 is as good as any."),
}


def check_kinds(given: Mapping[str, Any]) -> None:
    """Refuse arguments of the wrong kind; None, which asks for the default, is fine.

    Args:
        given: Arguments of the callback, by their names; others do not count.

    Raises:
        TypeError: If one is of the wrong kind.

    Example:
        >>> check_kinds({"seed": 0, "gate": None})
    """
    for name, kind in _KINDS.items():
        value = given.get(name)
        if value is None or kind.fits(value):
            continue
        a_class = isinstance(value, type)
        got = f"the class {value.__name__}" if a_class else repr(value)
        raise TypeError(f"`{name}` must be {kind.rule}, got {got}. {kind.cure}")


def check_acceptance(
    source: IndexSource | None, batch_size: int | None, index_fn: object
) -> None:
    """Refuse what an acceptance does by itself.

    Raises:
        ValueError: If the user gave it as well.
    """
    if source is not None:
        raise ValueError(
            "`acceptance` loads as many shuffled batches as it takes, got a `source` "
            "as well, which would not be told of their scores. Drop one."
        )
    if batch_size is not None:
        raise ValueError(
            "`acceptance` fills batches as large as the loader's, got batch_size="
            f"{batch_size}. Drop it, and load batches of that size."
        )
    if index_fn is not None:
        raise ValueError(
            "`acceptance` puts examples of several batches together by itself, got an "
            "`index_fn` for batches only you can take apart. Drop one of them."
        )
