"""Idle power before and after each model, and energy net of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from pytest_llmenergy.campaign.journal import JOURNAL_NAME, IdleDone, read_journal
from pytest_llmenergy.campaign.opening import open_campaign
from pytest_llmenergy.campaign.results import read_results
from pytest_llmenergy.campaign.settings import Settings
from pytest_llmenergy.campaign.summary import with_net

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.records import Campaign

REPLAY = """
schema = "llmenergy.replay/1"
idle_power_w = { "gpu:0" = 60.0, "cpu:package-0" = 40.0 }
[[models]]
name = "m"
runtime_s = { step = 0.1 }
energy_j = { "gpu:0" = { step = 30.0 }, "cpu:package-0" = { step = 5.0 } }
"""


def settings(folder: Path, **more: object) -> Settings:
    (folder / "replay.toml").write_text(REPLAY)
    return Settings(models=("m",), meters=(f"replay:{folder}/replay.toml",), results=folder / "out", **more)


def run(folder: Path, **more: object) -> Campaign:
    runner = open_campaign(settings(folder, **more))
    runner.cell("m", 8, 4)
    runner.finish(complete=True)
    return read_results(folder / "out")


def test_net_energy_is_gross_less_idle_power_times_runtime(tmp_path: Path) -> None:
    """Both are reported; 4 steps of 35 J in 0.4 s, over 100 W of idle power."""
    (cell,) = run(tmp_path).cells
    assert cell.summary is not None
    assert cell.summary.energy_j == pytest.approx(140)
    assert cell.summary.idle_power_w == pytest.approx(100)
    assert cell.summary.idle_spread_w == pytest.approx(0, abs=1e-6)
    assert cell.summary.net_energy_j == pytest.approx(140 - 100 * 0.4)


def test_idle_power_is_measured_before_and_after_each_model(tmp_path: Path) -> None:
    (model,) = run(tmp_path).models
    assert [idle["when"] for idle in model.idle] == ["before", "after"]
    for idle in model.idle:
        assert idle["domains"]["gpu:0"]["power_w"] == pytest.approx(60)
        assert idle["drift"] == []
    events, _ = read_journal(tmp_path / "out" / JOURNAL_NAME)
    assert sum(isinstance(event, IdleDone) for event in events) == 2


def test_a_model_that_was_never_called_has_no_power_at_rest_after(tmp_path: Path) -> None:
    """A cell that cannot be asked of it ended the session; nothing has warmed anything up."""
    runner = open_campaign(settings(tmp_path))
    runner._models.load("m")
    runner.finish(complete=True)
    events, _ = read_journal(tmp_path / "out" / JOURNAL_NAME)
    assert [event.idle["when"] for event in events if isinstance(event, IdleDone)] == ["before"]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    campaign = run(tmp_path, idle_s=0.0)
    assert campaign.models[0].idle == ()
    assert campaign.cells[0].summary is not None
    assert campaign.cells[0].summary.net_energy_j is None


def test_a_resumed_campaign_keeps_its_baselines(tmp_path: Path) -> None:
    run(tmp_path)
    runner = open_campaign(settings(tmp_path, resume=True))
    (cell,) = runner.campaign(complete=True).cells
    runner.finish(complete=True)
    assert cell.summary is not None
    assert cell.summary.net_energy_j == pytest.approx(100)


def test_net_energy_may_be_negative_and_a_missing_domain_leaves_it_unknown(tmp_path: Path) -> None:
    """A floor at 0 would hide a bad baseline."""
    campaign = run(tmp_path)
    (model,), (cell,) = campaign.models, campaign.cells

    def with_idle(domains: dict[str, float]) -> float | None:
        parts = {
            name: {"power_w": power_w, "spread_w": 1.0, "provenance": "measured"}
            for name, power_w in domains.items()
        }
        bare = msgspec.structs.replace(cell.summary, net_energy_j=None)
        found = with_net(
            msgspec.structs.replace(cell, summary=bare),
            msgspec.structs.replace(model, idle=({"domains": parts},)),
        )
        assert found.summary is not None
        return found.summary.net_energy_j

    assert with_idle({"gpu:0": 400, "cpu:package-0": 100}) == pytest.approx(140 - 500 * 0.4)
    assert with_idle({"gpu:0": 60}) is None
