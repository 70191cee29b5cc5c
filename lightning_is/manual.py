"""Manual optimisation: the step of a module that backpropagates and steps by itself.

To score, such a step runs up to the loss that it hands to ``manual_backward`` and no
further, so that no gradient is computed and no optimizer steps. To train, it runs as it
is; the draw and its weights apply to the whole of it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_is.shadow import Shadow

_Method = Callable[..., Any]


@final
class ManualStep:
    """Stands between a module that optimises by hand and its one optimizer.

    Args:
        module: The user's module, attached to a Trainer.

    Attributes:
        loss: That the last training step handed over first; None if it did not.

    Raises:
        RuntimeError: If there are several optimizers.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self.loss: Tensor | None = None
        self._is_spent = False  # one loss was handed over
        found = _listed(module.optimizers(use_pl_optimizer=False))
        if len(found) > 1:
            names = ", ".join(type(optimizer).__name__ for optimizer in found)
            raise RuntimeError(
                "Importance sampling scores examples for one loss and one optimizer, "
                f"got {len(found)} of them ({names}). Give one optimizer several "
                "parameter groups, or train without importance sampling."
            )

    def capture(self, run: Callable[[], Any]) -> Tensor | None:
        """Run a step up to its loss; None if it hands over none.

        Raises:
            RuntimeError: If it steps before that.
        """
        with ExitStack() as stack:
            _stand_in(stack, self._module, "manual_backward", _hand_over)
            for optimizer in self._optimizers():
                _stand_in(stack, optimizer, "zero_grad", _ignore)
                _stand_in(stack, optimizer, "step", _run_closure)
            for scheduler in _listed(self._module.lr_schedulers()):
                _stand_in(stack, scheduler, "step", _ignore)
            try:
                run()
            except _HandedOver as end:
                return end.loss
        return None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let a step through.

        Raises:
            RuntimeError: If it hands over a second loss.
        """
        self.loss, self._is_spent = None, False
        with ExitStack() as stack:
            backward = self._module.manual_backward
            _stand_in(stack, self._module, "manual_backward", self._counted(backward))
            for optimizer in self._optimizers():
                _stand_in(stack, optimizer, "step", self._repeatable(optimizer.step))
            yield

    def _optimizers(self) -> list[Any]:
        """List the optimizer, as Lightning wraps it and as it is."""
        ways = [self._module.optimizers(use_pl_optimizer=way) for way in (True, False)]
        return [optimizer for way in ways for optimizer in _listed(way)]

    def _counted(self, backward: _Method) -> _Method:
        @wraps(backward)
        def counted(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if self._is_spent:
                raise RuntimeError(
                    "Importance sampling scores examples by the one loss of a step, "
                    "got a second `manual_backward`. Add the losses up and call it "
                    "once, or within the one closure that `optimizer.step` is given."
                )
            self._is_spent = True
            if self.loss is None:
                self.loss = loss.detach()
            backward(loss, *args, **kwargs)

        return counted

    def _repeatable(self, step: _Method) -> _Method:
        """Let a step, of LBFGS say, evaluate the one loss of its closure repeatedly."""

        @wraps(step)  # schedulers look at what a step was marked with
        def repeatable(closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
            if closure is None:
                return step(**kwargs)
            before = self._is_spent

            def again() -> Any:
                self._is_spent = before
                return closure()

            return step(closure=again, **kwargs)

        return repeatable


class _HandedOver(BaseException):
    """Ends a step that is only scored; no `except Exception` of the user's stops it."""

    def __init__(self, loss: Tensor) -> None:
        super().__init__()
        self.loss = loss


def _hand_over(
    loss: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any
) -> None:
    raise _HandedOver(loss if gradient is None else (loss * gradient).sum())


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for what must happen once, in the training step."""


def _run_closure(closure: Callable[[], Any] | None = None, **kwargs: Any) -> None:
    if closure is not None:
        closure()
    raise RuntimeError(
        "Importance sampling takes the loss of a step from `manual_backward`, got an "
        "optimizer that steps before it was called. Write `self.manual_backward(loss)` "
        "in place of `loss.backward()`."
    )


def _stand_in(stack: ExitStack, target: object, name: str, method: _Method) -> None:
    stack.callback(Shadow(target, name, method).undo)


def _listed(found: Any) -> list[Any]:
    """Turn none, one or several into a list."""
    if found is None:
        return []
    return list(found) if isinstance(found, list) else [found]
