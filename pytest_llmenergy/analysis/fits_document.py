"""fits.json (llmenergy.fits/1): every fit with its errors, and the cells of the chosen ones.

docs/fits.md describes the fields; `energy_model.load_fits` reads the models back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmenergy.analysis import across as scaling
from pytest_llmenergy.analysis.energy_model import FITS_SCHEMA, unit_of
from pytest_llmenergy.analysis.fits import CONFIDENCE
from pytest_llmenergy.analysis.forms import TERMS
from pytest_llmenergy.campaign.results import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.across import Across
    from pytest_llmenergy.analysis.choose import Skipped
    from pytest_llmenergy.analysis.documents import Document
    from pytest_llmenergy.analysis.fits import Fit


def write_fits(
    path: Path,
    fits: Iterable[Fit],
    *,
    skipped: Iterable[Skipped] = (),
    documents: Sequence[Document] = (),
    across: Iterable[Across] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a fits document whole or not at all.

    Raises:
        RequestError: the folder cannot be written.
    """
    document = {
        "schema": FITS_SCHEMA,
        "confidence": CONFIDENCE,
        "results": [{"path": d.path, "sha256": d.sha256, "fingerprint": d.fingerprint} for d in documents],
        "notes": notes,
        "fits": [_record(fit, documents) for fit in fits],
        "skipped": [
            {"model": s.group.model, "system": s.group.system, "metric": s.metric, "reason": s.reason}
            for s in skipped
        ],
        "across": [scaling.record(line) for line in across],
    }
    # msgspec writes a NaN as null: what cannot be known is unknown.
    write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def _record(fit: Fit, documents: Sequence[Document]) -> dict[str, Any]:
    """What is compared of every form; of the chosen one all that prediction and judgement need."""
    cells, group = fit.cells, fit.cells.group
    return {
        "model": group.model,
        "system": group.system,
        "n_gpus": group.n_gpus,
        "batch_size": group.batch_size,
        "kv_cache": group.kv_cache,
        "fingerprint": group.fingerprint,
        "metric": cells.metric,
        "provenance": "estimated" if cells.estimated else "measured",
        "form": fit.form.name,
        "intercept": fit.form.intercept,
        "chosen": fit.chosen,
        "is_usable": fit.verdict.is_usable,
        "reasons": fit.verdict.reasons,
        "cautions": fit.verdict.cautions,
        "coefficients": _coefficients(fit),
        "relative": fit.form.relative,
        "df_resid": fit.solution.df_resid,
        "engine": fit.engine,
        "n": fit.n,
        "r2": fit.r2,
        "r2_is_centred": fit.form.intercept,
        "r2_centred": fit.r2_centred,
        "r2_uncentred": fit.r2_uncentred,
        "f": fit.f,
        "p": fit.p,
        "loo_mape": fit.loo_mape,
        "loo_mape_se": fit.loo_mape_se,
        "loo_mdape": fit.loo_mdape,
        "loo_wape": fit.loo_wape,
        "negative_cells": fit.negative_cells,
        "is_monotone": fit.verdict.is_monotone,
        **(_of_the_chosen(fit, documents) if fit.chosen else {}),
    }


def _coefficients(fit: Fit) -> dict[str, Any]:
    unit = unit_of(fit.cells.metric)
    columns = (
        _floats(fit.solution.coefficients),
        _floats(fit.solution.standard_errors),
        *fit.intervals.T.tolist(),
    )
    return {
        name: {"value": value, "se": se, "ci_low": low, "ci_high": high, "unit": f"{unit}/{TERMS[name].per}"}
        for name, value, se, low, high in zip(fit.form.terms, *columns, strict=True)
    }


def _of_the_chosen(fit: Fit, documents: Sequence[Document]) -> dict[str, Any]:
    cells, solution, worst = fit.cells, fit.solution, fit.worst_cell
    model = fit.energy_model()
    return {
        "results_sha256": [documents[i].sha256 for i in cells.documents if i < len(documents)],
        "trials": int(cells.trials.sum()),
        "covariance": model.covariance,
        "residual_scale": model.residual_scale,
        "tokens_in_range": model.tokens_in_range,
        "tokens_out_range": model.tokens_out_range,
        "loo_coverage": fit.loo_coverage,
        "noise_floor_mape": cells.noise_floor_mape,
        "worst_cell": {
            "tokens_in": int(cells.tokens_in[worst]),
            "tokens_out": int(cells.tokens_out[worst]),
            "error_pct": float(100 * fit.left_out_error[worst]),
        },
        "influential_cells": [
            {
                "tokens_in": int(cells.tokens_in[i]),
                "tokens_out": int(cells.tokens_out[i]),
                "cooks_distance": float(solution.cooks_distance[i]),
            }
            for i in fit.influential_cells
        ],
        "cells": {
            "tokens_in": cells.tokens_in.tolist(),
            "tokens_out": cells.tokens_out.tolist(),
            "trials": cells.trials.tolist(),
            "observed": _floats(cells.mean),
            "predicted": _floats(solution.predicted),
            "left_out": _floats(solution.left_out),
            "leverage": _floats(solution.leverage),
            "cooks_distance": _floats(solution.cooks_distance),
        },
    }


def _floats(values: NDArray[np.floating]) -> list[float]:
    result: list[float] = values.tolist()
    return result
