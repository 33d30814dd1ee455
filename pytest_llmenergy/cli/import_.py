"""`llmenergy-report import`: measurements made elsewhere as a results document."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import click


@click.command("import")
@click.argument("tables", metavar="TIDY.csv...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The results document.")
@click.option(
    "--kv-cache/--no-kv-cache",
    default=None,
    help="Whether generation used a KV cache, where the file has no column kv_cache.  [default: unknown]",
)
@click.option(
    "--estimated",
    multiple=True,
    type=click.Choice(["gpu", "cpu"]),
    help="Energy that comes from a model of the hardware, not from a sensor; may be given twice.",
)
def command(
    tables: tuple[Path, ...], output: Path, kv_cache: bool | None, estimated: tuple[str, ...]
) -> None:
    """Turn tables of trials into one results document that every later command takes.

    A table has the columns model, system, n_gpus, batch_size, input_tokens, output_tokens, trial, runtime_s,
    gpu_energy_j, cpu_energy_j; energies in J, times in s. An empty energy means unknown.
    """
    from pytest_llmenergy.campaign import tidy  # first: it says which extra brings polars
    from pytest_llmenergy.campaign.imported import document
    from pytest_llmenergy.campaign.results import write_atomically
    from pytest_llmenergy.records import Campaign

    trials = tidy.read_tables(tables, kv_cache=kv_cache)
    campaign = Campaign(
        name=output.stem,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        settings={
            "imported": [
                {"file": table.name, "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
                for table in tables
            ]
        },
        cells=(),
    )
    energies = [f"{part}_energy_j" for part in estimated]
    write_atomically(output, document(campaign, trials, estimated=energies))
    counts = []
    for columns, name in ((["cell"], "cell"), (["model"], "model"), (["system"], "system")):
        count = trials.n_unique(columns)
        counts.append(f"{count} {name}" + ("s" if count != 1 else ""))
    click.echo(f"{output}: {trials.height} trials of {', '.join(counts)}")
    for name in tidy.ENERGIES:
        unknown = trials[name].null_count()
        if unknown:
            click.echo(f"{name} is unknown in {unknown} of {trials.height} trials")
    if trials["kv_cache"].null_count():
        click.echo("Whether a KV cache was in use is unknown: say --kv-cache or --no-kv-cache if you know.")
