"""A gate's verdict in one line."""

from __future__ import annotations

import pytest

from pytest_llmenergy.analysis.gate.verdicts import (
    CellOutcome,
    GateReport,
    GridOutcome,
    Mode,
    Outcome,
    Verdict,
)
from pytest_llmenergy.records import Cell
from pytest_llmenergy.report.gate_tables import headline


@pytest.mark.parametrize(
    ("cell", "grid", "told"),
    [
        (Verdict.INCONCLUSIVE, Verdict.FAIL, "FAIL: 2 inconclusive; over its whole grid m fails"),
        (Verdict.INCONCLUSIVE, Verdict.PASS, "PASS: 2 inconclusive; over its whole grid every model passes"),
        (Verdict.FAIL, Verdict.FAIL, "FAIL: 2 fail"),
        (Verdict.PASS, Verdict.PASS, "PASS: 2 pass"),
    ],
)
def test_a_verdict_that_cells_do_not_tell_is_the_grids(cell: Verdict, grid: Verdict, told: str) -> None:
    cells = tuple(
        CellOutcome(
            cell=Cell(
                model="m", system="s", n_gpus=1, batch_size=1, kv_cache=False, tokens_in=8, tokens_out=n
            ),
            outcome=Outcome(verdict=cell),
        )
        for n in (8, 16)
    )
    report = GateReport(
        mode=Mode.SESSIONS,
        base="a",
        head="b",
        units=1,
        cells=cells,
        grids=(GridOutcome(model="m", cells=2, outcome=Outcome(verdict=grid)),),
        false_alarm_rate=0.0125,
    )
    assert headline(report) == told
