"""The measuring session: translates pytest's events into the campaign's, and back."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmenergy.campaign.interrupts import Interrupts
from pytest_llmenergy.campaign.opening import open_campaign
from pytest_llmenergy.environment import read_gpus
from pytest_llmenergy.errors import LLMEnergyError
from pytest_llmenergy.options import given
from pytest_llmenergy.plugin import announce, benchmark, marker, plan
from pytest_llmenergy.plugin.fixture import Energy
from pytest_llmenergy.plugin.progress import Progress
from pytest_llmenergy.plugin.reading import read_gate, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pytest_llmenergy.campaign.runner import Runner
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.plugin.gate import SessionGate
    from pytest_llmenergy.records import Campaign, CellRecord, WindowRecord


def open_session(config: pytest.Config) -> MeasuringSession:
    """The session's plugin.

    Raises:
        pytest.UsageError: the request makes no sense; the message names the remedy.
    """
    if _is_distributed(config):
        raise pytest.UsageError(
            "--llm-energy measures alone on the machine: side by side, tests would meter each other. "
            "Leave out -n (pytest-xdist), --tx, --dist and -d."
        )
    try:
        session = MeasuringSession(config, read_settings(config))
        request = read_gate(config)
        if request.asks or request.binding:
            from pytest_llmenergy.plugin.gate import SessionGate

            session.gate = SessionGate(request)
    except LLMEnergyError as error:
        raise pytest.UsageError(str(error)) from error
    return session


def _is_distributed(config: pytest.Config) -> bool:
    """Whether pytest-xdist would run the tests in other processes, or this is one of them."""
    return (
        hasattr(config, "workerinput")
        or bool(config.getoption("numprocesses", default=None))
        or bool(config.getoption("tx", default=None))
        or config.getoption("dist", default="no") != "no"
    )


class MeasuringSession:
    """Hooks that are there only while measuring."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._runner: Runner | None = None
        self._progress: Progress | None = None
        self._finished: Campaign | None = None
        self._energies: dict[str, Energy] = {}
        self._registered: set[int] = set()  # records live as long as the session
        self._shown: set[str] = set()  # tests whose cell has a line
        self._handlers: dict[int, Any] = {}
        self._interrupts = Interrupts()
        self._error: str | None = None
        self.gate: SessionGate | None = None
        self._suite_property: Callable[[str, object], None] | None = None

    # Which tests, in which order

    def cells(self, sweep: str) -> list[Any]:
        """Parameter sets of one sweep of the grid, for every model."""
        try:
            axes = self._settings.grid.sweep(sweep)
        except LLMEnergyError as error:
            message = f"@pytest.mark.llmenergy(sweep=...): {error}"
            raise pytest.Collector.CollectError(message) from None  # pytest prints it alone
        if axes is None:
            reason = f"the grid {self._settings.grid_name} has no {sweep} sweep"
            return [pytest.param(None, None, None, marks=pytest.mark.skip(reason=reason), id="none")]
        return [
            pytest.param(model, t_in, t_out, id=f"{Path(model).name}-in{t_in}-out{t_out}")
            for model in self._settings.models
            for t_in, t_out in axes.points
        ]

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Prepare for pytest-benchmark before it looks at its tests."""
        benchmark.prepare(item, self._config)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put each model's cells together, in seeded random order, after the tests that have none."""
        for item in items:
            try:
                marker.check(item)
            except LLMEnergyError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from error
        items[:] = plan.in_order(items, seed=self._settings.seed, models=self._settings.models)
        if self._is_default_model() and not any(plan.is_swept(item) for item in items):
            self._settings = replace(self._settings, models=())

    def _is_default_model(self) -> bool:
        return given(self._config, "llm_energy_models") is None

    # Before and while it runs

    def pytest_report_collectionfinish(self) -> list[str]:
        """What will be measured, known when the tests are."""
        if self._config.get_verbosity() < 0:
            return []
        return announce.planned(self._settings, is_default=self._is_default_model())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Open meters and journal before the first test, so that a bad request ends before anything runs."""
        measuring = plan.measuring(session.items)
        if not measuring or self._config.option.collectonly:
            return
        try:
            runner = self._open(session)
        except LLMEnergyError as error:
            raise pytest.UsageError(str(error)) from error
        if self._progress is not None:
            self._progress.plan(plan.cells_to_come(measuring, runner))

    def _open(self, session: pytest.Session) -> Runner:
        """Open meters, journal and gate, and say so.

        Raises:
            LLMEnergyError: one of them cannot be had; nothing has been measured.
        """
        # Where pytest runs in another thread, interrupts are its caller's.
        is_ours = threading.current_thread() is threading.main_thread()
        for signum in (signal.SIGINT, signal.SIGTERM) if is_ours else ():
            self._handlers[signum] = signal.signal(signum, lambda _signum, _frame: self._interrupt(session))
        self._progress = Progress(self._config, kv_cache=self._settings.kv_cache)
        self._runner = runner = open_campaign(self._settings, self._progress, self._interrupts)
        if self.gate is not None:
            self.gate.prepare(runner.environment)
        for line in announce.opened(runner):
            self._progress.notice(line)
        return runner

    def fixture(self, request: pytest.FixtureRequest) -> Energy:
        """The `energy` of one test."""
        with self._interrupts.held():
            return self._fixture(request)

    def _fixture(self, request: pytest.FixtureRequest) -> Energy:
        if self._runner is None:  # no test names the fixture: this one asks for it as it runs
            try:
                self._open(request.session)
            except LLMEnergyError as error:
                pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        if self._runner is None:
            raise AssertionError("a campaign that could not be opened has ended the session")
        self._suite_property = request.getfixturevalue("record_testsuite_property")
        energy = Energy(self._runner, request, self._register)
        self._energies[request.node.nodeid] = energy
        return energy

    def _interrupt(self, session: pytest.Session) -> None:
        """Ctrl-C, or a batch system's time limit: end in order.

        An interrupt in the middle of pytest's own bookkeeping would be an internal error, so one that comes
        between two tests waits for the next.
        """
        session.shouldstop = "interrupted"
        self._interrupts.ask()

    def _register(self, request: pytest.FixtureRequest, record: CellRecord | WindowRecord) -> None:
        """Hand a record to pytest-benchmark."""
        benchmark.register(request, record, again=id(record) in self._registered)
        self._registered.add(id(record))

    @pytest.hookimpl(wrapper=True, trylast=True)  # around the fixtures alone, and no other plugin's books
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Let an interrupt end a fixture, at once: it may be loading a model of the user's."""
        with self._interrupts.allowed():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let an interrupt end a test of any kind, at once, and hold it to its budget."""
        lines = self._lines()
        try:
            with self._interrupts.allowed():
                result = yield
        finally:
            # A sweep's cell that an earlier test has measured has its line above.
            if self._lines() > lines or (item.nodeid in self._energies and plan.place_of(item) is not None):
                self._shown.add(item.nodeid)
        try:
            budget = marker.Budget.of(item)
        except LLMEnergyError as error:  # a marker that was added after collection
            pytest.fail(str(error), pytrace=False)
        energy = self._energies.get(item.nodeid)
        broken = None if budget is None else budget.broken_by([] if energy is None else energy.measured)
        if broken is not None:
            pytest.fail(broken, pytrace=False)
        return result

    def _lines(self) -> int:
        """How many cells have been shown."""
        return 0 if self._progress is None else self._progress.cells_shown

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Make room for what pytest prints of a test."""
        if self._progress is not None:
            self._progress.clear()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """A measured cell has its own line; a dot beside it would only break it."""
        if report.when == "call" and report.passed and report.nodeid in self._shown:
            return "passed", "", "MEASURED"
        if report.when == "call" and report.skipped and report.nodeid in self._shown:
            return "skipped", "", "SKIPPED"
        return None

    # Afterwards

    @pytest.hookimpl(tryfirst=True)  # before the JUnit file is written
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the results document, whatever ended the session."""
        try:
            self._finish(session, exitstatus)
        except LLMEnergyError as error:
            self._error = str(error)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        except KeyboardInterrupt:
            self._error = "interrupted at the end: the journal holds all that was measured."
            session.exitstatus = pytest.ExitCode.INTERRUPTED
        finally:
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            self._handlers.clear()

    def _finish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._runner is None or self._progress is None:
            if self.gate is not None and exitstatus == pytest.ExitCode.OK and not _only_collects(session):
                self.gate.nothing_measured()
                self._end_with_gate(session)
            return
        self._interrupts.hear()  # the document comes before asking twice
        ended = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        complete = ended and not session.shouldstop and not session.shouldfail
        self._finished = self._runner.finish(complete=complete)
        self._progress.ends_early()
        if self.gate is not None and ended:
            self.gate.judge(self._finished, self._runner.results_path)
            self._end_with_gate(session)

    def _end_with_gate(self, session: pytest.Session) -> None:
        """A failed gate is a failed test to whoever reads the exit status and the JUnit file."""
        if self.gate is None:
            return
        if self._suite_property is not None:
            self.gate.add_properties(self._suite_property)
        if self.gate.failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The tables, where the document is, and the gate's verdict."""
        self._write_tables(terminalreporter)
        if self.gate is not None and self.gate.lines:
            terminalreporter.section("energy gate")
            for line in self.gate.lines:
                terminalreporter.write_line(line, red=self.gate.failed and line == self.gate.lines[-1])

    def _write_tables(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._error is not None:
            terminalreporter.write_line(f"ERROR: {self._error}", red=True)
        if self._finished is None or self._runner is None:
            return
        if self._finished.is_empty:
            terminalreporter.write_line("llm-energy: nothing was measured.")
            return
        terminalreporter.section("energy of LLM inference")
        for line in announce.finished(self._finished, self._runner.results_path):
            terminalreporter.write_line(line)

    # pytest-benchmark, where it is there

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Add the GPUs; asked for at the start (to compare) and at the end (to store)."""
        driver, gpus = read_gpus()
        machine_info.update(benchmark.machine_info(gpus, driver))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add the meters."""
        if self._runner is not None:
            output_json["llmenergy"] = benchmark.output(self._runner.environment)


def _only_collects(session: pytest.Session) -> bool:
    return bool(session.config.option.collectonly)
