"""The power of every domain over time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.campaign.opening import open_campaign
from pytest_llmenergy.campaign.settings import Settings
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.meters.nvml import open_nvml
from pytest_llmenergy.meters.rapl import open_rapl
from pytest_llmenergy.meters.trace import Trace

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.meters.machine import Machine
    from tests.doubles.nvml import NvmlDouble
    from tests.doubles.powercap import PowercapTree
    from tests.doubles.powercurve import ManualScheduler


def test_a_trace_holds_every_domains_power(
    nvml: NvmlDouble, scheduler: ManualScheduler, powercap: PowercapTree, machine: Machine
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the trace extra is not installed")
    nvml.load("clock manual\ngpu A averaging_ms=0\npower 0 0 60\npower 0 5 300")
    powercap.add("intel-rapl:0", "package-0")
    clock = scheduler.on_advance

    def both(now_s: float) -> None:
        clock(now_s)
        powercap.set("intel-rapl:0", int(100e6 * now_s))

    scheduler.on_advance = both
    trace = Trace([open_nvml(scheduler, self_check_s=0), open_rapl(scheduler, machine)], scheduler)
    scheduler.advance(10)
    rows = parquet.read_table(io.BytesIO(trace.parquet())).to_pylist()
    late = [row["power_w"] for row in rows if row["domain"] == "gpu:0" and row["time_s"] > 5.2]
    package = [row["power_w"] for row in rows if row["domain"] == "cpu:package-0"]
    assert len(late) == pytest.approx(48, abs=2)
    assert late == pytest.approx([300.0] * len(late))
    assert package == pytest.approx([100.0] * len(package), rel=1e-3)


def test_a_simulated_machine_has_no_trace_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the trace extra is not installed")
    (tmp_path / "replay.toml").write_text(
        'schema = "llmenergy.replay/1"\n[[models]]\nname = "m"\nruntime_s = { step = 1 }\nenergy_j = {}\n'
    )
    settings = Settings(
        models=("m",), meters=(f"replay:{tmp_path}/replay.toml",), results=tmp_path / "out", trace=True
    )
    with pytest.raises(RequestError, match="leave --llm-energy-trace out"):
        open_campaign(settings)
    assert not (tmp_path / "out").exists()
