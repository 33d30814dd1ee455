"""The campaign itself: models loaded once, cells measured once, everything noted as it comes."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pytest_llmenergy.backends import Work
from pytest_llmenergy.campaign.grid import Place
from pytest_llmenergy.campaign.journal import (
    JOURNAL_NAME,
    CellDone,
    Event,
    IdleDone,
    Journal,
    ModelLoaded,
    Opened,
    TrialDone,
    WindowDone,
)
from pytest_llmenergy.campaign.results import (
    RESULTS_NAME,
    summarise,
    with_net,
    write_atomically,
    write_results,
)
from pytest_llmenergy.campaign.trials import Split, Trials, Warmup, run_trials
from pytest_llmenergy.environment import differences, system_name
from pytest_llmenergy.errors import DoesNotFitError, RequestError
from pytest_llmenergy.meters.idle import Idle, drift, measure_idle
from pytest_llmenergy.meters.machine import adopt
from pytest_llmenergy.records import (
    DOES_NOT_FIT,
    Campaign,
    Cell,
    CellRecord,
    ModelRecord,
    Provenance,
    Trial,
    WindowRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_llmenergy.backends import Backend, LoadedModel
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.meters.window import Meters, Window
    from pytest_llmenergy.records import Environment

TRACE_NAME = "trace.parquet"


class Observer(Protocol):
    """Whoever wants to show progress."""

    def loading(self, model: str) -> None:
        """A model is being loaded."""
        ...

    def begins(self, place: Place) -> None:
        """A cell is about to be measured."""
        ...

    def trial(self, trials: Trials, trial: Trial) -> None:
        """A trial is done."""
        ...

    def ends(self, place: Place, record: CellRecord) -> None:
        """A cell has been measured."""
        ...

    def notice(self, text: str) -> None:
        """Something a person should know, which stops nothing."""
        ...


class Silent:
    """Shows nothing."""

    def loading(self, model: str) -> None:
        """Say nothing."""

    def begins(self, place: Place) -> None:
        """Say nothing."""

    def trial(self, trials: Trials, trial: Trial) -> None:
        """Say nothing."""

    def ends(self, place: Place, record: CellRecord) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """Say nothing."""


class Runner:
    """Measures cells, callables and blocks, and writes the results document."""

    def __init__(
        self,
        settings: Settings,
        *,
        meters: Meters,
        open_backend: Callable[[], Backend],
        environment: Environment,
        observer: Observer | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin the campaign, or go on with it.

        Args:
            settings: what was asked for.
            meters: opened; the runner closes them.
            open_backend: called when the first model is needed, so that metering a callable needs no engine.
            environment: of this machine.
            observer: shows progress.
            sleep: lets time pass on the meters' clock.

        Raises:
            RequestError: the folder cannot be written, or its journal is of another campaign.
        """
        self.settings = settings
        self.environment = environment
        self._meters = meters
        self._open_backend = open_backend
        self._sleep = sleep
        self._idle: dict[str, Idle] = {}  # the baseline before, by model
        self._observer: Observer = observer or Silent()
        self._backend: Backend | None = None
        self._loaded: tuple[str, LoadedModel] | None = None
        self._unfit: dict[str, DoesNotFitError] = {}
        self._fresh = False  # a model was loaded and has not been called yet
        self._models: dict[str, ModelRecord] = {}
        self._cells: dict[tuple[Any, ...], CellRecord] = {}
        self._windows: list[WindowRecord] = []
        self._interrupted: CellRecord | None = None
        self._created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.kept: Path | None = None  # where a former campaign of the same folder went
        self.resumed_cells = 0
        self._journal = self._open_journal()

    # The journal

    @property
    def results_path(self) -> Path:
        """The results document."""
        return self.settings.folder / RESULTS_NAME

    def _open_journal(self) -> Journal:
        path = self.settings.folder / JOURNAL_NAME
        identity = self.settings.as_document()
        if self.settings.resume and path.exists():
            journal, events = Journal.reopen(path)
            try:
                self._restore(path, identity, events)
            except BaseException:
                journal.close()
                raise
            return journal
        if self.settings.resume:
            self._observer.notice(f"nothing to resume in {self.settings.folder}: the campaign begins")
        self.kept = _keep_former(self.settings.folder)
        return Journal.create(
            path, Opened(created=self._created, identity=identity, environment=self.environment)
        )

    def _restore(self, path: Path, identity: dict[str, Any], events: list[Event]) -> None:
        for event in events:
            match event:
                case Opened():
                    _refuse_other_campaign(path, event, identity, self.environment)
                    self._created = event.created
                case ModelLoaded(record=model):
                    self._models[model.model] = model
                case IdleDone(model=name, idle=idle):
                    self._add_idle(name, idle)
                case CellDone(record=cell):
                    if cell.error is None:  # a cell that failed is tried again
                        self._cells[_key_of(cell)] = cell
                case WindowDone():
                    pass  # windows outside cells belong to tests, which run again
                case TrialDone():
                    pass  # of a cell that is done, or that is measured again whole
        self.resumed_cells = len(self._cells)

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
            if count < 1:
                raise RequestError(f"{name} must be at least 1, not {count}.")
        kv_cache = self.settings.kv_cache if kv_cache is None else kv_cache
        work = Work(
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            batch_size=batch_size,
            kv_cache=kv_cache,
            seed=self.settings.seed,
        )
        key = (model, tokens_in, tokens_out, batch_size, kv_cache)
        if key not in self._cells:
            self._cells[key] = self._measure_cell(model, work, test, details or {})
        return self._cells[key]

    def has_cell(self, model: str, tokens_in: int, tokens_out: int) -> bool:
        """Whether the cell has been measured with the campaign's batch and cache."""
        return (
            model,
            tokens_in,
            tokens_out,
            self.settings.batch_size,
            self.settings.kv_cache,
        ) in self._cells

    def _measure_cell(self, model: str, work: Work, test: str | None, details: dict[str, Any]) -> CellRecord:
        place = Place(model, work.tokens_in, work.tokens_out)
        try:
            loaded = self._load(model)
        except DoesNotFitError as error:
            return self._without_room(self._cell(model, work, None), error, test, details)
        warning = loaded.check(work)
        if warning:
            self._observer.notice(warning)
        cell = self._cell(model, work, loaded)
        self._observer.begins(place)
        try:
            request = loaded.prepare(work)
        except DoesNotFitError as error:
            return self._without_room(cell, error, test, details)
        warmups = (*((Warmup(first_after_load=True),) if self._fresh else ()), Warmup())
        self._fresh = False
        seen: list[Trials] = []

        def note(trials: Trials, trial: Trial) -> None:
            seen[:] = [trials]
            self._journal.append(TrialDone(cell=cell.label, trial=trial))
            self._observer.trial(trials, trial)

        try:
            trials = run_trials(
                lambda: loaded.generate(request),
                meters=self._meters,
                rule=self.settings.rule,
                verify=lambda output: loaded.verify(request, output),
                warmups=warmups,
                window_error=self.settings.window_error,
                on_trial=note,
                account=lambda output, runtime_s: {
                    **loaded.timings(output),
                    **_of_trial(loaded.account(work, runtime_s)),
                },
                split=Split(
                    trials=self.settings.phases if work.tokens_out > 1 else 0,
                    call=lambda mark: loaded.generate(request, on_first_token=mark),
                    decode_steps=work.tokens_out - 1,
                ),
            )
        except DoesNotFitError as error:
            return self._without_room(cell, error, test, details, seen[0] if seen else None)
        except BaseException as error:
            if seen:
                reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                seen[0].error = f"{type(error).__name__}: {error}"
                self._interrupted = self._record(cell, seen[0], seen[0].stopped(reason), test, details)
            raise
        record = self._record(cell, trials, trials.stop, test, details)
        if record.summary is not None and record.summary.runtime_s and trials.error is None:
            physics = loaded.account(work, record.summary.runtime_s)
            record = msgspec.structs.replace(record, details={**record.details, **physics})
        return self._keep(place, record)

    def _cell(self, model: str, work: Work, loaded: LoadedModel | None) -> Cell:
        system = None if loaded is None else loaded.system
        return Cell(
            model=model,
            system=self.settings.system or system or system_name(self.environment),
            n_gpus=None if loaded is None else loaded.n_gpus,
            batch_size=work.batch_size,
            kv_cache=work.kv_cache,
            tokens_in=work.tokens_in,
            tokens_out=work.tokens_out,
        )

    def _without_room(
        self,
        cell: Cell,
        error: DoesNotFitError,
        test: str | None,
        details: dict[str, Any],
        trials: Trials | None = None,
    ) -> CellRecord:
        """Keep a cell that does not fit with its sizes; the campaign goes on."""
        trials = trials or Trials(self.settings.rule)
        trials.error = str(error)
        sizes = {"needed_b": error.needed_b, "available_b": error.available_b}
        record = self._record(cell, trials, trials.stopped(DOES_NOT_FIT), test, {**details, **sizes})
        return self._keep(Place(cell.model, cell.tokens_in, cell.tokens_out), record)

    def _keep(self, place: Place, record: CellRecord) -> CellRecord:
        # Kept before it is noted: an interrupt in between loses neither.
        self._cells[_key_of(record)] = record
        self._journal.append(CellDone(record=record))
        self._observer.ends(place, record)
        return record

    def _record(
        self, cell: Cell, trials: Trials, stop: Any, test: str | None, details: dict[str, Any]
    ) -> CellRecord:
        record = CellRecord(
            **msgspec.structs.asdict(cell),
            trials=tuple(trials.trials),
            stop=stop,
            summary=summarise(
                trials.trials,
                tokens_generated=cell.tokens_generated,
                confidence=self.settings.rule.confidence,
            ),
            error=trials.error,
            test=test,
            details=details,
        )
        return with_net(record, self._models.get(cell.model))

    # Models

    def _load(self, model: str) -> LoadedModel:
        if self._loaded is not None and self._loaded[0] == model:
            return self._loaded[1]
        self._unload()
        if model in self._unfit:
            raise self._unfit[model]
        self._observer.loading(model)
        if self._backend is None:
            self._backend = self._open_backend()
        started_s = time.perf_counter()
        try:
            loaded = self._backend.load(model)
        except DoesNotFitError as error:
            self._unfit[model] = error  # nor will it for the next cell
            raise
        adopt(loaded.pids)
        record = msgspec.structs.replace(loaded.record, load_s=time.perf_counter() - started_s)
        self._loaded = (model, loaded)
        self._fresh = True
        self._models[model] = record
        self._journal.append(ModelLoaded(record=record))
        self._measure_idle(model, "before")
        return loaded

    def _unload(self, *, at_rest: bool = True) -> None:
        if self._loaded is not None:
            model, loaded = self._loaded
            self._loaded = None
            try:
                if at_rest and not self._fresh:
                    self._measure_idle(model, "after")
            finally:
                adopt(())
                loaded.close()

    def _measure_idle(self, model: str, when: str) -> None:
        """Meter the loaded model at rest; only what is measured has an idle power worth the name."""
        is_measured = any(source.provenance is Provenance.MEASURED for source in self._meters.sources)
        if self.settings.idle_s <= 0 or not is_measured:
            return
        idle = measure_idle(self._meters, self.settings.idle_s, sleep=self._sleep)
        drifted = () if when == "before" or model not in self._idle else drift(self._idle[model], idle)
        for text in drifted:
            self._observer.notice(f"{model}: {text}")
        self._idle[model] = idle
        found = idle.record(when) | {"drift": list(drifted)}
        self._journal.append(IdleDone(model=model, idle=found))
        self._add_idle(model, found)

    def _add_idle(self, model: str, idle: dict[str, Any]) -> None:
        record = self._models[model]
        self._models[model] = msgspec.structs.replace(record, idle=(*record.idle, idle))

    # Windows outside cells

    def measure(
        self,
        call: Callable[[], Any],
        *,
        label: str,
        tokens_generated: int | None = None,
        test: str | None = None,
    ) -> WindowRecord:
        """Measure any callable until the stopping rule says so; the first call is a warm-up.

        Args:
            call: takes nothing; what it returns is dropped.
            label: its name in the results.
            tokens_generated: by one call, over its whole batch, where it generates tokens.
            test: the test that asked.
        """
        if tokens_generated is not None and tokens_generated < 1:
            raise RequestError(f"tokens_out must be at least 1, not {tokens_generated}.")

        def dropping() -> None:
            call()

        trials = run_trials(
            dropping,
            meters=self._meters,
            rule=self.settings.rule,
            verify=lambda _: tokens_generated,
            warmups=(Warmup(),),
            window_error=self.settings.window_error,
            on_trial=self._observer.trial,
        )
        counted = trials.counted
        summary = summarise(
            trials.trials, tokens_generated=tokens_generated, confidence=self.settings.rule.confidence
        )
        record = WindowRecord(
            label=label,
            runtime_s=summary.runtime_s,
            domains=counted[-1].domains if counted else (),
            tokens_generated=tokens_generated,
            trials=tuple(trials.trials),
            stop=trials.stop,
            summary=summary,
            test=test,
        )
        return self._keep_window(record)

    @contextlib.contextmanager
    def window(self, label: str, *, test: str | None = None) -> Iterator[Window]:
        """Meter one block; what it cost is kept even when it raises."""
        with contextlib.ExitStack() as stack:
            window = stack.enter_context(self._meters.window(label))
            try:
                yield window
            finally:
                stack.close()  # closes the window, so that its figures are there
                self._keep_window(
                    WindowRecord(label=label, runtime_s=window.runtime_s, domains=window.domains, test=test)
                )

    def _keep_window(self, record: WindowRecord) -> WindowRecord:
        self._windows.append(record)
        self._journal.append(WindowDone(record=record))
        return record

    # The end

    def campaign(self, *, complete: bool) -> Campaign:
        """Everything so far as one document."""
        cells = [with_net(cell, self._models.get(cell.model)) for cell in self._cells.values()]
        if self._interrupted is not None and _key_of(self._interrupted) not in self._cells:
            cells.append(self._interrupted)
        return Campaign(
            name=self.settings.campaign,
            created=self._created,
            complete=complete,
            environment=self.environment,
            settings=self.settings.as_document(),
            models=tuple(self._models.values()),
            cells=tuple(cells),
            windows=tuple(self._windows),
        )

    def finish(self, *, complete: bool) -> Campaign:
        """Close models, meters and journal, and write the results document; nothing is written of nothing.

        Raises:
            RequestError: the folder cannot be written; the journal has all of it.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._journal.close)
            stack.callback(self._meters.close)
            stack.callback(self._unload, at_rest=complete)
        campaign = self.campaign(complete=complete)
        if campaign.cells or campaign.windows:
            write_results(self.results_path, campaign)
            if self._meters.trace is not None:
                content = self._meters.trace.parquet(since_s=self._meters.opened_s)
                write_atomically(self.settings.folder / TRACE_NAME, content)
        return campaign


def _of_trial(physics: dict[str, Any]) -> dict[str, Any]:
    """What of a call's physics differs from trial to trial; the rest stands in the cell once."""
    return {name: physics[name] for name in ("flops_per_s", "mfu") if physics.get("mfu") is not None}


def _key_of(cell: CellRecord) -> tuple[Any, ...]:
    return (cell.model, cell.tokens_in, cell.tokens_out, cell.batch_size, cell.kv_cache)


def _refuse_other_campaign(
    path: Path, opened: Opened, identity: dict[str, Any], environment: Environment
) -> None:
    changed = [
        f"{name}: {opened.identity.get(name)!r} then, {identity.get(name)!r} now"
        for name in sorted({*identity, *opened.identity})
        if identity.get(name) != opened.identity.get(name)
    ]
    changed += differences(opened.environment, environment)
    if changed:
        raise RequestError(
            f"{path} is of another campaign ({'; '.join(changed)}). Ask for the same settings on the same "
            "machine, or leave --llm-energy-resume out: the former campaign is then kept beside the new one."
        )


def _keep_former(folder: Path) -> Path | None:
    """Move a former campaign's files into a numbered folder beside the new ones; None if there were none."""
    former = [folder / name for name in (JOURNAL_NAME, RESULTS_NAME) if (folder / name).exists()]
    if not former:
        return None
    number = 1
    while (kept := folder / f"former-{number}").exists():
        number += 1
    try:
        kept.mkdir()
        for path in former:
            path.rename(kept / path.name)
    except OSError as error:
        raise RequestError(
            f"cannot keep the former campaign of {folder} ({error.strerror}). "
            "Choose another folder with --llm-energy-results DIR."
        ) from error
    return kept
