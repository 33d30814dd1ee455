"""The gate's report, written wherever CI reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.campaign.results import write_atomically, write_json
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.report.gate_tables import gate_markdown, workflow_commands

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.gate import GateReport

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def publish(
    report: GateReport, *, json_path: Path | None = None, markdown_path: Path | None = None
) -> list[str]:
    """Write the JSON and the Markdown asked for, append to the job's summary page where GitHub runs the job.

    Returns:
        Workflow commands to print, which GitHub turns into annotations; none elsewhere.

    Raises:
        RequestError: a file cannot be written.
    """
    if json_path is not None:
        write_json(json_path, report.to_document())
    markdown = gate_markdown(report)
    if markdown_path is not None:
        write_atomically(markdown_path, markdown.encode())
    page = os.environ.get(STEP_SUMMARY)
    if page:
        try:
            with Path(page).open("a", encoding="utf-8") as file:
                file.write(markdown)
        except OSError as error:
            raise RequestError(f"cannot append to ${STEP_SUMMARY}, {page} ({error.strerror}).") from error
    return workflow_commands(report) if os.environ.get("GITHUB_ACTIONS") == "true" else []
