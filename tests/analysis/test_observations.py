"""What was measured, as columns."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.analysis import observations
from pytest_llmenergy.analysis.cell_means import cell_means
from pytest_llmenergy.analysis.documents import ENERGIES
from pytest_llmenergy.campaign.results import read_results
from pytest_llmenergy.campaign.summary import energy_of
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.simulation import Coefficients
from tests.doubles.documents import BY_HAND
from tests.doubles.scripted import ENERGY, scripted

if TYPE_CHECKING:
    from pathlib import Path

SMALL = [(8, 8), (8, 64), (64, 8), (64, 64)]


def _edited(path: Path, **changes: object) -> Path:
    document = copy.deepcopy(BY_HAND)
    document["cells"][0]["trials"][1].update(changes)
    path.write_text(json.dumps(document))
    return path


def test_a_document_written_by_hand_is_read(tmp_path: Path) -> None:
    """Warm-ups and excluded trials do not count; no field beyond the documented ones is needed."""
    read = observations.read([_edited(tmp_path / "results.json")])
    assert read.trials["runtime_s"].to_list() == pytest.approx([1.1, 1.2])
    assert read.trials["gpu_energy_j"].to_list() == [101.0, 102.0]
    assert read.metrics() == ("gpu_energy_j", "energy_j", "runtime_s")
    less = observations.read([_edited(tmp_path / "results.json", excluded="thermal")])
    assert less.trials["gpu_energy_j"].to_list() == [102.0]


def test_sums_are_those_of_the_accounting(tmp_path: Path) -> None:
    """Cores, packages, memory and GPUs add up exactly as a results document adds them."""
    domains = ("gpu:0", "gpu:1", "cpu:package-0", "cpu:package-1", "dram:0", "cpu:attributed", "cpu:core-1")
    energy_j = {name: Coefficients(step=1.0 + i) for i, name in enumerate(domains)}
    for estimated in ((), ("cpu:attributed",), ("gpu:1",), domains):
        path = scripted(
            tmp_path / f"{len(estimated)}{''.join(estimated)[:5]}.json".replace(":", ""),
            energy_j=energy_j,
            grid=SMALL,
            estimated=estimated,
        )
        read = observations.read([path])
        trials = [trial for cell in read_results(path).cells for trial in cell.trials]
        for metric in ENERGIES:
            assert read.trials[metric].to_list() == [energy_of(trial, metric) for trial in trials]
        assert read.trials["gpu_estimated"].all() is ("gpu:1" in estimated)


def test_an_unknown_part_makes_the_sum_unknown(tmp_path: Path) -> None:
    """A total never stands for its known part; the cell's total is unknown, its GPU energy is not."""
    domains = [
        {"domain": "gpu:0", "energy_j": 5.0, "provenance": "measured"},
        {"domain": "cpu:package-0", "energy_j": None, "provenance": "unavailable", "reason": "no-permission"},
    ]
    read = observations.read([_edited(tmp_path / "results.json", domains=domains)])
    assert read.trials["energy_j"].to_list() == [None, 102.0]
    assert [cells.metric for cells in cell_means(read)] == ["gpu_energy_j", "runtime_s"]


def test_trials_of_one_cell_may_have_other_domains(tmp_path: Path) -> None:
    """A meter that came late: each trial is summed by its own domains."""
    domains = [
        {"domain": "cpu:package-0", "energy_j": 7.0, "provenance": "estimated"},
        {"domain": "gpu:0", "energy_j": 5.0, "provenance": "measured"},
    ]
    read = observations.read([_edited(tmp_path / "results.json", domains=domains)])
    assert read.trials["energy_j"].to_list() == [12.0, 102.0]
    assert read.trials["cpu_energy_j"].to_list() == [7.0, None]
    assert read.trials["cpu_estimated"].to_list() == [True, False]


def test_cells_that_something_disturbed_are_counted(tmp_path: Path) -> None:
    """Of trials that count; without one, nothing is said."""
    path = _edited(tmp_path / "results.json", flags=["cpu: 1.7 of 2 CPUs busy with other processes"])
    read = observations.read([path])
    assert read.trials["disturbed"].to_list() == [True, False]
    (note,) = read.notes
    assert note.startswith("1 of 1 cell has trials that something disturbed;")
    assert observations.read([_edited(tmp_path / "results.json")]).notes == ()


def test_a_table_and_its_document_are_the_same_observations(tmp_path: Path) -> None:
    """Analysing TIDY.csv directly and by way of `import` gives the same trials."""
    from pytest_llmenergy.campaign.imported import document
    from pytest_llmenergy.campaign.results import write_atomically
    from pytest_llmenergy.campaign.tidy import read_tidy
    from pytest_llmenergy.records import Campaign

    table, results = tmp_path / "tidy.csv", tmp_path / "results.json"
    table.write_text(
        "model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j\n"
        "b,node,1,32,8,16,1,0.5,100.5,\n"
        "a,node,,32,8,16,1,0.6,101.5,3\n"
        "a,node,0,32,8,16,1,0.6,,3\n"
        "b,node,1,32,8,16,2,0.7,102.5,4\n"
    )
    write_atomically(results, document(Campaign(cells=()), read_tidy(table)))
    direct, by_document = observations.read([table]), observations.read([results])
    assert direct.cells.drop("documents").equals(by_document.cells.drop("documents"))
    assert direct.trials.sort("cell", "runtime_s").equals(by_document.trials.sort("cell", "runtime_s"))


def test_machines_are_kept_apart_unless_pooled(tmp_path: Path) -> None:
    """One name of a system on two machines is two groups, and one when asked for."""
    paths = [
        scripted(tmp_path / f"{name}.json", fingerprint=name, grid=SMALL, seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    apart = list(cell_means(observations.read(paths)))
    assert {cells.group.fingerprint for cells in apart} == {"one", "two"}
    assert {int(cells.trials[0]) for cells in apart} == {3}
    pooled = list(cell_means(observations.read(paths, pool=True)))
    assert {(cells.group.fingerprint, int(cells.trials[0])) for cells in pooled} == {(None, 6)}
    assert pooled[0].documents == (0, 1)


def test_documents_of_one_machine_add_up(tmp_path: Path) -> None:
    """An input sweep and an output sweep of one machine are one group's cells."""
    first = scripted(tmp_path / "in.json", fingerprint="one", grid=[(8, 32), (64, 32)])
    second = scripted(tmp_path / "out.json", fingerprint="one", grid=[(8, 32), (8, 64)], seed=1)
    cells = next(cell_means(observations.read([first, second])))
    assert list(zip(cells.tokens_in, cells.tokens_out, cells.trials, strict=True)) == [
        (8, 32, 6),
        (8, 64, 3),
        (64, 32, 3),
    ]


def test_batch_sizes_and_modes_are_never_of_one_fit(tmp_path: Path) -> None:
    """Each is a group of its own."""
    paths = [
        scripted(tmp_path / f"{batch_size}{kv}.json", batch_size=batch_size, kv_cache=kv, grid=SMALL)
        for batch_size in (1, 8)
        for kv in (False, True)
    ]
    groups = {cells.group for cells in cell_means(observations.read(paths))}
    assert {(group.batch_size, group.kv_cache) for group in groups} == {
        (1, False),
        (1, True),
        (8, False),
        (8, True),
    }


def test_a_document_given_twice_is_refused(tmp_path: Path) -> None:
    """Its trials would count twice; a folder and its results.json are one document."""
    path = scripted(tmp_path / "results.json", grid=SMALL)
    with pytest.raises(RequestError, match="is the same document as"):
        observations.read([path, tmp_path])


def test_a_trial_that_stands_in_two_documents_is_refused(tmp_path: Path) -> None:
    """A copy with another name, a longer campaign beside a shorter one, a table beside its import."""
    short = scripted(tmp_path / "short.json", fingerprint="one", grid=SMALL[:2])
    longer = scripted(tmp_path / "longer.json", fingerprint="one", grid=SMALL)
    with pytest.raises(DocumentError) as error:
        observations.read([longer, short])
    assert str(error.value).startswith(
        f"{short}: repeats trial 0 of m on node, 8 tokens in, 8 out, which {longer} has, with"
    )
    other = scripted(tmp_path / "other.json", fingerprint="two", grid=SMALL)
    assert observations.read([longer, other], pool=True).trials.height == 24


def test_a_repeated_trial_of_a_table_is_told_by_its_line(tmp_path: Path) -> None:
    """Also beside the document that was imported of it; a trial with other figures is another one."""
    header = (
        "model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j"
    )
    rows = ["m,node,1,1,8,16,1,0.5,100,", "m,node,1,1,8,32,1,0.5,100,", "m,node,1,1,8,16,2,0.51,100,"]
    first, second, again = (tmp_path / f"{name}.csv" for name in ("first", "second", "again"))
    first.write_text("\n".join([header, *rows[:2]]) + "\n")
    second.write_text("\n".join([header, rows[2], "", rows[1]]) + "\n")
    again.write_text("\n".join([header, rows[0].replace("0.5,", "0.6,")]) + "\n")
    with pytest.raises(DocumentError) as error:
        observations.read([first, second])
    assert str(error.value).startswith(
        f"{second}: line 4: repeats trial 1 of m on node, 8 tokens in, 32 out, which {first} has in line 3"
    )
    pooled = observations.read([first, again])
    assert pooled.trials.height == 3
    assert pooled.notes == ("1 cell stands in several documents: their trials are taken together.",)
    assert observations.read([first]).notes == ()


def test_a_mode_that_is_said_makes_one_cell_of_two(tmp_path: Path) -> None:
    """A table that does not say its mode is of the one named, before cells are put together."""
    known = scripted(tmp_path / "known.json", grid=[(8, 16)])
    table = tmp_path / "table.csv"
    table.write_text(
        "model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j\n"
        "m,node,1,1,8,16,1,0.5,100,\n"
    )
    assert observations.read([known, table]).cells["kv_cache"].to_list() == [None, False]
    read = observations.read([known, table], kv_cache=False)
    assert read.cells["kv_cache"].to_list() == [False]
    assert read.select(kv_cache=False).trials.height == 4


def test_a_selection_says_what_there_is(tmp_path: Path) -> None:
    """Models and systems that are not there are named, with those that are."""
    read = observations.read(
        [
            scripted(
                tmp_path / "r.json", models=("a", "b"), scales=(1, 2), grid=SMALL, energy_j={"gpu:0": ENERGY}
            )
        ]
    )
    assert read.select(models=["b"]).cells["model"].unique().to_list() == ["b"]
    assert read.select(models=["b"]).trials.height == 12
    with pytest.raises(RequestError, match="no cell is of model 'c'; there is a, b"):
        read.select(models=["c"])
    with pytest.raises(RequestError, match="no cell is left"):
        read.select(batch_size=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime_s": -1.0}, "m, 8 tokens in, 10 out: a trial has runtime_s -1"),
        (
            {"domains": [{"domain": "gpu:0", "energy_j": -3.0, "provenance": "measured"}]},
            "a trial has gpu_energy_j -3",
        ),
        ({"runtime_s": "fast"}, r"cell 0: Expected `float`, got `str` - at `\$.trials\[1\].runtime_s`"),
    ],
)
def test_an_impossible_figure_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """The message names the document and the cell."""
    with pytest.raises(DocumentError, match=message):
        observations.read([_edited(tmp_path / "results.json", **changes)])


@pytest.mark.parametrize("name", ["batch_size", "tokens_in", "tokens_out"])
def test_a_count_below_one_is_refused(tmp_path: Path, name: str) -> None:
    """A cell of no tokens, or of no sequence, has no cost to be fitted."""
    document = copy.deepcopy(BY_HAND)
    document["cells"][0][name] = 0
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(DocumentError, match=f"a cell of m has {name} 0. Give 1 or more"):
        observations.read([tmp_path])


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_none_is_told_by_its_line(tmp_path: Path, figure: float) -> None:
    """What Python's json writes for it is no JSON; the message says what to write."""
    document = copy.deepcopy(BY_HAND)
    document["cells"][0]["trials"][1]["domains"][0]["energy_j"] = figure
    text = json.dumps(document, indent=1)
    line = next(n for n, one in enumerate(text.splitlines(), 1) if "NaN" in one or "Infinity" in one)
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DocumentError, match=f"line {line}: .*write null where a figure is unknown"):
        observations.read([tmp_path])


def test_a_cell_that_failed_has_no_trials_to_fit(tmp_path: Path) -> None:
    """What a broken-off cell measured stays in its document, and out of every mean."""
    document = copy.deepcopy(BY_HAND)
    failed = {**copy.deepcopy(document["cells"][0]), "tokens_in": 16, "error": "out of memory"}
    document["cells"].append(failed)
    (tmp_path / "results.json").write_text(json.dumps(document))
    assert observations.read([tmp_path]).cells["tokens_in"].to_list() == [8]


def test_a_table_s_total_is_unknown_where_its_gpu_s_energy_is(tmp_path: Path) -> None:
    """CPU energy alone is no total, unless there is no GPU."""
    table = tmp_path / "table.csv"
    table.write_text(
        "model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j\n"
        "m,node,1,1,8,16,1,0.5,,3\n"
        "m,node,0,1,8,16,1,0.5,,3\n"
        "m,node,,1,8,16,1,0.5,100,3\n"
    )
    read = observations.read([table])
    totals = read.cells.with_row_index("cell").join(read.trials, on="cell").sort("n_gpus", nulls_last=True)
    assert totals.select("n_gpus", "energy_j").rows() == [(0, 3.0), (1, None), (None, 103.0)]


def test_a_document_of_another_version_is_refused(tmp_path: Path) -> None:
    """As every reader of results refuses it."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**BY_HAND, "schema": "llmenergy.results/9"}))
    with pytest.raises(DocumentError, match=r"llmenergy\.results/9"):
        observations.read([path])
