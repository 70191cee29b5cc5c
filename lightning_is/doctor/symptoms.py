"""What may stand in the way of a gain, or of an honest curve."""

from collections.abc import Container, Iterator, Sequence
from math import sqrt

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_is.doctor.report import Report
from lightning_is.doctor.sizes import Course
from lightning_is.sampling.prospects import Ordinary
from lightning_is.scoring.context import is_norm
from lightning_is.settings import Settings

_SLOW = 0.25  # of the time spent waiting: more than sampling could save
_SHORT = 3e-3  # seconds: what the callback itself does takes tenths of milliseconds


def of_module(module: LightningModule, settings: Settings, loaded: int) -> list[str]:
    """Look at the layers of a module that will be trained on draws.

    Args:
        module: The user's.
        settings: Of the callback.
        loaded: Examples that are scored.
    """
    norms = [m for m in module.modules() if is_norm(m) and m.training]
    parameters = list(module.parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    total = sum(p.numel() for p in parameters)
    found = []
    if norms:
        name = f"{type(norms[0]).__name__} in train mode ({len(norms)} of them)"
        partly = settings.scale_factor < 1 or settings.proxy is not None
        source = "what is drawn" if partly else f"all {loaded} as they are scored"
        found.append(f"{name}: running statistics come from {source}")
    if frozen > 0.5 * total:
        found.append(
            f"all but {total - frozen:,} of {total:,} parameters are frozen: a step is "
            "mostly its forward pass, which scoring repeats"
        )
    return found


def logged_in_training(trainer: Trainer) -> frozenset[str]:
    """Return the names of what schedulers may watch that training steps have logged.

    Args:
        trainer: At the end of its first batch, before any validation.
    """
    watching = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
    return frozenset(trainer.callback_metrics if watching else ())


def of_schedule(
    trainer: Trainer, course: Course, logged: Container[str | None]
) -> Iterator[str]:
    """Look at the schedulers of learning rates, after the first batches."""
    for config in trainer.lr_scheduler_configs:
        name = type(config.scheduler).__name__
        if course.draws and config.reduce_on_plateau and config.monitor in logged:
            yield (
                f"{name} watches {config.monitor}, which is that of drawn, hard "
                "examples while the gate is open: watch a validation metric"
            )
        elif config.interval == "epoch" and not course.is_one_pass:
            yield (
                f"{name} steps by epoch, which keeps its number of steps but is no "
                "longer one pass over the data"
            )


def of_costs(report: Report) -> Iterator[str]:
    """Look at what was measured."""
    if report.loss.startswith("coupled"):
        yield "the loss couples the examples: a drawn batch is no unbiased estimate"
    if report.ordinary is not None:
        yield from _of_ordinary(report.ordinary, bool(report.prospects))
    if report.opening is None or not report.prospects:
        return
    opens = report.opening.measure != "never"
    tried = report.opening.measure != "is/effective_batch"  # whose gate measures
    if opens and tried and max(p.limit for p in report.prospects) < 1:
        yield "the gate may open where no draw can pay: it would only cost time"
    # The variance removed is at most that of tau squared.
    least = sqrt(min(p.break_even for p in report.prospects))
    if report.opening.above is not None and report.opening.above < 0.9 * least:
        yield (
            f"the gate opens at tau > {report.opening.above:.2g}, too early: nothing "
            f"pays below {least:.2g} here. Raise its threshold"
        )


def _of_ordinary(ordinary: Ordinary, draws: bool) -> Iterator[str]:
    waiting = ordinary.wait / max(ordinary.wait + ordinary.compute, 1e-12)
    if ordinary.is_loader_bound:
        yield (
            f"steps wait for the loader {waiting:.0%} of the time, and none can be "
            "faster than it: add workers, or a faster dataset"
        )
    elif waiting > _SLOW:
        yield f"loading takes {waiting:.0%} of the time: `num_workers` could hide that"
    if draws and 0 < ordinary.compute < _SHORT:
        yield "steps this short may cost more by the callback itself than they save"


def named(heads: Sequence[nn.Module], module: LightningModule, *, found: bool) -> str:
    """Name heads by where they are, what they are, and who said so."""
    places = {
        part: name or "the module itself" for name, part in module.named_modules()
    }
    names = [f"{places[head]} ({type(head).__name__})" for head in heads]
    return f"{', '.join(names)}, {'found' if found else 'as given'}"
