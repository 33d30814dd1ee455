"""fits.json (llmenergy.fits/1): every fit with its errors, and the cells of the chosen ones.

docs/fits.md describes the fields; `energy_model.load_fits` reads the models back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmenergy.analysis import across as scaling
from pytest_llmenergy.analysis.energy_model import FITS_SCHEMA
from pytest_llmenergy.analysis.fits import CONFIDENCE
from pytest_llmenergy.campaign.results import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.across import Across
    from pytest_llmenergy.analysis.choose import Skipped
    from pytest_llmenergy.analysis.fits import Fit
    from pytest_llmenergy.analysis.observations import Document


def write_fits(
    path: Path,
    fits: Iterable[Fit],
    *,
    skipped: Iterable[Skipped] = (),
    documents: Sequence[Document] = (),
    across: Iterable[Across] = (),
) -> None:
    """Write a fits document whole or not at all.

    Raises:
        RequestError: the folder cannot be written.
    """
    document = {
        "schema": FITS_SCHEMA,
        "confidence": CONFIDENCE,
        "results": [{"path": d.path, "sha256": d.sha256, "fingerprint": d.fingerprint} for d in documents],
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
    cells, solution, verdict = fit.cells, fit.solution, fit.verdict
    model = fit.energy_model(
        results_sha256=tuple(documents[i].sha256 for i in cells.documents if i < len(documents))
    )
    errors, intervals = _floats(solution.standard_errors), fit.intervals.tolist()
    worst = fit.worst_cell
    record = {
        "model": model.model,
        "system": model.system,
        "n_gpus": model.n_gpus,
        "batch_size": model.batch_size,
        "kv_cache": model.kv_cache,
        "fingerprint": model.fingerprint,
        "results_sha256": model.results_sha256,
        "metric": model.metric,
        "provenance": model.provenance,
        "form": model.form,
        "intercept": fit.form.intercept,
        "chosen": fit.chosen,
        "is_usable": model.is_usable,
        "reasons": model.reasons,
        "cautions": verdict.cautions,
        "coefficients": {
            name: {
                "value": float(solution.coefficients[i]),
                "se": errors[i],
                "ci_low": intervals[i][0],
                "ci_high": intervals[i][1],
                "unit": model.unit_of_coefficient(name),
            }
            for i, name in enumerate(fit.form.terms)
        },
        "covariance": model.covariance,
        "residual_scale": model.residual_scale,
        "relative": model.relative,
        "df_resid": model.df_resid,
        "engine": fit.engine,
        "n": fit.n,
        "trials": int(cells.trials.sum()),
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
        "loo_coverage": fit.loo_coverage if fit.chosen else None,
        "worst_cell": {
            "tokens_in": int(cells.tokens_in[worst]),
            "tokens_out": int(cells.tokens_out[worst]),
            "error_pct": float(100 * fit.left_out_error[worst]),
        },
        "noise_floor_mape": cells.noise_floor_mape,
        "negative_cells": fit.negative_cells,
        "is_monotone": verdict.is_monotone,
        "tokens_in_range": model.tokens_in_range,
        "tokens_out_range": model.tokens_out_range,
        "influential_cells": [
            {
                "tokens_in": int(cells.tokens_in[i]),
                "tokens_out": int(cells.tokens_out[i]),
                "cooks_distance": _finite(solution.cooks_distance[i]),
            }
            for i in fit.influential_cells
        ],
    }
    if fit.chosen:
        record["cells"] = {
            "tokens_in": cells.tokens_in.tolist(),
            "tokens_out": cells.tokens_out.tolist(),
            "trials": cells.trials.tolist(),
            "observed": _floats(cells.mean),
            "predicted": _floats(solution.predicted),
            "left_out": _floats(solution.left_out),
            "leverage": _floats(solution.leverage),
            "cooks_distance": _floats(solution.cooks_distance),
        }
    return record


def _floats(values: NDArray[np.floating]) -> list[float]:
    result: list[float] = values.tolist()
    return result


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
