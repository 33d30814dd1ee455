"""An energy or runtime model that others can use: coefficients, their covariance, and how far to trust them.

Loaded from fits.json (llmenergy.fits/1) or from a CSV of published coefficients, with numpy alone.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from pytest_llmenergy import student_t
from pytest_llmenergy.analysis import forms
from pytest_llmenergy.errors import DocumentError, RequestError, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

FITS_SCHEMA = "llmenergy.fits/1"
METRICS = ("gpu_energy_j", "cpu_energy_j", "energy_j", "runtime_s")
CSV_COLUMNS = ("model", "metric", "form", "coefficient", "value")


def unit_of(metric: str) -> str:
    """J for an energy, s for a runtime."""
    return "s" if metric == "runtime_s" else "J"


class Prediction(NamedTuple):
    """Predicted costs of one call, in J or s; the bounds are None where the error is not known."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyModel:
    """What one call of the batch costs on a machine, by its token counts."""

    model: str
    system: str
    metric: str  # one of METRICS
    form: str
    coefficients: Mapping[str, float]  # by term, in J or s per unit of forms.TERMS[term].per
    n_gpus: int | None = None
    batch_size: int | None = None  # a call is that many sequences; None: unknown, as in published tables
    kv_cache: bool | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None  # of the coefficients, in their order
    residual_scale: float | None = None  # sd of one cell: J or s, or a fraction where `relative`
    relative: bool = False  # whether residual_scale is a fraction of the prediction
    df_resid: int | None = None
    tokens_in_range: tuple[int, int] | None = None  # of the cells it was fitted on
    tokens_out_range: tuple[int, int] | None = None
    provenance: str | None = None  # "estimated" where any joule of it is
    is_usable: bool | None = None  # None: nobody has judged it
    reasons: tuple[str, ...] = ()  # why it is not usable
    fingerprint: str | None = None  # of the machine
    results_sha256: tuple[str, ...] = ()  # of the results documents it came from
    chosen: bool = True

    @property
    def unit(self) -> str:
        """J or s."""
        return unit_of(self.metric)

    def unit_of_coefficient(self, name: str) -> str:
        """`J/step`, `s/pass`."""
        return f"{self.unit}/{forms.TERMS[name].per}"

    def predict(
        self, tokens_in: ArrayLike, tokens_out: ArrayLike, *, interval: float | None = None
    ) -> Prediction:
        """Predict the cost of calls.

        Args:
            tokens_in: prompt tokens per sequence, any shape.
            tokens_out: generated tokens per sequence, of a shape that broadcasts with it.
            interval: the two-sided confidence of the bounds, 0.95 say: where one new cell's mean would lie.

        Raises:
            RequestError: the confidence is not inside (0, 1).
        """
        names = tuple(self.coefficients)
        t, n = np.asarray(tokens_in, dtype=np.float64), np.asarray(tokens_out, dtype=np.float64)
        mean = np.zeros(np.broadcast_shapes(t.shape, n.shape))
        for name, value in self.coefficients.items():
            mean += value * forms.columns([name], t, n)[0]
        if interval is None:
            return Prediction(mean, None, None)
        if not 0 < interval < 1:
            raise RequestError(f"a confidence of {interval} is not between 0 and 1; ask for 0.95, say.")
        if self.covariance is None or self.residual_scale is None or not self.df_resid:
            return Prediction(mean, None, None)
        x = forms.design(names, t, n)
        of_mean = np.einsum("...i,ij,...j->...", x, np.asarray(self.covariance), x)
        of_cell = self.residual_scale**2 * (mean**2 if self.relative else 1.0)
        half = student_t.quantile(interval, self.df_resid) * np.sqrt(np.maximum(of_mean, 0.0) + of_cell)
        # A model of relative errors is one of positive costs.
        low = np.maximum(mean - half, 0.0) if self.relative else mean - half
        return Prediction(mean, low, mean + half)

    def extrapolates(self, tokens_in: ArrayLike, tokens_out: ArrayLike) -> NDArray[np.bool_]:
        """Where the token counts lie outside the cells it was fitted on; False where the range is unknown."""
        t, n = np.asarray(tokens_in), np.asarray(tokens_out)
        outside = np.zeros(np.broadcast_shapes(t.shape, n.shape), dtype=bool)
        for values, limits in ((t, self.tokens_in_range), (n, self.tokens_out_range)):
            if limits is not None:
                outside |= (values < limits[0]) | (values > limits[1])
        return outside


class _Coefficient(msgspec.Struct, frozen=True):
    value: float


class _Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What prediction needs of a fit in fits.json; the document has more."""

    model: str
    system: str
    metric: str
    form: str
    coefficients: dict[str, _Coefficient]
    chosen: bool = True
    n_gpus: int | None = None
    batch_size: int | None = None
    kv_cache: bool | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None
    residual_scale: float | None = None
    relative: bool = False
    df_resid: int | None = None
    tokens_in_range: tuple[int, int] | None = None
    tokens_out_range: tuple[int, int] | None = None
    provenance: str | None = None
    is_usable: bool | None = None
    reasons: tuple[str, ...] = ()
    fingerprint: str | None = None
    results_sha256: tuple[str, ...] = ()


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    schema: str
    fits: tuple[_Fit, ...] = ()


def load_fits(path: Path, *, every_form: bool = False) -> list[EnergyModel]:
    """The chosen models of a fits.json, or those of a CSV of published coefficients (by its ending).

    Args:
        path: fits.json, or `.csv` with the columns model, metric, form, coefficient, value.
        every_form: the forms that were compared and not chosen, too.

    Raises:
        DocumentError: it is missing, of another schema, has an unknown metric or coefficient, or no fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    found = _from_csv(path, content) if path.suffix.lower() == ".csv" else _from_json(path, content)
    models = [model for model in found if every_form or model.chosen]
    if not models:
        raise DocumentError(path, "has no fit.", "Make one with `llmenergy-report fit RESULTS --json FITS`.")
    return models


def _from_json(path: Path, content: bytes) -> Iterator[EnergyModel]:
    try:
        schema = msgspec.json.decode(content, type=dict[str, Any]).get("schema")
        if schema != FITS_SCHEMA:
            raise DocumentError(
                path,
                f"has schema {schema!r}; this version reads {FITS_SCHEMA!r}.",
                "Make one of results with `llmenergy-report fit RESULTS --json FITS`.",
            )
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DocumentError(path, f"is not a fits document: {error}.") from error
    for index, fit in enumerate(document.fits):
        where = f"fit {index} ({fit.model}, {fit.metric})"
        values = {name: coefficient.value for name, coefficient in fit.coefficients.items()}
        _check(path, where, fit.metric, values)
        k = len(values)
        if fit.covariance is not None and [len(row) for row in fit.covariance] != [k] * k:
            raise DocumentError(path, f"{where}: the covariance is not {k} x {k}.")
        fields = {name: getattr(fit, name) for name in _Fit.__struct_fields__}
        yield EnergyModel(**{**fields, "coefficients": values})


def _from_csv(path: Path, content: bytes) -> Iterator[EnergyModel]:
    try:
        reader = csv.DictReader(content.decode("utf-8-sig").splitlines(), strict=True)
        missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DocumentError(
                path, f"has no column {missing[0]!r}.", f"Give the columns {','.join(CSV_COLUMNS)}."
            )
        groups: dict[tuple[str, str, str, str], dict[str, float]] = {}
        for row in reader:
            where = f"line {reader.line_num}"
            try:
                value = float(row["value"])
            except (TypeError, ValueError):
                raise DocumentError(path, f"{where}: the value {row['value']!r} is no number.") from None
            name = row["coefficient"]
            _check(path, where, row["metric"], {name: value})
            coefficients = groups.setdefault(
                (row["model"], row.get("system") or "", row["metric"], row["form"]), {}
            )
            if name in coefficients:
                raise DocumentError(path, f"{where}: {row['model']} has {name!r} twice.", "Keep one.")
            coefficients[name] = value
    except (csv.Error, UnicodeDecodeError) as error:
        raise DocumentError(path, f"is not a CSV of coefficients: {error}.") from error
    for (model, system, metric, form), coefficients in groups.items():
        yield EnergyModel(model=model, system=system, metric=metric, form=form, coefficients=coefficients)


def _check(path: Path, where: str, metric: str, coefficients: Mapping[str, float]) -> None:
    if metric not in METRICS:
        raise DocumentError(path, f"{where}: unknown metric {metric!r}.", f"Use one of {', '.join(METRICS)}.")
    if not coefficients:
        raise DocumentError(path, f"{where}: there are no coefficients.")
    for name, value in coefficients.items():
        if name not in forms.TERMS:
            known = ", ".join(forms.TERMS)
            raise DocumentError(path, f"{where}: unknown coefficient {name!r}.", f"Known are {known}.")
        if not math.isfinite(value):
            raise DocumentError(path, f"{where}: the coefficient {name} is {value}.")
