"""A plan document as tables for a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmenergy.report.tables import plain_table, render
from pytest_llmenergy.units import (
    UNKNOWN,
    format_count,
    format_percent,
    format_quantity,
    percent,
    watt_hours_from_joules,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

_MOST_COLUMNS = 4  # models side by side in a table of shares
_EXACT = 1e-9
_ROUNDING = 1e-15  # of a gap between two sums of floats


def render_plan(document: Mapping[str, Any]) -> list[str]:
    """The plan as lines of at most 80 columns."""
    return render([*_head(document), *_plans(document), *_more(document)])


def format_wh(energy_j: float | None, digits: int = 3) -> str:
    """Write an energy as people pay for it: `474 kWh`."""
    return UNKNOWN if energy_j is None else format_quantity(watt_hours_from_joules(energy_j), "Wh", digits)


def _head(document: Mapping[str, Any]) -> Iterator[str]:
    queries = format_count(document["queries"], "query", "queries")
    metric = {"gpu_energy_j": "of the GPUs", "cpu_energy_j": "of the CPUs"}.get(document["metric"], "in all")
    yield (
        f"{queries}, {document['classes']} different; "
        f"{format_count(len(document['models']), 'model', 'models')}; energy {metric}."
    )
    batches = {fit["batch_size"] for fit in document["fits"] if fit["batch_size"] not in (None, 1)}
    if batches:
        told = ", ".join(str(batch) for batch in sorted(batches))
        yield f"A query is one of the {told} sequences of a fitted call, and costs its part of it."
    if any(fit["batch_size"] is None for fit in document["fits"]):
        yield "Where a fit does not say its batch, a query is taken for a whole call."
    if len({fit["batch_size"] for fit in document["fits"]}) > 1:
        yield "Warning: the fits are of different batch sizes."
    if len({fit["kv_cache"] for fit in document["fits"]}) > 1:
        yield "Warning: the fits are of different generation modes (KV cache on, off, or not said)."
    if document.get("lengths_from"):
        yield "tokens_out is not known: energies and accuracies are expectations."
    outside = document["queries_outside_fitted_range"]
    if outside:
        part = format_percent(outside / document["queries"])
        told = f"{format_count(outside, 'query', 'queries')} ({part})"
        yield f"Warning: {told} outside the token counts that the fits come from."
    negative = document["pairs_of_negative_energy"]
    if negative:
        told = format_count(negative, "prediction", "predictions")
        yield f"Warning: {told} of a query at a model below 0 J; counted as 0 J."
    estimated = sorted({fit["model"] for fit in document["fits"] if fit["provenance"] == "estimated"})
    if estimated:
        yield f"Note: the energy of {', '.join(estimated)} is an estimate, and so is every sum of it."


def _per_query(document: Mapping[str, Any], runtime_s: float | None) -> str:
    return UNKNOWN if runtime_s is None else f"{runtime_s / document['queries']:.4g}"


def _plans(document: Mapping[str, Any]) -> Iterator[Table | str]:
    table = plain_table("Plans", "zeta", "energy", "s/query", "accuracy", "objective", "dual bound", "gap")
    for point in document["points"]:
        table.add_row(
            f"{point['zeta']:.6g}",
            format_wh(point["energy_j"]),
            _per_query(document, point["runtime_s"]),
            f"{point['accuracy']:.4f}",
            f"{point['objective']:.4f}",
            f"{point['dual_bound']:.4f}",
            "0" if abs(point["gap"]) < _ROUNDING else f"{point['gap']:.1e}",
        )
    yield table
    worst = max(point["gap"] for point in document["points"])
    if worst <= _EXACT:
        yield "Every plan is optimal: its objective meets the bound that its prices prove."
    else:
        yield f"Every plan is within {worst:.1e} of the bound that no plan can be below."
    yield from _shares(document)
    yield from _certainty(document)


def _shares(document: Mapping[str, Any]) -> Iterator[Table | str]:
    models, points = document["models"], document["points"]
    if len(points) == 1:
        table = plain_table("Queries by model", "model", "queries", "share", "A_K", left=1)
        for name in models:
            count = points[0]["counts"][name]
            share = format_percent(count / document["queries"])
            table.add_row(name, str(count), share, format_percent(document["accuracies"][name], 2))
        yield table
    elif len(models) <= _MOST_COLUMNS:
        table = plain_table("Share of the queries by model", "zeta", *models)
        for point in points:
            shares = (format_percent(point["counts"][name] / document["queries"]) for name in models)
            table.add_row(f"{point['zeta']:.6g}", *shares)
        yield table
    else:
        yield f"The shares of {len(models)} models at {len(points)} points are in the plan document (--json)."


def _certainty(document: Mapping[str, Any]) -> Iterator[Table | str]:
    points = [point for point in document["points"] if point["energy_low_j"] is not None]
    if points:
        title = f"What the fits leave open ({format_percent(document['confidence'], 0)} intervals)"
        table = plain_table(title, "zeta", "energy from", "to", "a coin toss", "their energy")
        for point in points:
            toss = point["coin_toss_queries"]
            table.add_row(
                f"{point['zeta']:.6g}",
                format_wh(point["energy_low_j"]),
                format_wh(point["energy_high_j"]),
                UNKNOWN if toss is None else format_count(toss, "query", "queries"),
                format_wh(point["coin_toss_energy_j"]),
            )
        yield table
        yield "A coin toss: the intervals of the query's two cheapest models overlap."
        if len(points) == 1:
            yield from map(_toss, points[0]["coin_toss_between"] or ())
    for point in document["points"]:
        if point["energy_bound_j"] is not None:
            yield (
                f"zeta {point['zeta']:.10g} just meets it; "
                f"no plan that does needs less than {format_wh(point['energy_bound_j'], 8)} "
                f"(this one: {format_wh(point['energy_j'], 8)})."
            )
        if point["accuracy_bound"] is not None:
            yield (
                f"zeta {point['zeta']:.10g} just meets it; no plan that does is more accurate than "
                f"{point['accuracy_bound']:.8f} (this one: {point['accuracy']:.8f})."
            )


def _toss(pair: Mapping[str, Any]) -> str:
    return (
        f"{' or '.join(pair['models'])}: {format_count(pair['queries'], 'query', 'queries')} of "
        f"{_span(*pair['tokens_in'])} tokens in, {_span(*pair['tokens_out'])} out."
    )


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _more(document: Mapping[str, Any]) -> Iterator[Table | str]:
    if document["baselines"]:
        yield _baselines(document)
        yield "Saved: what the optimum at the baseline's accuracy needs less; - where shares rule it out."
    if document.get("between_points") is not None:
        yield (
            "Between two points, the better of their plans is at most "
            f"{format_percent(document['between_points'], 3)} above the optimum."
        )
    if document.get("hindsight"):
        yield _hindsight(document)
    for point, hosting in zip(document["points"], document.get("hosting", ()), strict=False):
        table = plain_table(
            f"Instances to host at zeta {point['zeta']:.6g}", "model", "instances", "GPUs", left=1
        )
        for name, entry in hosting.items():
            table.add_row(name, str(entry["instances"]), str(entry["gpus"]))
        used = sum(entry["gpus"] for entry in hosting.values())
        yield table
        yield f"{used} of {document['gpu_budget']} GPUs in use."
    for plan in document.get("window_plans", ()):
        yield from _windows(document, plan)
    if document.get("held_out"):
        yield _held_out(document)


def _baselines(document: Mapping[str, Any]) -> Table:
    table = plain_table(
        "Without looking at the query", "plan", "energy", "s/query", "accuracy", "saved", left=1
    )
    for baseline in document["baselines"]:
        table.add_row(
            baseline["name"],
            format_wh(baseline["energy_j"]),
            _per_query(document, baseline["runtime_s"]),
            f"{baseline['accuracy']:.4f}",
            _saved(baseline["saving_at_equal_accuracy"]),
        )
    return table


def _hindsight(document: Mapping[str, Any]) -> Table:
    title = "With the true lengths: the plan that expected, and one that knows"
    table = plain_table(title, "zeta", "energy", "accuracy", "knowing: energy", "accuracy")
    for entry in document["hindsight"]:
        table.add_row(
            f"{entry['zeta']:.6g}",
            format_wh(entry["energy_j"]),
            f"{entry['accuracy']:.4f}",
            format_wh(entry["knowing_energy_j"]),
            f"{entry['knowing_accuracy']:.4f}",
        )
    return table


def _saved(saving: float | None) -> str:
    # Rounded first, so that nothing reads -0.0 %.
    return UNKNOWN if saving is None else format_percent(round(saving, 3) + 0.0)


def _windows(document: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[Table | str]:
    windows = document["windows"]
    rate = "price_per_kwh" if "price_per_kwh" in windows else "carbon_g_per_kwh"
    cost = "cost" if rate == "price_per_kwh" else "carbon_g"
    unit = "" if cost == "cost" else " g of CO2"
    table = plain_table(f"Queries by window at zeta {plan['zeta']:.6g}", "from s", "to s", rate, "queries")
    served = [sum(counts) for counts in zip(*plan["counts"].values(), strict=True)]
    for start_s, end_s, value, count in zip(
        windows["start_s"], windows["end_s"], windows[rate], served, strict=True
    ):
        table.add_row(f"{start_s:g}", f"{end_s:g}", f"{value:g}", str(count))
    yield table
    best = plan[f"{cost}_of_best_without_waiting"]
    told = "does not fit" if best is None else f"{best:.6g}{unit}"
    yield (
        f"{plan[cost]:.6g}{unit}; with every query at the same model in its first window: "
        f"{plan[f'{cost}_without_waiting']:.6g}{unit}."
    )
    yield f"The best plan that lets no query wait: {told}."


def _change(fraction: float) -> str:
    # Rounded first, so that nothing reads -0.000 %.
    return f"{round(percent(fraction), 3) + 0.0:+.3f} %"


def _held_out(document: Mapping[str, Any]) -> Table:
    table = plain_table(
        "The half held out, routed by the other half's prices",
        "zeta",
        "queries",
        "energy",
        "against optimum",
        "accuracy",
        "against optimum",
    )
    for result in document["held_out"]:
        table.add_row(
            f"{result['zeta']:.6g}",
            str(result["queries"]),
            format_wh(result["routed"]["energy_j"]),
            _change(result["energy_change"]),
            f"{result['routed']['accuracy']:.4f}",
            _change(result["accuracy_change"]),
        )
    return table
