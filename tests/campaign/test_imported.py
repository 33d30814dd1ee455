"""Results documents made of measurements made elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmenergy.campaign.imported import document
from pytest_llmenergy.campaign.results import decode, write_atomically
from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.campaign.tidy import with_cell_number
from pytest_llmenergy.records import Campaign, Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = {
    "model": pl.String,
    "system": pl.String,
    "n_gpus": pl.Int64,
    "batch_size": pl.Int64,
    "kv_cache": pl.Boolean,
    "tokens_in": pl.Int64,
    "tokens_out": pl.Int64,
    "trial": pl.Int64,
    "runtime_s": pl.Float64,
    "gpu_energy_j": pl.Float64,
    "cpu_energy_j": pl.Float64,
}
JOULES = st.one_of(st.none(), st.floats(min_value=1e-9, max_value=1e12))
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["m", 'a "quoted", näme\n', '"trials":[]']),
        st.sampled_from([None, 0, 1, 4]),
        st.sampled_from([True, False, None]),
        st.floats(min_value=1e-9, max_value=1e9),
        JOULES,
        JOULES,
    ),
    min_size=1,
    max_size=12,
)


def _frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    full = [
        (model, "node", n_gpus, 2, kv, 8, 16, index, runtime, None if n_gpus == 0 else gpu, cpu)
        for index, (model, n_gpus, kv, runtime, gpu, cpu) in enumerate(rows)
    ]
    return with_cell_number(pl.DataFrame(full, schema=COLUMNS, orient="row"))


def _campaign(frame: pl.DataFrame, path: Path, **options: object) -> Campaign:
    return decode(path, b"".join(document(Campaign(cells=()), frame, **options)), Campaign)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(rows=ROWS, estimated=st.sets(st.sampled_from(["gpu_energy_j", "cpu_energy_j"])))
def test_every_row_is_a_trial_and_every_summary_that_of_its_trials(
    rows: list[tuple[object, ...]], estimated: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The columnar writer writes what the records would: nothing lost, rounded or summed otherwise."""
    frame = _frame(rows)
    campaign = _campaign(frame, tmp_path_factory.getbasetemp(), estimated=estimated)
    found = {
        trial.index: (cell.model, cell.n_gpus, cell.kv_cache, trial)
        for cell in campaign.cells
        for trial in cell.trials
    }
    assert len(found) == len(rows)
    for index, (model, n_gpus, kv, runtime, gpu, cpu) in enumerate(rows):
        *setting, trial = found[index]
        assert (*setting, trial.runtime_s) == (model, n_gpus, kv, runtime)
        energies = {domain.domain.partition(":")[0]: domain.energy_j for domain in trial.domains}
        assert energies == ({"cpu": cpu} if n_gpus == 0 else {"gpu": gpu, "cpu": cpu})
        assert trial.tokens_generated == 32
    for cell in campaign.cells:
        assert cell.summary == summarise(cell.trials, tokens_generated=cell.tokens_generated)


def test_an_unknown_energy_says_why_and_an_estimate_says_so(tmp_path: Path) -> None:
    """Nothing is null without a reason, and nothing estimated passes for measured."""
    (cell,) = _campaign(_frame([("m", 1, None, 1.0, 5.0, None)]), tmp_path, estimated=["gpu_energy_j"]).cells
    gpu, cpu = cell.trials[0].domains
    assert (gpu.domain, gpu.provenance) == ("gpu:0", Provenance.ESTIMATED)
    assert (cpu.domain, cpu.provenance, cpu.energy_j) == ("cpu:attributed", Provenance.UNAVAILABLE, None)
    assert cpu.reason == "the imported file gives no value"
    assert cell.summary is not None
    assert (cell.summary.energy_j, cell.summary.gpu_energy_j) == (None, 5.0)
    assert cell.summary.energy_basis == "gpu_energy_j"


def test_several_gpus_are_one_domain_of_all(tmp_path: Path) -> None:
    """A row's energy is the sum over its GPUs: no single one is claimed to have used it."""
    (cell,) = _campaign(_frame([("m", 4, None, 1.0, 5.0, 1.0)]), tmp_path).cells
    assert [domain.domain for domain in cell.trials[0].domains] == ["gpu:all", "cpu:attributed"]
    assert cell.summary is not None
    assert cell.summary.energy_j == 6.0


def test_a_failing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    """A document is written whole or not at all, also when it comes in pieces."""

    def pieces():
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "results.json", pieces())
    assert list(tmp_path.iterdir()) == []
