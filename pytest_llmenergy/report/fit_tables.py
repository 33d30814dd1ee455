"""Tables of fits, for a terminal of 80 columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.fits import CONFIDENCE
from pytest_llmenergy.report.tables import plain_table
from pytest_llmenergy.units import UNKNOWN, format_percent, format_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from pytest_llmenergy.analysis.across import Across
    from pytest_llmenergy.analysis.choose import Skipped
    from pytest_llmenergy.analysis.fits import Fit

METRIC_NAMES = {
    "gpu_energy_j": "GPU energy",
    "cpu_energy_j": "CPU energy",
    "energy_j": "GPU and CPU energy",
    "runtime_s": "runtime",
}
_CONFIDENCE = format_percent(CONFIDENCE, 0)
_IN_FULL = 12  # fits shown with their forms and coefficients
_IN_LINES = 40  # fits shown a line each


def fit_tables(fits: Sequence[Fit], skipped: Sequence[Skipped] = ()) -> Iterator[Table | str]:
    """The chosen fits, each with the forms it was compared with; many of them in short."""
    sets: dict[tuple[object, ...], list[Fit]] = {}
    for fit in fits:
        sets.setdefault((fit.cells.group, fit.cells.metric), []).append(fit)
    compared = list(sets.values())
    if len(compared) <= _IN_FULL:
        machines = {fit.cells.group.machine for fit in fits}
        for forms in compared:
            yield from _in_full(forms, name_machine=len(machines) > 1)
    else:
        yield from _in_short([next(fit for fit in forms if fit.chosen) for forms in compared])
    for one in skipped:
        yield f"Not fitted, {METRIC_NAMES[one.metric]}: {one.reason}"


def figure(value: float | None, digits: int = 4) -> str:
    """So many significant digits: `942.3`, `1032`, `3.76e-61`; `-` when unknown."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return UNKNOWN
    text = f"{value:.{digits}g}"
    return text if "e" in text or value == 0 else f"{value:#.{digits}g}".rstrip(".")


def error(percent: float | None) -> str:
    """An error in percent: `3.3`, `12.7`, `383`."""
    if percent is None or percent != percent:  # noqa: PLR0124 - NaN
        return UNKNOWN
    return f"{percent:.1f}" if abs(percent) < 100 else f"{percent:.0f}"  # noqa: PLR2004


def _in_full(forms: list[Fit], *, name_machine: bool) -> Iterator[Table | str]:
    chosen = next(fit for fit in forms if fit.chosen)
    cells = chosen.cells
    group = cells.group
    kind = " (estimated)" if cells.estimated else ""
    machine = f", machine {group.machine}" if name_machine and group.machine != group.system else ""
    title = f"{METRIC_NAMES[cells.metric]}{kind} of {group.label}{machine}: {chosen.n} cells"
    yield title  # not the table's own, which would be wrapped to its width
    if len(forms) > 1:
        yield _forms_table(forms)
        yield "error: of cells left out; <0: cells below zero; R² c.: centred; *: chosen\n"
        yield _coefficients_table(f"chosen: {chosen.form.label}", chosen)
    else:
        yield _coefficients_table(f"form {chosen.form.label}, by {chosen.engine}", chosen)
    yield from _statements(chosen)
    yield ""


def _forms_table(forms: list[Fit]) -> Table:
    table = plain_table("", "form", "k", "error %", "median", "worst", "<0", "R² c.", "usable", left=1)
    for fit in sorted(forms, key=lambda fit: fit.loo_mape):
        table.add_row(
            fit.form.label,
            str(len(fit.form.terms)),
            f"{error(fit.loo_mape)} ±{error(fit.loo_mape_se)}",
            error(fit.loo_mdape),
            error(abs(100 * fit.left_out_error[fit.worst_cell])),
            str(fit.negative_cells),
            f"{fit.r2_centred:.3f}",
            ("yes" if fit.verdict.is_usable else "no") + (" *" if fit.chosen else ""),
        )
    return table


def _coefficients_table(title: str, fit: Fit) -> Table:
    model = fit.energy_model()
    table = plain_table(title, "coefficient", "value", "se", f"{_CONFIDENCE} interval", "unit", left=1)
    for i, name in enumerate(fit.form.terms):
        table.add_row(
            name,
            f"{fit.solution.coefficients[i]:.6g}",
            f"{fit.solution.standard_errors[i]:.2g}",
            f"{fit.intervals[i, 0]:.3g} to {fit.intervals[i, 1]:.3g}",
            model.unit_of_coefficient(name),
        )
    return table


def _statements(fit: Fit) -> Iterator[str]:
    cells, solution = fit.cells, fit.solution
    if cells.group.batch_size > 1:
        yield f"of one call: all {cells.group.batch_size} sequences of the batch together"
    r2 = f"R² {fit.r2:.3f}"
    r2 += " (centred)" if fit.form.intercept else f" (uncentred; centred {fit.r2_centred:.3f})"
    if fit.f is not None and fit.p is not None:
        df_model = len(fit.form.terms) - fit.form.intercept
        test = f"F({df_model}, {solution.df_resid}) {figure(fit.f)}, p {fit.p:.2e}"
        yield f"{r2}, {test}, n {fit.n}"
    else:
        yield f"{r2}, n {fit.n}"
    worst = fit.worst_cell
    floor = cells.noise_floor_mape
    yield (
        f"left-out error: mean {error(fit.loo_mape)} %, median {error(fit.loo_mdape)} %, "
        f"of the sum {error(fit.loo_wape)} %\n"
        f"worst cell: {cells.tokens_in[worst]} in, {cells.tokens_out[worst]} out, "
        f"by {error(100 * fit.left_out_error[worst])} %"
    )
    if floor is not None:
        yield f"noise floor: {error(floor)} %, what the cells' own trials scatter; no form can do better"
    if fit.loo_coverage is not None:
        inside = format_percent(fit.loo_coverage)
        yield f"{inside} of left-out cells lie in their {_CONFIDENCE} prediction interval"
    t, n = cells.tokens_in, cells.tokens_out
    yield f"range: {t.min()} to {t.max()} tokens in, {n.min()} to {n.max()} out; beyond is extrapolation"
    yield "usable: yes" if fit.verdict.is_usable else "usable: NO"
    yield from (f"  because it {reason}" for reason in fit.verdict.reasons)
    yield from (f"  note: {caution}" for caution in fit.verdict.cautions)


def _in_short(chosen: list[Fit]) -> Iterator[Table | str]:
    ordered = sorted(chosen, key=lambda fit: (fit.verdict.is_usable, -fit.loo_mape))
    shown = ordered[:_IN_LINES]
    table = plain_table(
        f"{len(chosen)} fits" + ("" if len(shown) == len(chosen) else f", the worst {len(shown)} of them"),
        "model",
        "system",
        "metric",
        "form",
        "error %",
        "usable",
        left=4,
    )
    for fit in shown:
        table.add_row(
            fit.cells.group.model,
            fit.cells.group.system,
            fit.cells.metric,
            fit.form.label,
            error(fit.loo_mape),
            "yes" if fit.verdict.is_usable else "no",
        )
    yield table
    counts = Counter(fit.form.label for fit in chosen)
    yield "forms: " + ", ".join(f"{label} {count}" for label, count in counts.most_common())
    unusable = sum(not fit.verdict.is_usable for fit in chosen)
    yield f"usable: {len(chosen) - unusable} of {len(chosen)}; --json FILE has every fit with its reasons"


def _count(parameters: float) -> str:
    return format_quantity(parameters, "").strip()


def across_tables(lines: Sequence[Across]) -> Iterator[Table | str]:
    """One table a metric: each model's cost per generated token, and how far it lies off the line."""
    for line in lines:
        unit = "s" if line.metric == "runtime_s" else "J"
        table = plain_table(
            f"{METRIC_NAMES[line.metric]} per token across models on {line.system}, batch {line.batch_size}",
            "model",
            "active",
            "all",
            f"{unit}/token",
            "off at active",
            "off at all",
            left=1,
        )
        for point in line.points:
            table.add_row(
                point.model,
                _count(point.size.active),
                _count(point.size.total),
                f"{point.per_token:.4g}",
                f"{100 * point.off_active:+.1f} %",
                UNKNOWN if point.size.is_dense else f"{100 * point.off_total:+.1f} %",
            )
        yield table
        spread = (
            "no interval: the line goes through two models"
            if line.interval is None
            else f"{_CONFIDENCE} interval {line.interval[0]:.2f} to {line.interval[1]:.2f}"
        )
        yield f"it grows as active parameters to the power {line.exponent:.2f} ({spread})"
        yield "off: above the dense models' line at the active, or at all parameters"
        yield ""
