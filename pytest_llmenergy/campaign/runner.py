"""The campaign itself: models loaded once, cells measured once, everything noted as it comes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llmenergy.backends import Work
from pytest_llmenergy.campaign.cell import (
    Asked,
    broken_off,
    describe_error,
    measure_cell,
    refuse_no_count,
    without_room,
)
from pytest_llmenergy.campaign.folder import TRACE_NAME, open_folder
from pytest_llmenergy.campaign.grid import Place
from pytest_llmenergy.campaign.interrupts import Interrupts
from pytest_llmenergy.campaign.journal import (
    CellDone,
    Event,
    IdleDone,
    ModelLoaded,
    Opened,
    TrialDone,
    WindowDone,
)
from pytest_llmenergy.campaign.models import Models
from pytest_llmenergy.campaign.observer import Observer, Silent
from pytest_llmenergy.campaign.results import RESULTS_NAME, write_atomically, write_results
from pytest_llmenergy.campaign.summary import with_net
from pytest_llmenergy.campaign.trials import Trials
from pytest_llmenergy.campaign.windows import Windows
from pytest_llmenergy.errors import DoesNotFitError
from pytest_llmenergy.records import Campaign, Cell, CellRecord, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pytest_llmenergy.backends import Backend
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.meters.window import Meters
    from pytest_llmenergy.records import Environment


class Runner:
    """Measures cells, has callables and blocks measured, and writes the results document."""

    def __init__(
        self,
        settings: Settings,
        *,
        meters: Meters,
        open_backend: Callable[[], Backend],
        environment: Environment,
        observer: Observer | None = None,
        interrupts: Interrupts | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin the campaign, or go on with it.

        Args:
            settings: what was asked for.
            meters: opened; the runner closes them.
            open_backend: called when the first model is needed, so that metering a callable needs no engine.
            environment: of this machine.
            observer: shows progress.
            interrupts: may end the work.
            sleep: lets time pass on the meters' clock.

        Raises:
            RequestError: the folder cannot be written, or its journal is of another campaign.
        """
        self.settings = settings
        self.environment = environment
        self._meters = meters
        self._observer: Observer = observer or Silent()
        self.interrupts = interrupts or Interrupts()
        self._models = Models(
            open_backend,
            meters=meters,
            idle_s=settings.idle_s,
            interrupts=self.interrupts,
            sleep=sleep,
            note=self._note,
            observer=self._observer,
        )
        self._cells: dict[_Key, CellRecord] = {}
        self.windows = Windows(
            settings,
            meters=meters,
            interrupts=self.interrupts,
            note=self._note,
            observer=self._observer,
        )
        self._interrupted: CellRecord | None = None
        self._folder = open_folder(settings, environment, self._observer)
        self._journal = self._folder.journal
        self._restore(self._folder.events)
        self.resumed_cells = len(self._cells)
        for text in meters.notices:
            self._observer.notice(text)

    # The journal

    def _note(self, event: Event) -> None:
        self._journal.append(event)

    @property
    def results_path(self) -> Path:
        """The results document."""
        return self.settings.folder / RESULTS_NAME

    @property
    def kept(self) -> Path | None:
        """Where a former campaign of the same folder went."""
        return self._folder.kept

    def _restore(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case ModelLoaded(record=model):
                    self._models.records[model.model] = model
                case IdleDone(model=name, idle=idle):
                    self._models.add_idle(name, idle)
                case CellDone(record=cell):
                    if cell.error is None:  # a cell that failed is tried again
                        self._cells[_key_of(cell)] = cell
                case TrialDone():
                    pass  # of a cell that is done, or that is measured again whole
                case WindowDone():
                    pass  # windows outside cells belong to tests, which run again
                case Opened():
                    pass  # read by the folder

    # Cells

    def cell(
        self,
        model: str,
        tokens_in: int,
        tokens_out: int,
        *,
        batch_size: int | None = None,
        kv_cache: bool | None = None,
        test: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> CellRecord:
        """Measure one cell of the paper's experiment, or return its record if the campaign has it.

        Args:
            model: preset name, local directory or hub id.
            tokens_in: prompt tokens per sequence.
            tokens_out: generated tokens per sequence.
            batch_size: sequences; the campaign's where None.
            kv_cache: whether keys and values are kept between steps; the campaign's where None.
            test: the test that asked.
            details: kept with the cell's record.

        Raises:
            RequestError: the model cannot do it; nothing was measured.
        """
        batch_size = self.settings.batch_size if batch_size is None else batch_size
        for name, count in (("tokens_in", tokens_in), ("tokens_out", tokens_out), ("batch_size", batch_size)):
            refuse_no_count(name, count)
        kv_cache = self.settings.kv_cache if kv_cache is None else kv_cache
        work = Work(
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            batch_size=batch_size,
            kv_cache=kv_cache,
            seed=self.settings.seed,
        )
        key = _Key(model, tokens_in, tokens_out, batch_size, kv_cache)
        if key not in self._cells:
            return self._measure_cell(model, work, test, details or {})
        return self._cells[key]

    def _measure_cell(self, model: str, work: Work, test: str | None, details: dict[str, Any]) -> CellRecord:
        asked = Asked(model=model, work=work, test=test, details=details, settings=self.settings)
        try:
            loaded = self._models.load(model)
        except DoesNotFitError as error:
            return self._keep(without_room(asked, asked.cell(None, self.environment), error))
        cell = asked.cell(loaded, self.environment)
        warning = loaded.check(work)
        if warning:
            self._observer.notice(warning)
        self._observer.begins(asked.place)
        seen = Trials(self.settings.rule)

        def note(trials: Trials, trial: Trial) -> None:
            nonlocal seen
            seen = trials
            self._journal.append(TrialDone(cell=cell.label, trial=trial))
            self._observer.trial(trials, trial)

        try:
            record = measure_cell(
                asked,
                cell,
                loaded,
                meters=self._meters,
                is_fresh=self._models.take_fresh(),
                on_trial=note,
                working=self.interrupts.allowed,
            )
        except DoesNotFitError as error:
            return self._keep(without_room(asked, cell, error, seen))
        except KeyboardInterrupt as error:
            self._interrupted = broken_off(asked, cell, "interrupted", error, seen)
            raise
        except Exception as error:
            self._keep(broken_off(asked, cell, "failed", error, seen))
            raise
        return self._keep(record)

    def _keep(self, record: CellRecord) -> CellRecord:
        record = with_net(record, self._models.records.get(record.model))
        self._cells[_key_of(record)] = record  # first of all: an interrupt may come at any line
        self._journal.append(CellDone(record=record))
        self._observer.ends(Place(record.model, record.tokens_in, record.tokens_out), record)
        return record

    # The end

    def campaign(self, *, complete: bool) -> Campaign:
        """Everything so far as one document."""
        cells = [with_net(cell, self._models.records.get(cell.model)) for cell in self._cells.values()]
        if self._interrupted is not None and _key_of(self._interrupted) not in self._cells:
            cells.append(self._interrupted)
        return Campaign(
            name=self.settings.campaign,
            created=self._folder.created,
            complete=complete,
            environment=self.environment,
            settings=self.settings.as_document(),
            models=tuple(self._models.records.values()),
            cells=tuple(cells),
            windows=tuple(self.windows.records),
        )

    def finish(self, *, complete: bool) -> Campaign:
        """Write the results document, close everything, and write it again with what came last.

        Raises:
            RequestError: the folder cannot be written; the journal has all of it.
        """
        try:
            self._write(complete=complete)  # at once: the power at rest takes seconds, and a close may fail
        finally:
            try:
                self._close(at_rest=complete)
            finally:
                campaign = self._write(complete=complete)
                if campaign.is_empty:
                    self._folder.put_back(self._observer)
        return campaign

    def _write(self, *, complete: bool) -> Campaign:
        """Write all there is; nothing is written of nothing."""
        campaign = self.campaign(complete=complete)
        if not campaign.is_empty:
            write_results(self.results_path, campaign)
            if self._meters.trace is not None:
                content = self._meters.trace.parquet(since_s=self._meters.opened_s)
                write_atomically(self.settings.folder / TRACE_NAME, content)
        return campaign

    def _close(self, *, at_rest: bool) -> None:
        """Close models, meters and journal; what cannot be closed is told, and takes nothing with it."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._journal.close)
            stack.callback(self._telling, self._meters.close)
            stack.callback(self._telling, lambda: self._models.unload(at_rest=at_rest))

    def _telling(self, close: Callable[[], None]) -> None:
        try:
            close()
        except Exception as error:  # noqa: BLE001 - an engine of the user's may raise anything
            self._observer.notice(f"while closing: {describe_error(error)}")


class _Key(NamedTuple):
    """What tells cells of one campaign apart before their model is loaded."""

    model: str
    tokens_in: int
    tokens_out: int
    batch_size: int
    kv_cache: bool | None


def _key_of(cell: Cell) -> _Key:
    return _Key(cell.model, cell.tokens_in, cell.tokens_out, cell.batch_size, cell.kv_cache)
