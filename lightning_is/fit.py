"""One fit after the other: its feed, from the setup on, and its engine."""

from collections.abc import Callable
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer

from lightning_is import host
from lightning_is.engine import Engine
from lightning_is.feed import Feed
from lightning_is.settings import Settings
from lightning_is.state import State


@final
class Fit:
    """Opens and closes what a fit needs, and leaves strategy and module as they were.

    Args:
        settings: Of the callback.
        state: Of its parts.

    Attributes:
        progress: Returns the share of the run that is over; None counts steps.
        engine: Of the fit that is on.
        feed: Likewise, where there is a source.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        self._settings, self._state = settings, state
        self.progress: Callable[[], float] | None = None
        self.engine: Engine | None = None
        self.feed: Feed | None = None

    def set_up(self, trainer: Trainer) -> None:
        """Put the source behind the loader, before the Trainer asks for it."""
        self.close()
        source = self._state.source
        if source is not None:
            share = self._share_of(trainer)
            self.feed = Feed(trainer, source, self._state, share)

    def begin(
        self, trainer: Trainer, module: LightningModule, is_active: Callable[[], bool]
    ) -> None:
        """Begin to watch the batches; refuse a run of a kind not supported."""
        self._close_engine()
        host.refuse_unsupported(trainer, module)
        share = self._share_of(trainer)
        self.engine = Engine(
            *(trainer, module, self._settings, self._state),
            *(share, self.feed, is_active),
        )

    def _share_of(self, trainer: Trainer) -> Callable[[], float]:
        return lambda: (
            host.share_of_run(trainer) if self.progress is None else self.progress()
        )

    def end_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any
    ) -> None:
        """Pass on what the step showed, and log it at the Trainer's interval."""
        if self.engine is None:
            return
        self.engine.end_step(batch, host.reported_loss(trainer, outputs))
        if not host.logs_now(trainer):
            return
        for name, value in self.engine.metrics().items():
            shown = name == "is/tau"
            module.log(name, value, prog_bar=shown, on_step=True, batch_size=1)

    def settle(self) -> None:
        """Bring the state up to date: what is on its way arrives."""
        if self.feed is not None:
            self.feed.settle()
            self._state.under_way = self.feed.under_way()
        if self.engine is not None:
            self.engine.settle(self._state)

    def close(self) -> None:
        """Leave strategy and module as they were, and list what waits."""
        self._close_engine()
        if self.feed is not None:
            self.feed.close()
            self._state.under_way = self.feed.under_way()
        self.feed = None

    def _close_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine.list_waiting(self._state)
        self.engine = None
