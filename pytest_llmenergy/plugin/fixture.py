"""The `energy` fixture and the budgets of its marker."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmenergy.errors import LLMEnergyError
from pytest_llmenergy.records import DOES_NOT_FIT, Provenance
from pytest_llmenergy.units import format_energy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llmenergy.campaign.runner import Runner
    from pytest_llmenergy.meters.window import Window
    from pytest_llmenergy.records import CellRecord, Summary, WindowRecord


@dataclass(slots=True)
class Measured:
    """What one test has measured, for its budget and its properties."""

    label: str
    summary: Summary | None
    energy_j: float | None


@dataclass(slots=True)
class Energy:
    """Meters energy; one a test.

    Records and their units: `pytest_llmenergy.records`. A request that cannot be met fails the test with one
    message and no traceback.
    """

    _runner: Runner
    _request: pytest.FixtureRequest
    _registered: Callable[[pytest.FixtureRequest, Any], None]
    measured: list[Measured] = field(default_factory=list)

    def cell(
        self,
        *,
        model: str,
        tokens_in: int,
        tokens_out: int,
        batch_size: int | None = None,
        kv_cache: bool | None = None,
    ) -> CellRecord:
        """Measure one cell of the paper's experiment: warm-up, then trials until the stopping rule says so.

        A cell the campaign already has is returned, not measured again. Token counts are per sequence.
        """
        with _failing_clearly():
            record = self._runner.cell(
                model,
                tokens_in,
                tokens_out,
                batch_size=batch_size,
                kv_cache=kv_cache,
                test=self._request.node.nodeid,
                details=_details(self._request.node),
            )
        if record.stop is not None and record.stop.reason == DOES_NOT_FIT:
            pytest.skip(f"{record.error}")
        if record.error is not None:
            pytest.fail(f"{record.label}: {record.error}", pytrace=False)
        self._note(record.label, record)
        return record

    def __call__(
        self,
        function: Callable[..., Any],
        *args: Any,
        tokens_out: int | None = None,
        label: str | None = None,
        **kwargs: Any,
    ) -> WindowRecord:
        """Measure a callable until the stopping rule says so; its first call is a warm-up.

        Args:
            function: called with the other arguments.
            tokens_out: tokens that one call generates, over its whole batch, for energy per token.
            label: its name in the results; the test's where None.
            *args: for the function.
            **kwargs: for the function.
        """
        with _failing_clearly():
            record = self._runner.measure(
                lambda: function(*args, **kwargs),
                label=label or self._request.node.name,
                tokens_generated=tokens_out,
                test=self._request.node.nodeid,
            )
        if record.summary is None or not any(trial.counts for trial in record.trials):
            pytest.fail(f"{record.label}: no usable trial of {len(record.trials)}", pytrace=False)
        self._note(record.label, record)
        return record

    @contextlib.contextmanager
    def window(self, label: str) -> Iterator[Window]:
        """Meter one block, once; the figures are on the window when it has closed."""
        from pytest_llmenergy import accounting

        with self._runner.window(label, test=self._request.node.nodeid) as window:
            yield window
        found = accounting.energy(window.domains)
        self.measured.append(Measured(label, None, None if found is None else found.energy_j))

    def _note(self, label: str, record: CellRecord | WindowRecord) -> None:
        summary = record.summary
        self.measured.append(Measured(label, summary, None if summary is None else summary.energy_j))
        if summary is not None:
            properties = self._request.node.user_properties
            properties.append(("llmenergy.energy_j", summary.energy_j))
            properties.append(("llmenergy.energy_j_per_token", summary.energy_j_per_token))
            properties.append(("llmenergy.provenance", summary.provenance.value))
        self._registered(self._request, record)


def tolerance_of(item: pytest.Item) -> float | None:
    """The increase that the test's nearest marker allows its cells; None where none does.

    Raises:
        ValueError: it is no share.
    """
    from pytest_llmenergy.units import parse_fraction

    for marker in item.iter_markers("llmenergy"):
        stated = marker.kwargs.get("tolerance")
        if stated is None:
            continue
        try:
            share = parse_fraction(str(stated))
        except ValueError:
            share = -1.0
        if isinstance(stated, bool) or not 0 <= share < float("inf"):
            raise ValueError(
                f"@pytest.mark.llmenergy: tolerance must be a share such as '10%', not {stated!r}"
            )
        return share
    return None


def _details(item: pytest.Item) -> dict[str, Any]:
    tolerance = tolerance_of(item)
    return {} if tolerance is None else {"tolerance": tolerance}


@contextlib.contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except LLMEnergyError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None  # its causes would be printed too


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a test may cost: the arguments of its marker."""

    max_j_per_token: float | None = None
    max_energy_j: float | None = None

    @classmethod
    def of(cls, item: pytest.Item) -> Budget | None:
        """The budget of a test's nearest marker that states one.

        Raises:
            ValueError: an argument is unknown or no positive number.
        """
        for marker in item.iter_markers("llmenergy"):
            known = {*cls.__slots__, "sweep", "tolerance"}
            unknown = sorted(set(marker.kwargs) - known)
            if marker.args or unknown:
                wrong = ", ".join(unknown) or "positional arguments"
                raise ValueError(f"@pytest.mark.llmenergy takes {', '.join(sorted(known))}, not {wrong}")
            limits = {
                name: marker.kwargs[name] for name in cls.__slots__ if marker.kwargs.get(name) is not None
            }
            for name, limit in limits.items():
                if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
                    raise ValueError(
                        f"@pytest.mark.llmenergy: {name} must be a positive number, not {limit!r}"
                    )
            if limits:
                return cls(**limits)
        return None

    def broken_by(self, measured: list[Measured]) -> str | None:
        """Why the budget does not hold, in one message; a budget nothing was measured for does not hold."""
        if not measured:
            return "the test has an energy budget but measured nothing with the `energy` fixture"
        reasons = [reason for one in measured for reason in self._reasons(one)]
        return "\n".join(reasons) or None

    def _reasons(self, one: Measured) -> Iterator[str]:
        summary = one.summary
        if self.max_j_per_token is not None:
            if summary is None or summary.energy_j_per_token is None:
                yield f"{one.label}: energy per token is unknown, so its budget cannot be checked"
            elif summary.energy_j_per_token > self.max_j_per_token:
                yield _over(
                    one, summary.energy_j_per_token, self.max_j_per_token, "generated token", scale=1.0
                )
        if self.max_energy_j is not None:
            if one.energy_j is None:
                yield f"{one.label}: energy is unknown, so its budget cannot be checked"
            elif one.energy_j > self.max_energy_j:
                per_token = None if summary is None else summary.energy_j_per_token
                yield _over(
                    one,
                    one.energy_j,
                    self.max_energy_j,
                    "call",
                    scale=one.energy_j / per_token if per_token else 1.0,
                )


def _over(one: Measured, energy_j: float, budget_j: float, per: str, *, scale: float) -> str:
    summary = one.summary
    half_width_j = None if summary is None else summary.energy_j_per_token_half_width
    spread = "" if half_width_j is None else f" ± {format_energy(half_width_j * scale)}"
    estimate = summary is not None and summary.provenance is not Provenance.MEASURED
    return (
        f"{one.label}: {format_energy(energy_j)}{spread} per {per} is over the budget of "
        f"{format_energy(budget_j)}" + (" (an estimate, not a measurement)" if estimate else "")
    )
