"""`llmenergy-report route`: which model serves each query of a workload."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_llmenergy import units
from pytest_llmenergy.errors import RequestError, require

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = click.Path(path_type=Path)
_MOST_POINTS = 10_000  # of a sweep
_ROUNDING = 1e-9  # of a step: 0:1:0.01 has both its ends


class _PerModel(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs alone
    """MODEL=VALUE, or several with commas between."""

    def __init__(self, read: Callable[[str], float] = float) -> None:
        self._read = read
        self.name = "MODEL=WHOLE NUMBER" if read is int else "MODEL=NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        pairs = {}
        for part in value.split(","):
            model, equals, number = part.rpartition("=")
            try:
                pairs[model.strip()] = self._read(number)
            except ValueError:
                equals = ""
            if not equals or not model.strip() or not math.isfinite(pairs[model.strip()]):
                self.fail(f"{part!r} is not {self.name}.", param, ctx)
        return pairs


class _Read(click.ParamType):  # type: ignore[type-arg]  # as above
    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not {self.name}.", param, ctx)


def _zetas(text: str) -> list[float]:
    """`0.5`, `0,0.5,1` or `0:1:0.01` (both ends included)."""
    if ":" not in text:
        return [float(part) for part in text.split(",")]
    first, last, step = (float(part) for part in text.split(":"))
    if not (step > 0 and first <= last < math.inf):
        raise ValueError(text)
    steps = (last - first) / step + _ROUNDING
    if steps >= _MOST_POINTS:
        raise RequestError(
            f"--zeta {text} asks for {steps:.3g} plans; {_MOST_POINTS} is the most. Take longer steps: "
            "what lies between two points is bounded."
        )
    return [round(first + i * step, 12) for i in range(int(steps) + 1)]


def _merge(
    _ctx: click.Context, param: click.Parameter, given: tuple[dict[str, float], ...]
) -> dict[str, float]:
    merged: dict[str, float] = {}
    for pairs in given:
        for model, value in pairs.items():
            if merged.setdefault(model, value) != value:
                raise click.BadParameter(f"{model} is given twice.", param=param)
    return merged


def _per_model(name: str, help_: str, read: Callable[[str], float] = float) -> Callable[..., Any]:
    return click.option(name, type=_PerModel(read), multiple=True, callback=_merge, help=help_)


@click.command("route")
@click.option("--fits", required=True, type=_PATH, help="fits.json, or published coefficients as CSV.")
@click.option("--workload", required=True, type=_PATH, help="tokens_in,tokens_out[,count]: CSV or Parquet.")
@click.option(
    "--zeta",
    type=_Read("ZETA, A,B,C or FROM:TO:STEP", _zetas),
    help="Weight of energy, 0 to 1.  [default: 0.5]",
)
@_per_model("--share", "Exact share of the queries; for every model.", units.parse_fraction)
@_per_model("--min-share", "Least share of the queries.", units.parse_fraction)
@_per_model("--max-share", "Largest share of the queries.", units.parse_fraction)
@_per_model("--accuracy", "A_K of a model; the paper's Table 1 where not given.", units.parse_fraction)
@click.option("--models", help="Route between these only (commas between).")
@click.option(
    "--metric", type=click.Choice(["energy_j", "gpu_energy_j", "cpu_energy_j"]), help="Which energy."
)
@click.option("--allow-unusable", is_flag=True, help="Take fits that are judged not usable.")
@click.option(
    "--accuracy-at-least",
    type=_Read("an accuracy", units.parse_fraction),
    help="The cheapest plan that has it.",
)
@click.option(
    "--energy-at-most",
    type=_Read("an energy (5 kWh, 2e7)", units.parse_energy),
    help="The most accurate plan within it.",
)
@click.option("--latency-at-most", type=float, metavar="SECONDS", help="No query may take longer.")
@_per_model("--capacity-tokens", "Most tokens (in and out) of a model.")
@_per_model("--capacity-gpu-s", "Most GPU-seconds of a model.")
@_per_model("--gpus", "GPUs of one instance; as fitted where not given.", int)
@click.option("--gpu-budget", type=int, help="GPUs in all: decide how many instances of each model to host.")
@click.option(
    "--horizon", type=float, metavar="SECONDS", help="Within which the workload is served (--gpu-budget)."
)
@click.option("--windows", type=_PATH, help="start_s,end_s and price_per_kwh or carbon_g_per_kwh.")
@click.option("--lengths-from", type=_PATH, help="tokens_out is not known: expect those of this workload.")
@click.option("--held-out", is_flag=True, help="Plan on one half, route the other by the prices alone.")
@click.option(
    "--solver",
    type=click.Choice(["prices", "pulp", "pulp-cbc", "pulp-highs"]),
    default="prices",
    show_default=True,
    help="pulp: the paper's binary program.",
)
@click.option("--lp", type=_PATH, help="Save the paper's program in LP format (--solver pulp).")
@click.option(
    "--no-baselines", is_flag=True, help="Leave out the plans of Figure 3 that zeta does not change."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the random baseline and the held-out half."
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the energy's interval.")
@click.option("--json", "json_path", type=_PATH, help="Write the plan document.")
@click.option(
    "-o", "--output", type=_PATH, help="Write tokens_in,tokens_out,model, a row a query: CSV or Parquet."
)
def command(**given: Any) -> None:
    """Plan which model serves each query: equation 2 of the paper, solved exactly, with its proof."""
    require("numpy", feature="routing", extra="routing")
    from rich.console import Console
    from rich.markup import escape

    from pytest_llmenergy.campaign.results import write_json
    from pytest_llmenergy.report.route_tables import render_plan
    from pytest_llmenergy.routing.request import plan_of

    # Shown on terminals only, and gone when done.
    with Console(stderr=True).status("Reading the fits") as status:
        document = plan_of(given, tell=lambda text: status.update(escape(text)))
    if given["json_path"] is not None:
        write_json(given["json_path"], document)
    for line in render_plan(document):
        click.echo(line)
