"""The gate at the end of a measuring session: baseline, budgets, and what is saved for the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate import Rules, compare_sessions, read_session
from pytest_llmenergy.analysis.gate.budget import hold, read_budgets
from pytest_llmenergy.analysis.gate.tolerances import parse_tolerances
from pytest_llmenergy.analysis.gate.verdicts import Verdict
from pytest_llmenergy.campaign.baselines import check_name, find_baselines, save_baseline
from pytest_llmenergy.campaign.folder import GATE_NAME
from pytest_llmenergy.campaign.results import read_results
from pytest_llmenergy.environment import differences
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_llmenergy.analysis.gate import GateReport, Session
    from pytest_llmenergy.analysis.gate.request import GateRequest
    from pytest_llmenergy.records import Campaign

_NOWHERE = Environment()  # a path is found without knowing the machine


class SessionGate:
    """Reads the baseline before anything is measured, judges when everything is, and keeps what to print."""

    def __init__(self, request: GateRequest) -> None:
        """Read what needs no machine to be found.

        Raises:
            RequestError: there is nothing to gate on, or a file cannot be used.
        """
        self._request = request
        if request.binding and request.baseline is None and request.budget is None:
            raise RequestError(
                "--llm-energy-gate has nothing to hold the run against. Give --llm-energy-baseline "
                "FILE|NAME, or a budget with --llm-energy-budget FILE."
            )
        if request.save is not None:
            check_name(request.save)
        self._budgets = None if request.budget is None else read_budgets(request.budget)
        self._bases: list[Session] = []
        # A file is read now: the campaign may move it away, when it is the former one of the same folder.
        if request.baseline is not None and _is_path(request.baseline):
            self._read(find_baselines(request.baseline, _NOWHERE, request.store))
        self.lines: list[str] = []
        self.failed = False
        self.report: GateReport | None = None

    def _read(self, paths: Iterable[Path]) -> None:
        self._bases = [read_session(read_results(path), path) for path in paths]

    def prepare(self, environment: Environment) -> None:
        """Find stored baselines of this machine, and refuse those of another, before anything is measured.

        Raises:
            RequestError: there is none, or it is not comparable.
        """
        request = self._request
        if request.baseline is None:
            return
        if not _is_path(request.baseline):
            self._read(find_baselines(request.baseline, environment, request.store))
        for base in self._bases:
            found = differences(base.campaign.environment, environment)
            if found:
                raise RequestError(
                    f"{base.name} cannot be the baseline of this machine: {'; '.join(found)}. "
                    "Save one here with --llm-energy-save NAME."
                )

    def judge(self, campaign: Campaign, path: Path) -> None:
        """Compare the finished campaign, hold it to its budgets, save it; `failed` says how it ended.

        Raises:
            RequestError: it cannot be compared, or a file cannot be written.
        """
        from pytest_llmenergy.report.gate_tables import budget_lines, gate_lines
        from pytest_llmenergy.report.publish import publish

        request = self._request
        if not campaign.complete:
            self.lines.append("not judged and not saved: the campaign was interrupted.")
            return
        session = read_session(campaign, path)
        if self._budgets is not None:
            outcomes = hold(self._budgets, session)
            self.lines += budget_lines(outcomes)
            self.failed |= request.binding and any(outcome.broken for outcome in outcomes)
        if request.baseline is not None:
            rules = Rules(strict=request.strict, subset=request.subset, session_spread=request.session_spread)
            if request.fail_above is not None:
                rules = rules.with_limit(request.fail_above)
            rules = replace(rules, cells=parse_tolerances(request.tolerances, session.readings))
            self.report = compare_sessions(self._bases, [session], rules)
            commands = publish(self.report, json_path=path.with_name(GATE_NAME))
            self.lines += [*gate_lines(self.report), *commands]
            self.failed |= request.binding and self.report.exit_status != 0
        if request.save is not None:
            self.lines.append(f"saved: {save_baseline(campaign, request.save, request.store)}")

    def nothing_measured(self) -> None:
        """A session without a measurement keeps no budget and passes no gate."""
        self.lines.append("NOTHING-COMPARED: no test measured anything.")
        self.failed = self._request.binding

    def add_properties(self, record: Callable[[str, object], None]) -> None:
        """The verdict as JUnit properties of the test suite."""
        report = self.report
        if report is None:
            return
        record("llmenergy.gate.verdict", report.verdict.value)
        record("llmenergy.gate.false_alarm_rate", report.false_alarm_rate)
        if report.smallest_effect is not None:
            record("llmenergy.gate.smallest_effect", report.smallest_effect)
        for grid in report.grids:
            record(f"llmenergy.gate.change.{grid.model}", grid.outcome.change)
        for cell in report.cells:
            if cell.outcome.verdict in {Verdict.FAIL, Verdict.NOT_MEASURED}:
                record(f"llmenergy.gate.{cell.outcome.verdict.value}", cell.cell.label)


def _is_path(baseline: str) -> bool:
    return Path(baseline).exists() or baseline.endswith(".json")
