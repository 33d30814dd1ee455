"""`llmenergy-report ab`: base and head measured in turn, on one machine, in one sitting."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmenergy.cli.gate import finish, make_rules, shared_options

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.gate import Rules, Session
    from pytest_llmenergy.campaign.checkouts import Checkout
    from pytest_llmenergy.campaign.interleave import Plan

OUTPUT = Path(".llmenergy") / "ab"
_WORKTREES = "worktrees"
_INTERRUPTED = 130  # as a shell says it


def _whole_numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 5,10.") from None


@click.command("ab")
@click.option("--base", "base", metavar="REV", help="What to compare with; this checkout where left out.")
@click.option("--head", "head", metavar="REV", help="What to judge; this checkout where left out.")
@click.option("--base-args", default="", metavar="ARGS", help="pytest arguments of the base alone.")
@click.option("--head-args", default="", metavar="ARGS", help="pytest arguments of the head alone.")
@click.option(
    "--looks",
    default="5,10",
    show_default=True,
    callback=_whole_numbers,
    metavar="BLOCKS",
    help="Judge after so many blocks, and stop when the verdict is clear; one number: no early stop.",
)
@click.option("--trials", type=click.IntRange(min=1), default=3, show_default=True, help="Trials a block.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and the prompts.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the results (.llmenergy/ab/<plan>). A comparison that was interrupted goes on in it.",
)
@click.option("--setup", metavar="COMMAND", help="Prepares a worktree, run once in each: 'uv sync'.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="Interpreter of the tests; a relative one is looked for in each worktree: .venv/bin/python.",
)
@click.option("--keep-worktrees", is_flag=True, help="Leave the worktrees there afterwards.")
@shared_options
@click.argument("pytest_arguments", metavar="-- [PYTEST ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def command(  # noqa: PLR0917 - click passes them by name
    base: str | None,
    head: str | None,
    base_args: str,
    head_args: str,
    looks: tuple[int, ...],
    trials: int,
    seed: int,
    output: Path | None,
    setup: str | None,
    python: Path | None,
    keep_worktrees: bool,
    fail_above: float | None,
    tolerances: tuple[str, ...],
    metric: str | None,
    every_cell: bool,
    subset: bool,
    strict: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    pytest_arguments: tuple[str, ...],
) -> None:
    """Measure BASE and HEAD in turn, in blocks of random order, and judge energy per generated token.

    Everything after -- goes to pytest in both. Revisions are checked out as git worktrees; with --base-args
    and --head-args two settings of one checkout are compared. A comparison that was interrupted goes on
    where it stopped when the command is given again.
    """
    from pytest_llmenergy.analysis.gate.looks import Looks
    from pytest_llmenergy.analysis.gate.running import compare_in_blocks
    from pytest_llmenergy.campaign.interleave import Interleaving

    schedule = Looks(looks)
    revisions = (base, head)
    plan = _plan(
        revisions=revisions,
        settings=(base_args, head_args),
        arguments=pytest_arguments,
        trials=trials,
        seed=seed,
    )
    folder = OUTPUT / plan.key if output is None else output
    if output is None:
        _ignore(OUTPUT)
    checkouts = _make_checkouts(plan, revisions, folder, setup, python or Path(sys.executable))
    comparison = Interleaving(plan, folder, checkouts)

    def rules_for(one: Session, other: Session) -> Rules:
        cells = dict.fromkeys((*one.readings, *other.readings))
        return make_rules(
            fail_above=fail_above, tolerances=tolerances, cells=cells, subset=subset, strict=strict
        )

    def say(text: str) -> None:
        click.echo(text, err=True)

    try:
        report = compare_in_blocks(comparison, schedule, rules_for, metric=metric, say=say)
    except KeyboardInterrupt:
        done = comparison.measured(schedule.last)
        say(f"interrupted after {done} of {2 * schedule.last} runs; the same command goes on")
        sys.exit(_INTERRUPTED)
    if not keep_worktrees:
        _remove_worktrees(checkouts, folder)
    finish(report, every_cell=every_cell, json_path=json_path, markdown_path=markdown_path)


def _plan(
    *,
    revisions: tuple[str | None, str | None],
    settings: tuple[str, str],
    arguments: tuple[str, ...],
    trials: int,
    seed: int,
) -> Plan:
    from pytest_llmenergy.campaign.checkouts import Repository
    from pytest_llmenergy.campaign.interleave import Arm, Plan
    from pytest_llmenergy.errors import RequestError

    here = Path.cwd()
    try:
        repository = Repository(here)
    except RequestError:
        if any(revisions):
            raise
        commits: list[str | None] = [None, None]
        folder = "."
    else:
        commits = [
            repository.working_tree() if revision is None else repository.commit(revision)
            for revision in revisions
        ]
        folder = here.resolve().relative_to(repository.root.resolve()).as_posix()
    base, head = (
        Arm(commit=commit, arguments=tuple(shlex.split(text)))
        for commit, text in zip(commits, settings, strict=True)
    )
    if base == head:
        raise RequestError(
            "base and head are the same. Name a revision with --base or --head, or two settings with "
            "--base-args and --head-args."
        )
    return Plan(base=base, head=head, arguments=arguments, folder=folder, trials=trials, seed=seed)


def _make_checkouts(
    plan: Plan, revisions: tuple[str | None, str | None], folder: Path, setup: str | None, python: Path
) -> dict[str, Checkout]:
    """Where each arm runs: a worktree of its revision, or this checkout as it stands."""
    from pytest_llmenergy.campaign.checkouts import Checkout, Repository

    here = Path.cwd()
    if not any(revisions):
        root = here if plan.base.commit is None else Repository(here).root
        one = Checkout(root=root, folder=here, python=python)
        return {"base": one, "head": one}
    repository = Repository(here)
    arms = dict(zip(("base", "head"), zip((plan.base, plan.head), revisions, strict=True), strict=True))
    commits = [(arm.commit or "").partition("+")[0] for arm in (plan.base, plan.head)]
    own = repository.needs_differ(*commits)
    checkouts = {}
    for name, (arm, revision) in arms.items():
        if revision is None:
            checkouts[name] = Checkout(root=repository.root, folder=here, python=_absolute(python, here))
        else:
            path = (folder / _WORKTREES / name).resolve()
            checkouts[name] = repository.checkout(path, arm.commit or "", setup=setup, python=python, own=own)
    return checkouts


def _absolute(python: Path, root: Path) -> Path:
    return python if python.is_absolute() else root / python


def _remove_worktrees(checkouts: dict[str, Checkout], folder: Path) -> None:
    from pytest_llmenergy.campaign.checkouts import Repository

    places = [c.root for c in checkouts.values() if c.root.is_relative_to((folder / _WORKTREES).resolve())]
    if places:
        repository = Repository(Path.cwd())
        for place in places:
            repository.remove_worktree(place)


def _ignore(folder: Path) -> None:
    """What is measured here is nobody's commit."""
    from pytest_llmenergy.campaign.results import write_atomically

    if not (folder / ".gitignore").exists():
        write_atomically(folder / ".gitignore", b"*\n")
