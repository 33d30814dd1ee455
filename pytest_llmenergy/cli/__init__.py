"""`llmenergy-report`: one file a command, each imported only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import click

from pytest_llmenergy.errors import LLMEnergyError, MissingExtraError

# The package -> the extra that brings it; whatever stage first misses one, the message names the extra.
EXTRAS = {
    "numpy": "analysis",
    "pandas": "analysis",
    "scipy": "analysis",
    "statsmodels": "analysis",
    "polars": "routing",
    "pulp": "routing",
    "highspy": "routing",
    "pyarrow": "trace",
    "torch": "models",
    "transformers": "models",
    "accelerate": "models",
}

# Command -> the module of this package that holds a click command named `command`.
COMMANDS = {
    "summary": "summary",
    "import": "import_",
    "schema": "schema",
    "anova": "anova",
    "fit": "fit",
    "route": "route",
    "gate": "gate",
    "ab": "ab",
    "budget": "budget",
    "doctor": "doctor",
}


_WHOLE = 500  # characters: longer than any first sentence
_NEAR = 0.7  # of two names: `plot` is not near to `import`


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command that this version has."""
        del ctx
        return [name for name, module in COMMANDS.items() if importlib.util.find_spec(f"{__name__}.{module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named, or the names near to what was written: click knows those it has loaded only."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            import difflib

            names = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], names, cutoff=_NEAR)
            remedy = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
            ctx.fail(f"No such command {args[0]!r}. {remedy}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with its whole first sentence, which click would cut at the line's end."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-llmenergy")
def group() -> None:
    """Results of `pytest --llm-energy` to tables, tests, fits, plans and verdicts."""


def main(arguments: list[str] | None = None) -> Any:
    """Run a command: status 0 done, 1 a verdict against, 2 the request or the input is wrong."""
    try:
        return group.main(args=arguments, prog_name="llmenergy-report")
    except LLMEnergyError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        message = str(MissingExtraError("This command", EXTRAS[package], package))
    click.echo(f"Error: {message}", err=True)
    sys.exit(2)
