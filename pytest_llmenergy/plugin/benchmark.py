"""Our trials in pytest-benchmark's table, JSON and storage, through its public interface alone.

A test's `benchmark` fixture gets a timer that replays the durations we measured; `pedantic` then "runs" a
function that does nothing, once a counted trial. So its table holds exactly our trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.records import CellRecord, Environment, Gpu, WindowRecord


class ReplayTimer:
    """A clock whose successive readings are 0, d1, 0, d2 ..., so that differences are exact."""

    def __init__(self) -> None:
        self._readings: list[float] = []

    def load(self, durations_s: Sequence[float]) -> None:
        """Take the durations to replay, in s."""
        self._readings = [reading for d in reversed(durations_s) for reading in (d, 0.0)]

    def __call__(self) -> float:
        """The next reading; 0 when there is none left."""
        return self._readings.pop() if self._readings else 0.0


_TIMER = pytest.StashKey[ReplayTimer]()


def prepare(item: pytest.Item, config: pytest.Config) -> None:
    """Give a test that uses `energy` its timer, before any fixture is set up."""
    names: Sequence[str] = getattr(item, "fixturenames", ())
    if "energy" not in names or "benchmark" in names:
        return  # nothing of ours, or the test times something of its own

    def given(option: str) -> bool:
        return bool(config.getoption(option, default=False))

    codspeed = given("codspeed")  # replaces pytest-benchmark, and knows no timer
    off = codspeed or given("benchmark_skip") or given("benchmark_disable")
    if config.pluginmanager.hasplugin("benchmark") and not off:
        timer = item.stash[_TIMER] = ReplayTimer()
        item.add_marker(pytest.mark.benchmark(timer=timer))
    if codspeed or given("benchmark_only"):
        # Else it would be deselected, or skipped, as no benchmark. The list itself is shared between tests.
        item.fixturenames = [*names, "benchmark"]  # type: ignore[attr-defined]


def register(request: pytest.FixtureRequest, record: CellRecord | WindowRecord, *, again: bool) -> None:
    """Hand a record to the test's `benchmark`; the first of a test, for it takes one.

    A cell that several tests share (`again`) is one benchmark, unless pytest-benchmark counts on the test.
    """
    if again and "benchmark" not in request.fixturenames:
        return
    timer = request.node.stash.get(_TIMER, None)
    durations_s = [trial.runtime_s for trial in record.trials if trial.counts]
    if timer is None or not durations_s:
        return
    del request.node.stash[_TIMER]
    timer.load(durations_s)
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info["llmenergy"] = _extra_info(record)
    benchmark.pedantic(_nothing, rounds=len(durations_s), iterations=1)


def _nothing() -> None:
    pass


def _extra_info(record: CellRecord | WindowRecord) -> dict[str, Any]:
    extra: dict[str, Any] = msgspec.to_builtins(
        {
            "schema": "llmenergy.cell/1",
            "summary": record.summary,
            "stop": record.stop,
            "domains": [
                {
                    "domain": part.domain,
                    "energy_j": [_energy_j(trial, part.domain) for trial in record.trials if trial.counts],
                    "provenance": part.provenance,
                }
                for part in record.trials[-1].domains
            ],
        }
    )
    return extra


def _energy_j(trial: Any, domain: str) -> float | None:
    return next((part.energy_j for part in trial.domains if part.domain == domain), None)


def machine_info(gpus: Sequence[Gpu], driver: str | None) -> dict[str, Any]:
    """What pytest-benchmark's machine info lacks; nothing without a GPU, so that stored files still agree."""
    return msgspec.to_builtins({"gpus": gpus, "gpu_driver": driver}) if gpus else {}


def output(environment: Environment) -> dict[str, Any]:
    """The block of pytest-benchmark's JSON that says what metered the energies in it."""
    meters = [source for source in environment.meters if source.available]
    return {"meters": msgspec.to_builtins(meters), "fingerprint": environment.fingerprint}
