"""`llmenergy-report gate`: a verdict on energy per token, from stored results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_llmenergy.analysis.gate import GateReport, Rules
    from pytest_llmenergy.records import Cell


class Share(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs alone
    """`5%` or `0.05`; click's own words for anything else."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        from pytest_llmenergy.units import parse_fraction

        if isinstance(value, float):
            return value
        try:
            share = parse_fraction(str(value))
        except ValueError:
            self.fail(f"{value!r} is no share; write 5% or 0.05.", param, ctx)
        if not 0 <= share < float("inf"):
            self.fail(f"{value!r} must be 0 or more.", param, ctx)
        return share


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that ends with a verdict."""
    for option in reversed(
        (
            click.option(
                "--fail-above",
                type=Share(),
                metavar="SHARE",
                help="Fail on an increase that is shown and at least this large, pass when one is excluded. "
                "Without it: fail from 1 % over a model, 3 % in a cell; pass below 5 %.",
            ),
            click.option(
                "--tolerance",
                "tolerances",
                multiple=True,
                metavar="CELLS=SHARE",
                help="The same for cells whose name matches, '* in 8 out *=10%'. Repeatable; the last wins.",
            ),
            click.option(
                "--metric",
                type=click.Choice(("energy_j", "gpu_energy_j", "cpu_energy_j")),
                help="Which joules. Without it: all, or the GPU's where that is all there is.",
            ),
            click.option("--subset", is_flag=True, help="The head left cells out on purpose."),
            click.option("--strict", is_flag=True, help="Inconclusive fails, too."),
            click.option("--all", "every_cell", is_flag=True, help="Show every cell."),
            click.option(
                "--json", "json_path", type=click.Path(path_type=Path), help="Write llmenergy.gate/1."
            ),
            click.option(
                "--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write a summary page."
            ),
        )
    ):
        command = option(command)
    return command


def make_rules(
    *,
    fail_above: float | None,
    tolerances: Sequence[str],
    cells: Iterable[Cell],
    subset: bool,
    strict: bool,
    session_spread: float | None = None,
) -> Rules:
    """The rules that the options ask for.

    Raises:
        RequestError: a tolerance cannot be read, or matches no cell.
    """
    from dataclasses import replace

    from pytest_llmenergy.analysis.gate import Rules
    from pytest_llmenergy.analysis.gate.tolerances import parse_tolerances

    rules = Rules(subset=subset, strict=strict, session_spread=session_spread)
    if fail_above is not None:
        rules = rules.with_limit(fail_above)
    return replace(rules, cells=parse_tolerances(tolerances, cells))


def finish(
    report: GateReport, *, every_cell: bool, json_path: Path | None, markdown_path: Path | None
) -> None:
    """Print, publish, and end with the verdict's exit status."""
    from pytest_llmenergy.report.gate_tables import gate_lines
    from pytest_llmenergy.report.publish import publish

    commands = publish(report, json_path=json_path, markdown_path=markdown_path)
    for line in (*gate_lines(report, every_cell=every_cell), *commands):
        click.echo(line)
    sys.exit(report.exit_status)


@click.command("gate")
@click.argument("base")
@click.argument("heads", metavar="HEAD...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--mode",
    type=click.Choice(("sessions", "history")),
    help="How to know how much unchanged sessions differ: assumed, or from ten stored ones. "
    "Without it: history where BASE means several and --session-spread is not given.",
)
@click.option(
    "--session-spread",
    type=Share(),
    metavar="SHARE",
    help="Assumed relative standard deviation of a session's energy where nothing has changed (1%).",
)
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path(".llmenergy"), help="Where baselines are kept."
)
@shared_options
def command(  # noqa: PLR0917 - click passes them by name
    base: str,
    heads: tuple[Path, ...],
    mode: str | None,
    session_spread: float | None,
    store: Path,
    fail_above: float | None,
    tolerances: tuple[str, ...],
    metric: str | None,
    every_cell: bool,
    subset: bool,
    strict: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Compare energy per generated token of HEAD with BASE, cell by cell and over each model's cells.

    BASE is a results document, a folder of stored baselines, or a stored baseline's name; HEAD are results
    documents of one commit. Exit status: 1 when the gate fails or nothing was compared, 2 when the request
    is wrong.
    """
    from pytest_llmenergy.analysis.gate import Mode, compare_sessions, read_session
    from pytest_llmenergy.analysis.gate.comparable import refuse_same
    from pytest_llmenergy.campaign.baselines import find_baselines
    from pytest_llmenergy.campaign.results import read_results

    judged = [read_session(read_results(path), path, metric) for path in heads]
    paths = find_baselines(base, judged[0].campaign.environment, store)
    bases = [read_session(read_results(path), path, metric) for path in paths]
    if len(bases) > 1:  # a head that was stored already is no evidence about itself
        mine = [session.campaign for session in judged]
        bases = [session for session in bases if session.campaign not in mine]
    refuse_same(bases, judged)
    rules = make_rules(
        fail_above=fail_above,
        tolerances=tolerances,
        cells=[cell for session in judged for cell in session.readings],
        subset=subset,
        strict=strict,
        session_spread=session_spread,
    )
    report = compare_sessions(bases, judged, rules, None if mode is None else Mode(mode))
    finish(report, every_cell=every_cell, json_path=json_path, markdown_path=markdown_path)
