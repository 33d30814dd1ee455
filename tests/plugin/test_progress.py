"""What a log shows of a campaign while it runs, where no line can be rewritten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.campaign.grid import Place
from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.campaign.trials import Trials
from pytest_llmenergy.plugin.progress import Progress
from pytest_llmenergy.records import Trial

if TYPE_CHECKING:
    import pytest


class Log:
    """A terminal reporter that is no terminal."""

    isatty = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def ensure_newline(self) -> None:
        """Every line has its own."""

    def write_line(self, line: str) -> None:
        """Keep it."""
        self.lines.append(line)


def test_a_log_shows_that_a_long_cell_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line when a model is loaded; then one of a trial for every minute in which nothing was said."""
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    log = Log()
    plugins: dict[str, Any] = {"terminalreporter": log}
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(getplugin=plugins.get),
        option=SimpleNamespace(verbose=0),
        get_terminal_writer=lambda: SimpleNamespace(width_of_current_line=0),
    )
    progress, trials = Progress(config, kv_cache=False), Trials(StopRule())
    progress.plan([Place("m", 8, 8)])
    progress.loading("m")
    assert log.lines == ["loading m ..."]
    progress.begins(Place("m", 8, 8))
    for _ in range(20):
        now_s += 10.0
        progress.trial(trials, Trial(index=0, runtime_s=10.0, domains=(), warmup=True))
    assert log.lines[1:] == ["[1/1] m      8->8  warm-up 10.0 s"] * 3
