"""Stored baselines: found again by name, by number, by machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from pytest_llmenergy.campaign.baselines import (
    find_baselines,
    machine_folder,
    save_baseline,
    stored,
)
from pytest_llmenergy.campaign.results import read_results, write_results
from pytest_llmenergy.environment import fingerprint
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Campaign, Environment, Gpu

if TYPE_CHECKING:
    from pathlib import Path


def machine(hostname="node1", driver="560.1"):
    environment = Environment(
        hostname=hostname, driver=driver, gpus=(Gpu(index=0, name="NVIDIA A100-SXM4-40GB"),)
    )
    return msgspec.structs.replace(environment, fingerprint=fingerprint(environment))


def campaign(environment=None, name="c"):
    return Campaign(name=name, environment=environment or machine(), cells=())


def test_baselines_are_numbered_as_pytest_benchmark_does(tmp_path):
    """Files are NNNN_name.json under the machine's folder, numbered over all names."""
    paths = [save_baseline(campaign(), name, tmp_path) for name in ("main", "v1.0", "main")]
    folder = machine_folder(machine())
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        f"{folder}/0001_main.json",
        f"{folder}/0002_v1.0.json",
        f"{folder}/0003_main.json",
    ]
    assert folder.startswith("1x-nvidia-a100-sxm4-40gb-")
    assert read_results(paths[0]) == campaign()
    assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [p.name for p in paths]


def test_a_name_is_all_its_sessions_and_a_number_is_one(tmp_path):
    """`main` means every stored main, oldest first; `0002`, `2` and `0002_other` mean that one."""
    paths = [save_baseline(campaign(), name, tmp_path) for name in ("main", "other", "main")]
    assert find_baselines("main", machine(), tmp_path) == [paths[0], paths[2]]
    for wanted in ("2", "0002", "0002_other"):
        assert find_baselines(wanted, machine(), tmp_path) == [paths[1]]


def test_ten_thousand_baselines_stay_in_order(tmp_path):
    """Order is by number, not by letters."""
    folder = tmp_path / machine_folder(machine())
    write_results(folder / "9999_main.json", campaign())
    save_baseline(campaign(), "main", tmp_path)
    assert [p.name for p in stored(folder)] == ["9999_main.json", "10000_main.json"]


def test_another_machine_has_another_folder(tmp_path):
    """A name that only another machine has is not found, and the message says where it is."""
    save_baseline(campaign(machine(driver="570.0")), "main", tmp_path)
    with pytest.raises(RequestError, match=r"Other machines have it") as caught:
        find_baselines("main", machine(), tmp_path)
    assert "--llm-energy-save main" in str(caught.value)


def test_a_folder_means_its_documents(tmp_path):
    """A folder of stored baselines is a history; a results folder is its document."""
    paths = [save_baseline(campaign(), "main", tmp_path / "store") for _ in range(2)]
    assert find_baselines(str(paths[0].parent), machine()) == paths
    write_results(tmp_path / "r" / "results.json", campaign())
    assert find_baselines(str(tmp_path / "r"), machine()) == [tmp_path / "r" / "results.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="neither"):
        find_baselines(str(tmp_path / "empty"), machine())


@pytest.mark.parametrize("name", ["", "a/b", "../x", "12", ".hidden", "a b"])
def test_a_name_that_could_not_be_a_file_is_refused(tmp_path, name):
    """Nothing is written under a name that would escape the folder or read as a number."""
    with pytest.raises(RequestError, match="cannot name a baseline"):
        save_baseline(campaign(), name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_store_says_so(tmp_path):
    """A file in the folder's place gives one message."""
    (tmp_path / "store").write_text("a file")
    with pytest.raises(RequestError, match="cannot write the baseline"):
        save_baseline(campaign(), "main", tmp_path / "store")


def test_two_runs_that_end_together_get_two_numbers(tmp_path, monkeypatch):
    """A number that was taken meanwhile is not overwritten."""
    first = save_baseline(campaign(name="first"), "main", tmp_path)
    listings = iter([[], []])
    real = stored

    def stale(folder: Path) -> list[Path]:
        return next(listings, None) or real(folder)[:0]

    monkeypatch.setattr("pytest_llmenergy.campaign.baselines.stored", stale)
    second = save_baseline(campaign(name="second"), "main", tmp_path)
    assert read_results(first).name == "first"
    assert second.name == "0002_main.json"
