"""The `energy` fixture."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_llmenergy import accounting
from pytest_llmenergy.errors import LLMEnergyError
from pytest_llmenergy.plugin.marker import Budget, Measured, tolerance_of
from pytest_llmenergy.records import DOES_NOT_FIT, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llmenergy.campaign.runner import Runner
    from pytest_llmenergy.meters.window import Window
    from pytest_llmenergy.records import CellRecord, WindowRecord

    _Record = TypeVar("_Record", CellRecord, WindowRecord)


@dataclass(slots=True)
class Energy:
    """Meters energy; one a test.

    Records and their units: `pytest_llmenergy.records`. A request that cannot be met fails the test with one
    message and no traceback.
    """

    _runner: Runner = field(repr=False)
    _request: pytest.FixtureRequest = field(repr=False)
    _registered: Callable[[pytest.FixtureRequest, Any], None] = field(repr=False)
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

        A cell the campaign already has is returned, not measured again. Token counts are per sequence. A cell
        that does not fit skips the test, or fails it where it has a budget.
        """
        with self._keeping_books():
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
                if Budget.of(self._request.node) is not None:
                    pytest.fail(f"{record.error} Its budget cannot be checked.", pytrace=False)
                pytest.skip(f"{record.error}")
            return self._noted(record)

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
        __tracebackhide__ = True  # what a callable raises is its own
        if not callable(function):
            pytest.fail(f"energy(...) measures a callable, not {function!r}.", pytrace=False)
        with self._keeping_books():
            record = self._runner.windows.measure(
                functools.partial(function, *args, **kwargs),
                label=label or self._request.node.name,
                tokens_generated=tokens_out,
                test=self._request.node.nodeid,
            )
            return self._noted(record)

    @contextlib.contextmanager
    def window(self, label: str) -> Iterator[Window]:
        """Meter one block, once; the figures are on the window when it has closed."""
        with self._runner.interrupts.held():
            with self._runner.windows.block(label, test=self._request.node.nodeid) as window:
                yield window
            self.measured.append(_in_window(label, window))

    @contextlib.contextmanager
    def _keeping_books(self) -> Iterator[None]:
        """Finish what an interrupt must not cut short; fail with our messages alone."""
        with self._runner.interrupts.held():
            try:
                yield
            except LLMEnergyError as error:
                raise pytest.fail.Exception(
                    str(error), pytrace=False
                ) from None  # its causes would be printed too

    def _noted(self, record: _Record) -> _Record:
        if record.error is not None:
            pytest.fail(f"{record.label}: {record.error}", pytrace=False)
        summary = record.summary
        self.measured.append(_per_call(record))
        if summary is not None:
            properties = self._request.node.user_properties
            properties.append(("llmenergy.energy_j", summary.energy_j))
            properties.append(("llmenergy.energy_j_per_token", summary.energy_j_per_token))
            properties.append(("llmenergy.provenance", summary.provenance.value))
        self._registered(self._request, record)
        return record


def _per_call(record: CellRecord | WindowRecord) -> Measured:
    """The means of a record's counted trials, on the basis of its energy per token."""
    summary = record.summary
    if summary is None:
        return Measured(label=record.label, energy_j=None, provenance=Provenance.UNAVAILABLE)
    is_gpu_alone = summary.energy_basis == "gpu_energy_j"
    per_token_j, tokens = summary.energy_j_per_token_half_width, record.tokens_generated
    return Measured(
        label=record.label,
        energy_j=summary.gpu_energy_j if is_gpu_alone else summary.energy_j,
        provenance=summary.provenance,
        is_gpu_alone=is_gpu_alone,
        half_width_j=None if per_token_j is None or tokens is None else per_token_j * tokens,
        energy_j_per_token=summary.energy_j_per_token,
        half_width_j_per_token=per_token_j,
    )


def _in_window(label: str, window: Window) -> Measured:
    """All energy of a window, or the GPU's where that is all there is, as in a summary."""
    whole, gpu = accounting.energy(window.domains), accounting.gpu_energy(window.domains)
    is_gpu_alone = (whole is None or whole.energy_j is None) and gpu is not None and gpu.energy_j is not None
    found = gpu if is_gpu_alone else whole
    return Measured(
        label=label,
        energy_j=None if found is None else found.energy_j,
        provenance=Provenance.UNAVAILABLE if found is None else found.provenance,
        is_gpu_alone=is_gpu_alone,
        is_window=True,
    )


def _details(item: pytest.Item) -> dict[str, Any]:
    tolerance = tolerance_of(item)
    return {} if tolerance is None else {"tolerance": tolerance}
