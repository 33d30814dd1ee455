"""`llmenergy-report budget`: hold results to a budget file, or move the budgets to them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pytest_llmenergy.cli.gate import Share


@click.command("budget")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    default=Path("llmenergy-budget.toml"),
    show_default=True,
    help="The budget file.",
)
@click.option("--update", is_flag=True, help="Move the budgets to what was measured.")
@click.option("--headroom", type=Share(), default="10%", show_default=True, help="Room above, for --update.")
def command(results: Path, path: Path, *, update: bool, headroom: float) -> None:
    """Hold RESULTS to the most J per generated token that each model may cost.

    With --update the file is written (or begun) from RESULTS, and the difference is shown. Exit status: 1
    when a budget is broken or a budgeted model was not measured.
    """
    from pytest_llmenergy.analysis.gate import read_session
    from pytest_llmenergy.analysis.gate.budget import difference, hold, read_budgets, updated
    from pytest_llmenergy.campaign.results import read_results, write_atomically
    from pytest_llmenergy.report.gate_tables import budget_lines

    session = read_session(read_results(results), results)
    if not update:
        outcomes = hold(read_budgets(path), session)
        for line in budget_lines(outcomes):
            click.echo(line)
        sys.exit(int(any(outcome.broken for outcome in outcomes)))
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = updated(read_budgets(path) if before else None, session, headroom).to_toml()
    lines = difference(before, after, path.name)
    write_atomically(path, after.encode())
    for line in lines or [f"{path} stays as it is."]:
        click.echo(line)
