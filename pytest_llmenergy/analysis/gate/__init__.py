"""The regression gate: did energy per generated token rise, and how sure is that?"""

from __future__ import annotations

from pytest_llmenergy.analysis.gate.judge import compare_blocks, compare_sessions
from pytest_llmenergy.analysis.gate.readings import METRICS, Session, read_session
from pytest_llmenergy.analysis.gate.verdicts import (
    GATE_SCHEMA,
    GateReport,
    Mode,
    Rules,
    RunVerdict,
    Tolerance,
    Verdict,
)

__all__ = [
    "GATE_SCHEMA",
    "METRICS",
    "GateReport",
    "Mode",
    "Rules",
    "RunVerdict",
    "Session",
    "Tolerance",
    "Verdict",
    "compare_blocks",
    "compare_sessions",
    "read_session",
]
