"""The pytest plugin: hooks that cost an ordinary run nothing. PYTEST_DONT_REWRITE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.options import add_options, is_measuring

if TYPE_CHECKING:
    from pytest_llmenergy.plugin.fixture import Energy
    from pytest_llmenergy.plugin.session import MeasuringSession

MARKER = (
    "llmenergy(max_j_per_token=None, max_energy_j=None, tolerance=None, sweep=None): a budget that fails the "
    "test when it is broken, in J per generated token or J per call; tolerance: the increase from which the "
    "gate fails its cells ('10%'); sweep: run the test over the grid's `input`, `output` or `grid` cells"
)
SKIPPED = "energy is measured with --llm-energy only"
_SESSION = "llmenergy-session"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; load the rest when there is something to measure."""
    config.addinivalue_line("markers", MARKER)
    if is_measuring(config):
        from pytest_llmenergy.plugin.session import open_session

        config.pluginmanager.register(open_session(config), _SESSION)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test its sweep's cells."""
    if metafunc.definition.get_closest_marker("llmenergy") is None:
        return
    from pytest_llmenergy.plugin.marker import sweep_of

    sweep = sweep_of(metafunc.definition)
    if sweep is None:
        return
    session = metafunc.config.pluginmanager.getplugin(_SESSION)
    if session is None:
        cells = [pytest.param(None, None, None, marks=pytest.mark.skip(reason=SKIPPED), id="off")]
    else:
        cells = session.cells(sweep)
    metafunc.parametrize(("model", "tokens_in", "tokens_out"), cells)


@pytest.fixture
def energy(request: pytest.FixtureRequest) -> Energy:
    """Meter the energy of a model's cell, of any callable, or of a block."""
    session: MeasuringSession | None = request.config.pluginmanager.getplugin(_SESSION)
    if session is None:
        pytest.skip(SKIPPED)
    return session.fixture(request)
