"""One fit after the other: its feed, from the setup on, and its engine."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

from lightning.pytorch import LightningModule, Trainer

from lightning_is import host
from lightning_is.data.source import IndexSource
from lightning_is.datamodule import OversamplingDataModule
from lightning_is.doctor import Doctor, Report
from lightning_is.doctor.doctor import is_asked
from lightning_is.engine import Engine
from lightning_is.feed import Feed
from lightning_is.refusals import check_sharded
from lightning_is.settings import Settings
from lightning_is.state import State


@runtime_checkable
class Timed(Protocol):
    """Has a way to tell the share of the run that is over, or None to count steps."""

    progress: Callable[[], float] | None


@final
class Fit:
    """Opens and closes what a fit needs, and leaves strategy and module as they were.

    Args:
        settings: Of the callback.
        state: Of its parts.
        owner: Knows what the user gave to tell how much of the run is over.

    Attributes:
        engine: Of the fit that is on.
        feed: Likewise, where there is a source.
        diagnosis: What was found at the start of the last fit, if anybody asked.
        always_examines: Find that out for whoever reads it here, and print nothing.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        owner: Timed,
    ) -> None:
        self._settings, self._state, self._owner = settings, state, owner
        self._adopted: IndexSource | None = None  # of a data module
        self._module: OversamplingDataModule | None = None
        self._trainer: Trainer | None = None  # whose fit is on
        self.engine: Engine | None = None
        self.feed: Feed | None = None
        self._doctor: Doctor | None = None
        self.diagnosis: Report | None = None
        self.always_examines = False

    @property
    def is_sampling(self) -> bool:
        """Whether the batch in hand was drawn, or accepted, by its scores."""
        return self.engine is not None and self.engine.is_sampling

    @property
    def draws_from_batches(self) -> bool:
        """Whether steps may train on a part of what was loaded."""
        given = self._settings.batch_size is not None
        accepts = self._state.acceptance is not None
        return given or accepts or self._state.gate.chooses_size

    def set_up(self, trainer: Trainer) -> None:
        """Put the source behind the loader, before the Trainer asks for it.

        Raises:
            RuntimeError: If the fit of another Trainer is on.
        """
        if self._trainer not in (None, trainer):
            raise RuntimeError(
                "A callback serves one Trainer at a time, got a second one while the "
                "first is fitting. Make one ImportanceSamplingCallback for each."
            )
        self.close()
        self._trainer = trainer
        self._state.begin()
        source = self._state.source = self._source_of(trainer)
        if source is not None:
            share = self._share_of(trainer)
            forgives = self._settings.forgives
            self.feed = Feed(trainer, source, self._state, share, forgives=forgives)

    def _source_of(self, trainer: Trainer) -> IndexSource | None:
        """Return the source: the callback's own, or that of our data module."""
        module, own = host.data_module(trainer), self._state.source
        own = None if own is self._adopted else own
        if module is None or module.source is None:
            return own
        if own is not None:
            raise ValueError(
                "One source chooses what to load, got one of the callback and `keep` "
                "of the OversamplingDataModule. Drop one of them."
            )
        self._settings.check_parts(
            self._state.gate, module.source, self._state.acceptance, None
        )
        self._module, module.is_served = module, True
        self._adopted = module.source
        return module.source

    def begin(
        self, trainer: Trainer, module: LightningModule, is_active: Callable[[], bool]
    ) -> None:
        """Begin to watch the batches; refuse a run of a kind not supported."""
        self._close_engine()
        host.refuse_unsupported(trainer, module)
        check_sharded(trainer, self._settings, self._state)
        if self._state.acceptance is not None:
            host.refuse_uneven(trainer, module)
        share = self._share_of(trainer)
        self.engine = Engine(
            *(trainer, module, self._settings, self._state),
            *(share, self.feed, is_active),
        )
        self._call_doctor(trainer, module, self.engine)

    def _call_doctor(
        self, trainer: Trainer, module: LightningModule, engine: Engine
    ) -> None:
        self.diagnosis = None
        prints = not self.always_examines
        if self.always_examines or is_asked(trainer, self._settings):
            given = trainer, module, self._settings, self._state
            self._doctor = Doctor(*given, prints=prints)
            engine.inspector.examine = self._doctor.examine

    def _share_of(self, trainer: Trainer) -> Callable[[], float]:
        def share() -> float:
            given = self._owner.progress
            return host.share_of_run(trainer) if given is None else given()

        return share

    def begin_epoch(self) -> None:
        """Tell the loader what is wanted: it may be new, or the state resumed."""
        if self.engine is not None:
            self.engine.begin_epoch()

    def after_backward(self) -> None:
        """Read the free scores of a uniform step."""
        if self.engine is not None:
            self.engine.after_backward()
        if self._doctor is not None:
            self._doctor.after_backward()

    def end_epoch(self) -> None:
        """Refuse a loader that never yielded enough to draw from."""
        if self.engine is not None:
            self.engine.end_epoch()
        self._hear()

    def _hear(self) -> None:
        """Have the report written by what was seen so far, if it is not yet."""
        if self._doctor is not None:
            self._doctor.conclude()
            self._take_report(self._doctor)

    def _take_report(self, doctor: Doctor) -> None:
        """Keep the report, once there is one, and let the doctor go."""
        self.diagnosis = doctor.report
        if doctor.report is not None:
            self._doctor = None

    def end(self, trainer: Trainer) -> None:
        """Take in the last step; refuse a loader that yielded nothing."""
        self.settle()
        self._hear()
        if self.engine is not None:
            host.refuse_empty(trainer)

    def end_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any
    ) -> None:
        """Pass on what the step showed, and log it at the Trainer's interval."""
        if self.engine is None:
            return
        self.engine.end_step(batch, host.reported_loss(trainer, outputs))
        if self._doctor is not None:
            self._doctor.end_batch(self.engine.times.wait)
            self._take_report(self._doctor)
        if host.logs_now(trainer):
            for name, value in self.engine.metrics().items():
                shown = name == "is/tau"
                # Not `module.log`: the user's own may take other arguments.
                log = partial(LightningModule.log, module, name, value)
                log(prog_bar=shown, on_step=True, batch_size=1)
        on_host = trainer.strategy.root_device.type == "cpu"  # nothing to wait for
        if on_host or trainer.is_last_batch:
            # A run resumed at the end of an epoch is not told that the next begins.
            self.engine.ledger.tell_loader(of_size=trainer.is_last_batch)
        self.engine.times.leave()

    def settle(self) -> None:
        """Bring the state up to date: what is on its way arrives."""
        if self.feed is not None:
            self.feed.settle()
            self._state.under_way = self.feed.under_way()
        if self.engine is not None:
            self.engine.settle(self._state)

    def leave(self, trainer: Trainer) -> None:
        """Close what is open for a Trainer; the fit of another one goes on."""
        if self._trainer in (None, trainer):
            self.close()

    def close(self) -> None:
        """Leave strategy and module as they were, and list what waits."""
        self._close_engine()
        self._trainer = None
        if self.feed is not None:
            self.feed.close()
            self._state.under_way = self.feed.under_way()
        self.feed = None
        if self._module is not None:
            self._module.is_served = False
        self._module = None

    def _close_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine.list_waiting(self._state)
        self.engine = self._doctor = None
