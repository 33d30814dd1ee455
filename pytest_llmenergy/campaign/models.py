"""The models of a campaign: one loaded at a time, its records, and its power at rest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmenergy.campaign.journal import Event, IdleDone, ModelLoaded
from pytest_llmenergy.errors import DoesNotFitError
from pytest_llmenergy.meters.idle import Idle, drift, measure_idle
from pytest_llmenergy.meters.machine import adopt
from pytest_llmenergy.records import ModelRecord, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.backends import Backend, LoadedModel
    from pytest_llmenergy.campaign.interrupts import Interrupts
    from pytest_llmenergy.campaign.observer import Observer
    from pytest_llmenergy.meters.window import Meters


class Models:
    """Loads a model when it is first needed, and frees it for the next.

    Args:
        open_backend: called when the first model is needed, so that metering a callable needs no engine.
        meters: measure the power at rest.
        idle_s: for so long, before and after the cells of each model; 0 for never.
        interrupts: may end loading, and the rest after it.
        sleep: lets time pass on the meters' clock.
        note: takes what is to be kept.
        observer: shows progress.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        *,
        meters: Meters,
        idle_s: float,
        interrupts: Interrupts,
        sleep: Callable[[float], None],
        note: Callable[[Event], None],
        observer: Observer,
    ) -> None:
        self.records: dict[str, ModelRecord] = {}
        self._open_backend = open_backend
        self._meters = meters
        self._idle_s = idle_s
        self._interrupts = interrupts
        self._sleep = sleep
        self._note = note
        self._observer = observer
        self._backend: Backend | None = None
        self._loaded: tuple[str, LoadedModel] | None = None
        self._is_fresh = False
        self._idle: dict[str, Idle] = {}  # the baseline before, by model
        self._unfit: dict[str, DoesNotFitError] = {}

    def load(self, model: str) -> LoadedModel:
        """The model, loaded.

        Raises:
            RequestError: it cannot be had.
            DoesNotFitError: it needs more memory than there is.
        """
        if self._loaded is not None:
            name, loaded = self._loaded
            if name == model and not loaded.is_lost:
                return loaded
            self.unload(at_rest=not loaded.is_lost)
        if model in self._unfit:
            raise self._unfit[model]
        self._observer.loading(model)
        if self._backend is None:
            self._backend = self._open_backend()
        started_s = time.perf_counter()
        try:
            with self._interrupts.allowed():
                loaded = self._backend.load(model)
        except DoesNotFitError as error:
            self._unfit[model] = error  # nor will it for the next cell
            raise
        adopt(loaded.pids)
        load_s = time.perf_counter() - started_s
        # A model that was loaded before, in this session or a resumed one, keeps its baselines.
        former = self.records.get(model)
        idle = () if former is None else former.idle
        record = msgspec.structs.replace(loaded.record, load_s=load_s, idle=idle)
        self._loaded = (model, loaded)
        self._is_fresh = True
        self.records[model] = record
        self._note(ModelLoaded(record=record))
        self._measure_idle(model, "before")
        return loaded

    def take_fresh(self) -> bool:
        """Whether the loaded model has not been called yet; it counts as called from now on."""
        fresh, self._is_fresh = self._is_fresh, False
        return fresh

    def unload(self, *, at_rest: bool = True) -> None:
        """Free the loaded model, if there is one.

        Args:
            at_rest: measure its power at rest once more.
        """
        if self._loaded is None:
            return
        model, loaded = self._loaded
        self._loaded = None
        try:
            if at_rest and not self._is_fresh:
                self._measure_idle(model, "after")
        finally:
            adopt(())
            loaded.close()

    def add_idle(self, model: str, idle: dict[str, Any]) -> None:
        """Keep a baseline with its model's record; without one (a line taken out of the journal) drop it."""
        record = self.records.get(model)
        if record is None:
            return
        self.records[model] = msgspec.structs.replace(record, idle=(*record.idle, idle))

    def _measure_idle(self, model: str, when: str) -> None:
        """Meter the loaded model at rest; only what is measured has an idle power worth the name."""
        is_measured = any(source.provenance is Provenance.MEASURED for source in self._meters.sources)
        if self._idle_s <= 0 or not is_measured:
            return
        # The rest at the end is a part of closing: the document is complete with it.
        sleep = self._interruptible_sleep if when == "before" else self._sleep
        idle = measure_idle(self._meters, self._idle_s, sleep=sleep)
        drifted = () if when == "before" or model not in self._idle else drift(self._idle[model], idle)
        for text in drifted:
            self._observer.notice(f"{model}: {text}")
        self._idle[model] = idle
        found = idle.record(when) | {"drift": list(drifted)}
        self._note(IdleDone(model=model, idle=found))
        self.add_idle(model, found)

    def _interruptible_sleep(self, seconds: float) -> None:
        with self._interrupts.allowed():
            self._sleep(seconds)
