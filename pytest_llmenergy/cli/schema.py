"""`llmenergy-report schema`: the JSON Schema of a results document."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema that results.json follows."""
    from pytest_llmenergy.campaign.results import json_schema

    click.echo(json.dumps(json_schema(), indent=1))
