"""Running the user's step without a trace: the scoring pass changes nothing."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_is.scoring.keepers import (
    Attributes,
    Buffer,
    Kept,
    NumPyStream,
    PythonStream,
)

ScoreMode = Literal["eval", "train"]

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    *_INSTANCE_NORMS,
)
_LOGGING = ("log", "log_dict")


@final
class TracelessContext:
    """Lets a module's step run, then puts everything back as it was.

    Kept: train flags, running statistics, metric states, global random states (torch
    on the CPU and the module's device, NumPy, Python), and the plain attributes of the
    module, such as counters and lists, with their items (copied shallowly at each pass:
    large tables belong elsewhere). Muted: ``log`` and ``log_dict``. Not covered: what a
    step does to the outside world (files, its logger's ``experiment``), parameters it
    changes in place, and attributes of objects that are no modules. ``.grad`` is safe:
    no backward pass reaches a parameter.

    The module's parts are listed once, so no step walks the module tree. Buffers,
    attributes of submodules and the random states of NumPy and Python are kept if a
    pass before `settle` changed them: few do, and keeping them all takes time.

    Args:
        module: The module whose step will run.
        score_mode: ``"eval"`` switches dropout and its like off; ``"train"`` leaves
            the flags as they are.
        loggers: Modules whose logging methods to mute; the module alone by default.
        device: Where the step runs; that of the parameters by default.
    """

    def __init__(
        self,
        module: nn.Module,
        score_mode: ScoreMode = "eval",
        loggers: Sequence[nn.Module] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._score_mode = score_mode
        self._modules = tuple(module.modules())
        self._loggers = (module,) if loggers is None else tuple(loggers)
        self._metrics = [m for m in self._modules if isinstance(m, Metric)]
        parameter = next(module.parameters(), torch.empty(0))
        self._device = device or parameter.device
        self._parts = [m for m in self._modules if _is_foreign(m, self._loggers)]
        self._buffers = [
            (module, name)
            for module in self._modules
            if not isinstance(module, (*_NORMS, Metric))
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._streams: tuple[type[PythonStream] | type[NumPyStream], ...] = (
            PythonStream,
            NumPyStream,
        )
        self._changed: set[tuple[nn.Module | None, str]] = set()
        self._norms = [m for m in self._modules if isinstance(m, _NORMS)]

    @property
    def norms(self) -> Sequence[nn.Module]:
        """Layers that normalise by the batch and may keep running statistics."""
        return self._norms

    @contextmanager
    def __call__(
        self, *, update_statistics: bool = False, as_training: bool = False
    ) -> Iterator[None]:
        """Run what is inside without a trace.

        Args:
            as_training: Leave the train flags as they are, whatever the score mode.
            update_statistics: Let normalisation layers in train mode normalise by this
                batch and take its statistics in, as in an ordinary step: the one trace
                that is wanted of a presample, which unlike the drawn batch is uniform.
        """
        attributes = [Attributes(m) for m in (*self._loggers, *self._parts)]
        buffers = [Buffer(module, name) for module, name in self._buffers]
        metrics = [_metric_state(metric) for metric in self._metrics]
        training = [module.training for module in self._modules]
        live = [norm for norm in self._norms if norm.training]
        streams = [stream() for stream in self._streams]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                self._mute()
                if not as_training and self._score_mode == "eval":
                    self._evaluate(except_for=live if update_statistics else [])
                with self.frozen_statistics(active=not update_statistics):
                    yield
            finally:
                for module, flag in zip(self._modules, training, strict=True):
                    module.__dict__["training"] = flag
                for metric, state in zip(self._metrics, metrics, strict=True):
                    metric.__dict__.update(state)
                kept: list[Kept] = [*attributes, *buffers, *streams]
                self._changed |= {saved.key for saved in kept if saved.restore()}

    def settle(self) -> None:
        """From now on keep only what was seen to change so far.

        Of buffers, of submodules, and of the random streams of Python and NumPy.
        """
        self._buffers = [key for key in self._buffers if key in self._changed]
        self._parts = [m for m in self._parts if (m, "") in self._changed]
        self._streams = tuple(s for s in self._streams if s.key in self._changed)

    @contextmanager
    def frozen_statistics(self, *, active: bool = True) -> Iterator[None]:
        """Keep normalisation layers from taking in the statistics of what runs inside.

        They still normalise as they would; only the running averages stay.
        """
        frozen = [n for n in self._norms if active and n.track_running_stats]
        # Instance normalisation takes them in whatever its flag says.
        instance = [n for n in frozen if isinstance(n, _INSTANCE_NORMS) and n.training]
        saved = [(b, b.clone()) for norm in instance for b in norm.buffers()]
        for norm in frozen:
            # Without tracking, a layer in eval mode falls back to batch statistics.
            norm.track_running_stats = not norm.training
        try:
            yield
        finally:
            for norm in frozen:
                norm.track_running_stats = True
            for buffer, before in saved:
                buffer.copy_(before)

    def _mute(self) -> None:
        for module in self._loggers:
            for name in _LOGGING:
                module.__dict__[name] = _ignore

    def _evaluate(self, *, except_for: Sequence[nn.Module]) -> None:
        for module in self._modules:
            module.__dict__["training"] = False
        for module in except_for:
            module.__dict__["training"] = True


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for a logging method."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises by the batch and may keep running statistics."""
    return isinstance(module, _NORMS)


def _is_foreign(module: nn.Module, loggers: Sequence[nn.Module]) -> bool:
    """Whether a part is of the user's own kind, so that its step may change it."""
    # `fully_shard` derives a class of its own, in PyTorch, from the user's.
    lines = [kind.__module__ for kind in type(module).__mro__[:-1]]
    torchs = all(line.startswith("torch.") for line in lines)
    return not torchs and module not in loggers and not isinstance(module, Metric)


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Copy a metric's attributes, with its states cloned: updates work in place."""
    saved = dict(metric.__dict__)
    for name, state in metric.metric_state.items():
        saved[name] = state.clone() if isinstance(state, Tensor) else list(state)
    return saved


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states back as they were, also after an exception."""
    devices = [device] if device.type == "cuda" else []
    python = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  half the time of a tuple
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
