"""What a person sees while a campaign runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_llmenergy.units import format_percent, format_quantity, format_runtime, format_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from pytest_llmenergy.campaign.grid import Place
    from pytest_llmenergy.campaign.trials import Trials
    from pytest_llmenergy.records import CellRecord, Trial

_WIDTH = 79  # one less than a terminal's 80, so that no line wraps by itself
_SILENCE_S = 60.0  # for so long nothing is said of the trials where lines cannot be rewritten


class Progress:
    """Rewrites one line while a cell runs and leaves one for each finished cell, also without a terminal."""

    def __init__(self, config: pytest.Config, *, kv_cache: bool) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")
        self._capture = config.pluginmanager.getplugin("capturemanager")
        if self._reporter is not None:
            self._reporter.showfspath = (
                False  # cells of all files are mixed: their names would only break lines
            )
        self._live = bool(self._reporter and self._reporter.isatty and not config.option.verbose)
        self._terminal = None if self._reporter is None else config.get_terminal_writer()
        self._is_rewriting = False  # the line under the cursor is ours, to be written over
        self._kv_cache = kv_cache
        self._left: list[Place] = []
        self._now: Place | None = None
        self._total = 0
        self._done_cost = 0.0
        self._spent_s = 0.0
        self._began_s = self._said_s = time.monotonic()
        self.cells_shown = 0  # lines that stay

    def plan(self, places: Sequence[Place]) -> None:
        """The cells to come; two that differ in batch or cache alone are two of one place."""
        self._left = list(places)
        self._total = len(self._left)

    def loading(self, model: str) -> None:
        """A model is being loaded."""
        if self._live:
            self._overwrite(f"loading {model} ...")
        else:
            self._line(f"loading {model} ...")

    def begins(self, place: Place) -> None:
        """A cell is about to be measured."""
        if place not in self._left:  # a test asked for a cell by itself
            self._left.append(place)
            self._total += 1
        self._began_s = time.monotonic()
        self._now = place

    def trial(self, trials: Trials, trial: Trial) -> None:
        """A trial is done."""
        head = f"{self._count(1)} {_work(self._now)}" if self._now is not None else "measuring"
        if trial.warmup:
            self._overwrite(f"{head}  warm-up {format_runtime(trial.runtime_s)}")
            return
        now = trials.stopped("")
        spread = f"±{format_runtime(now.runtime_half_width_s)} ±{format_percent(now.energy_half_width_rel)}"
        self._overwrite(f"{head}  trial {now.trials} {spread}{self._time_left()}")

    def ends(self, place: Place, record: CellRecord) -> None:
        """A cell has been measured."""
        if self._now is None:
            self.begins(place)  # it could not even begin
        self._now = None
        self._left.remove(place)
        if record.error is None:  # how long a cell takes that failed says nothing of the others
            self._spent_s += time.monotonic() - self._began_s
            self._done_cost += place.cost(kv_cache=self._kv_cache)
        line = f"{self._count(0)} {_work(place)}  {_outcome(record)}"
        self._line(line if record.error is not None else f"{line}{self._time_left()}"[:_WIDTH])
        self.cells_shown += self._reporter is not None

    def ends_early(self) -> None:
        """The campaign is over; a cell that was being measured is not done."""
        if self._now is not None:
            self._line(f"{self._count(1)} {_work(self._now)}  interrupted")
            self._now = None

    def clear(self) -> None:
        """Take the line away that is written over and over: somebody else writes now."""
        if self._is_rewriting:
            self._write(self._erase)

    def notice(self, text: str) -> None:
        """Say something that stays."""
        self._line(text)

    def _count(self, ahead: int) -> str:
        number = min(self._total - len(self._left) + ahead, self._total)
        return f"[{number:>{len(str(self._total))}}/{self._total}]"

    def _time_left(self) -> str:
        left = sum(place.cost(kv_cache=self._kv_cache) for place in self._left)
        if not self._done_cost or not left:
            return ""
        wait_s = self._spent_s * left / self._done_cost
        return f"  {format_wait(wait_s)} left" if wait_s >= 1 else ""

    def _overwrite(self, text: str) -> None:
        if not self._live:
            if time.monotonic() - self._said_s >= _SILENCE_S:  # a log shows that it goes on
                self._line(text)
            return

        def write() -> None:
            if not self._is_rewriting:
                self._begin_line()
            self._reporter.rewrite(text[:_WIDTH], erase=True)
            self._is_rewriting = True

        self._write(write)

    def _line(self, text: str) -> None:
        self._said_s = time.monotonic()

        def write() -> None:
            if self._is_rewriting:
                self._erase()
            else:
                self._begin_line()
            self._reporter.write_line(text)

        self._write(write)

    def _erase(self) -> None:
        self._reporter.rewrite("", erase=True)
        self._reporter.write("\r")
        self._is_rewriting = False

    def _begin_line(self) -> None:
        """End the line that pytest has begun, with the dots of other tests."""
        self._reporter.ensure_newline()
        if self._terminal is not None and self._terminal.width_of_current_line:
            self._terminal.line()

    def _write(self, write: Callable[[], None]) -> None:
        if self._reporter is None:
            return
        if self._capture is None:
            write()
            return
        with self._capture.global_and_fixture_disabled():
            write()


def _outcome(record: CellRecord) -> str:
    summary, stop = record.summary, record.stop
    if stop is not None and stop.reason == "interrupted":
        return "interrupted"
    if record.error is not None or summary is None or stop is None:
        return f"failed: {record.error}"
    per_token_j, half_width_j = summary.energy_j_per_token, summary.energy_j_per_token_half_width
    spread = f" ±{format_percent(half_width_j / per_token_j)}" if half_width_j and per_token_j else ""
    runs = f"{stop.trials:>2} x {format_runtime(summary.runtime_s):<7}"
    return f"{runs} {format_quantity(per_token_j, 'J'):>8}/token{spread}"


def _work(place: Place) -> str:
    tokens = f"{place.tokens_in}->{place.tokens_out}"
    return f"{place.model} {tokens:>9}"
