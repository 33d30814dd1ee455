"""AMD uProf, against an executable that writes rows in real time in the real layout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters import open_meters
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Callable

CPUS = psutil.cpu_count()


def test_packages_and_attributed_cores_are_metered(uprof: Callable[..., float]) -> None:
    """The one process of this test owns the power of the core it spins on, and nothing of an idle machine."""
    cores = [[(0, 10.0)]] * CPUS
    began_s = uprof([[(0, 100), (1.0, 250), (1.6, 100)], [(0, 40)]], cores)
    with open_meters(["uprof"]) as meters:
        time.sleep(max(0.0, began_s + 1.0 - time.monotonic()))
        with meters.window() as window:
            cpu_s = time.process_time()
            while time.monotonic() < began_s + 1.6:
                pass
            cpu_s = time.process_time() - cpu_s
        found = {part.domain: part for part in window.domains}
    start_s, end_s = window._edges_s  # on a busy machine later than was meant
    high_s = min(end_s, began_s + 1.6) - max(start_s, began_s + 1.0)
    truth_j = 100 * (end_s - start_s) + 150 * high_s
    assert found["cpu:package-0"].energy_j == pytest.approx(truth_j, rel=0.05)
    assert abs(found["cpu:package-0"].energy_j - truth_j) <= found["cpu:package-0"].bound_j
    assert found["cpu:package-1"].energy_j == pytest.approx(40 * window.runtime_s, rel=0.05)
    attributed = found["cpu:attributed"]
    assert attributed.provenance is Provenance.MEASURED
    # A core's power is ours as long as we run on it, or more where nobody else does.
    assert attributed.energy_j + attributed.bound_j >= 0.8 * 10 * cpu_s
    assert attributed.energy_j <= 10 * CPUS * window.runtime_s


def test_the_recorder_is_stopped_and_leaves_nothing(uprof: Callable[..., float]) -> None:
    uprof([[(0, 100)]], [[(0, 1)]])
    with open_meters(["uprof"]):
        recorders = [
            child for child in psutil.Process().children() if "fake_amduprofcli" in " ".join(child.cmdline())
        ]
        assert len(recorders) == 1
    assert not recorders[0].is_running()


def test_without_the_command_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MeterUnavailableError) as caught:
        open_meters(["uprof"])
    assert caught.value.reason is Unavailable.NOT_INSTALLED


def test_a_missing_driver_is_named_with_the_command_that_would_help(uprof: Callable[..., float]) -> None:
    uprof([], [], error="ERROR: Driver not available. Please install the driver.")
    with pytest.raises(MeterUnavailableError, match="Driver not available") as caught:
        open_meters(["uprof"])
    assert "AMDPowerProfilerDriver.sh install" in caught.value.remedy


def test_missing_records_of_a_window_are_no_reading(uprof: Callable[..., float]) -> None:
    uprof([[(0, 100)]], [[(0, 1)]], missing=list(range(4, 9)))
    with open_meters(["uprof"]) as meters:
        with meters.window() as window:
            time.sleep(1.0)
        assert {part.provenance for part in window.domains} == {Provenance.UNAVAILABLE}
        assert "missing in the record" in (window.domains[0].reason or "")


def test_a_recorder_that_writes_no_rows_is_told_at_once(
    uprof: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files with a header only exist; a campaign must not find out after an hour."""
    monkeypatch.setattr("pytest_llmenergy.meters.uprof._FIRST_ROWS_S", 1.0)
    uprof([[(0, 100)]], [[(0, 1)]], rows=False)
    with pytest.raises(MeterUnavailableError, match="a header but no records") as caught:
        open_meters(["uprof"])
    assert caught.value.reason is Unavailable.READ_FAILED


def test_a_recorder_that_ends_leaves_later_windows_without_a_reading(uprof: Callable[..., float]) -> None:
    uprof([[(0, 100)]], [[(0, 1)]])
    with open_meters(["uprof"]) as meters:
        recorder = next(
            child for child in psutil.Process().children() if "fake_amduprofcli" in " ".join(child.cmdline())
        )
        recorder.kill()
        recorder.wait()
        with meters.window() as window:
            time.sleep(0.3)
        assert {part.energy_j for part in window.domains} == {None}
        assert all(part.reason for part in window.domains)


def test_the_recorders_own_cpu_time_is_the_meters_cost(uprof: Callable[..., float]) -> None:
    uprof([[(0, 100)]] * 2, [[(0, 1)]] * 128)
    with open_meters(["uprof"]) as meters:
        (meter,) = meters._meters
        began_s = meter.cpu_s
        until_s = time.monotonic() + 10
        while meter.cpu_s < began_s + 0.02 and time.monotonic() < until_s:
            time.sleep(0.1)
        assert meter.cpu_s >= began_s + 0.02


def test_rows_that_come_late_in_blocks_are_waited_for(
    uprof: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CLI writes when a buffer is full, also in mid-row: on a small machine every few seconds."""
    monkeypatch.setattr("pytest_llmenergy.meters.uprof._ROWS_S", 0.2)  # and so not long enough by itself
    uprof([[(0, 100)]], [[(0, 1)]] * 2, block=600)
    with open_meters(["uprof"]) as meters:
        for _ in range(2):
            with meters.window() as window:
                time.sleep(0.3)
            found = {part.domain: part for part in window.domains}
            assert found["cpu:package-0"].energy_j == pytest.approx(100 * window.runtime_s, rel=0.02)
        details = meters.sources[0].details
    assert details["rows_come_every_s"] > 1


def test_a_recording_without_its_date_is_read_by_its_times(uprof: Callable[..., float]) -> None:
    uprof([[(0, 100)]], [[(0, 1)]], dated=False)
    with open_meters(["uprof"]) as meters:
        with meters.window() as window:
            time.sleep(0.3)
        assert window.domains[0].energy_j == pytest.approx(100 * window.runtime_s, rel=0.02)


def test_without_columns_of_cores_nothing_is_attributed(uprof: Callable[..., float]) -> None:
    """A CPU whose core power uProf does not know; its packages count then."""
    uprof([[(0, 100)]], [])
    with open_meters(["uprof"]) as meters:
        with meters.window() as window:
            time.sleep(0.3)
        assert meters.sources[0].domains == ("cpu:package-0",)
        assert [part.domain for part in window.domains] == ["cpu:package-0"]


def test_a_system_clock_that_is_set_in_mid_session_leaves_no_reading(
    uprof: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows' times are the system clock's: after it was set they do not fit ours."""
    uprof([[(0, 100)]], [[(0, 1)]])
    with open_meters(["uprof"]) as meters:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3)
        with meters.window() as window:
            time.sleep(0.1)
        assert "clock" in (window.domains[0].reason or "")
        assert "+3.0 s" in (window.domains[0].reason or "")
