"""The results document: read, summarised, validated, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy.campaign.results import json_schema, read_results, write_atomically, write_results
from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.records import Campaign, CellRecord, DomainEnergy, Provenance, Trial
from tests.doubles.documents import BY_HAND

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "results.schema.json"


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_a_document_written_by_hand_is_read_and_summarised(tmp_path: Path) -> None:
    """The promised fields are enough; the warm-up does not count."""
    campaign = read_results(write(tmp_path / "r.json", BY_HAND))
    summary = campaign.cells[0].summary
    assert summary is not None
    assert summary.energy_j == pytest.approx(101.5)
    assert summary.energy_j_per_token == pytest.approx(101.5 / 20)
    assert summary.cpu_energy_j is None
    assert summary.runtime_s == pytest.approx(1.15)


def test_a_folder_stands_for_its_results_json(tmp_path: Path) -> None:
    """`llmenergy-report summary reports/my-campaign`."""
    write(tmp_path / "results.json", BY_HAND)
    assert read_results(tmp_path).cells[0].model == "m"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {**BY_HAND, "schema": "llmenergy.results/9"},
            "has schema 'llmenergy.results/9'; this version reads",
        ),
        ({**BY_HAND, "schema": None}, "has schema None"),
        ({"schema": "llmenergy.results/9", "other": 1}, "has schema 'llmenergy.results/9'"),
        ({**BY_HAND, "cells": [{**BY_HAND["cells"][0], "tokens_in": "8"}]}, r"Expected `int`.*tokens_in"),
        ({**BY_HAND, "cells": [{"model": "m"}]}, "missing required field"),
        ([1, 2], "is not a results document"),
    ],
)
def test_a_document_that_is_none_is_refused_with_the_place(
    tmp_path: Path, document: Any, message: str
) -> None:
    """Another version, a wrong type, a missing field: the file and the path inside it are named."""
    with pytest.raises(DocumentError, match=message):
        read_results(write(tmp_path / "r.json", document))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"null"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """Never a traceback."""
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=r"r\.json") as refused:
        read_results(path)
    assert ("is empty. Measure again" in str(refused.value)) is (content == b"")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(DocumentError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_the_published_schema_is_that_of_the_records() -> None:
    """docs/results.schema.json is what `llmenergy-report schema` prints."""
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema()


def test_the_schema_takes_our_documents_and_refuses_others() -> None:
    """As any validator reads it."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    document = json.loads(msgspec.json.encode(Campaign(cells=())))
    assert list(validator.iter_errors(BY_HAND)) == []
    assert list(validator.iter_errors(document)) == []
    assert list(validator.iter_errors({**BY_HAND, "cells": [{"model": "m"}]})) != []


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure in the middle leaves the former file and no other."""
    path = tmp_path / "r.json"
    write_atomically(path, b"former")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert path.read_bytes() == b"former"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        write_results(tmp_path / "file" / "r.json", Campaign(cells=()))


ENERGIES = st.none() | st.floats(0, 1e6)
TRIALS = st.builds(
    Trial,
    index=st.integers(0, 99),
    runtime_s=st.floats(1e-6, 1e4),
    warmup=st.booleans(),
    excluded=st.none() | st.text(max_size=5),
    domains=st.lists(
        st.builds(
            lambda domain, energy_j: DomainEnergy(
                domain=domain,
                energy_j=energy_j,
                provenance=Provenance.UNAVAILABLE if energy_j is None else Provenance.MEASURED,
            ),
            st.sampled_from(["gpu:0", "gpu:1", "cpu:package-0"]),
            ENERGIES,
        ),
        max_size=3,
        unique_by=lambda part: part.domain,
    ).map(tuple),
)


@given(st.lists(TRIALS, max_size=6))
def test_unknown_energy_is_never_summed_as_zero(trials: list[Trial]) -> None:
    """A mean over trials of which one is unknown is unknown."""
    summary = summarise(trials, tokens_generated=10)
    counted = [trial for trial in trials if trial.counts]
    gpu = [[p.energy_j for p in trial.domains if p.domain.startswith("gpu:")] for trial in counted]
    if not counted or any(not parts or None in parts for parts in gpu):
        assert summary.gpu_energy_j is None
    else:
        assert summary.gpu_energy_j == pytest.approx(sum(map(sum, gpu)) / len(gpu))
    if summary.energy_j_per_token is None:
        assert summary.energy_basis is None


@given(st.lists(TRIALS, max_size=4).map(tuple))
def test_what_is_written_is_read_again(trials: tuple[Trial, ...]) -> None:
    """Encoding loses nothing."""
    record = CellRecord(
        model="m",
        system="s",
        n_gpus=None,
        batch_size=1,
        kv_cache=None,
        tokens_in=1,
        tokens_out=1,
        trials=trials,
        summary=summarise(trials, tokens_generated=1),
    )
    campaign = Campaign(cells=(record,))
    assert msgspec.json.decode(msgspec.json.encode(campaign), type=Campaign) == campaign
