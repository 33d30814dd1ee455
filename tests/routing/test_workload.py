"""Reading, counting and writing workloads, in streams."""

import numpy as np
import polars as pl
import pytest

from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.routing import workload as module
from pytest_llmenergy.routing.workload import (
    assign,
    count_classes,
    read_workload,
    scan,
    workload_of,
    write_assignment,
)


@pytest.fixture(params=["csv", "parquet"])
def store(request, tmp_path):
    """Write a frame as either kind of file."""

    def write(frame):
        path = tmp_path / f"workload.{request.param}"
        frame.write_csv(path) if request.param == "csv" else frame.write_parquet(path)
        return path

    return write


@pytest.fixture
def queries():
    rng = np.random.default_rng(0)
    return pl.DataFrame({"tokens_in": rng.integers(1, 9, 500), "tokens_out": rng.integers(0, 7, 500)})


def test_equal_queries_are_merged(store, queries):
    """The classes are the distinct pairs, sorted, and their counts add up."""
    workload = read_workload(store(queries))
    expected = queries.group_by("tokens_in", "tokens_out").len().sort("tokens_in", "tokens_out")
    assert workload.tokens_in.tolist() == expected["tokens_in"].to_list()
    assert workload.tokens_out.tolist() == expected["tokens_out"].to_list()
    assert workload.counts.tolist() == expected["len"].to_list()
    assert workload.queries == 500


def test_a_column_of_counts_says_how_often(store):
    """Rows of a count are as many queries; none is dropped, zero is none."""
    frame = pl.DataFrame(
        {"tokens_in": [5, 5, 7], "tokens_out": [1, 1, 2], "count": [3, 4, 0], "note": ["a", "b", "c"]}
    )
    workload = read_workload(store(frame))
    assert (workload.tokens_in.tolist(), workload.counts.tolist()) == ([5], [7])


def test_files_and_arrays_give_the_same_classes(store, queries):
    """Reading is merging."""
    read = read_workload(store(queries))
    made = workload_of(queries["tokens_in"].to_numpy(), queries["tokens_out"].to_numpy())
    for name in ("tokens_in", "tokens_out", "counts"):
        assert getattr(read, name).tolist() == getattr(made, name).tolist()


def test_counting_is_a_group_by_on_plain_columns(store, queries):
    """Step one of three runs on any engine: it needs the columns and nothing else."""
    classes = count_classes(scan(store(queries)))
    assert set(classes.columns) == {"tokens_in", "tokens_out", "count"}
    assert classes["count"].sum() == 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tokens_in,tokens_out\n1,2\n3,\n", "query 2: tokens_out is empty"),
        ("tokens_in,tokens_out\n1,2\n3,NaN\n", "query 2: tokens_out is NaN"),
        ("tokens_in,tokens_out\n1,2\n3,4\n-5,1\n", "query 3: tokens_in is -5"),
        ("tokens_in,tokens_out\n1,2.5\n", "query 1: tokens_out is 2.5"),
        ("tokens_in,tokens_out\n1,many\n", "query 1: tokens_out is many"),
        ("tokens_in,tokens_out\n1,99999999999\n", "query 1: tokens_out is 99999999999"),
        ("tokens_in,tokens_out,count\n1,2,-1\n", "query 1: count is -1"),
        ("tokens_in,tokens_out\n", "has no queries"),
        ("tokens_in,tokens_out,count\n1,2,0\n", "has no queries"),
        ("", "is empty"),
        ("tokens_in,n\n1,2\n", "has no column 'tokens_out'"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, words):
    """The message says which query and which column."""
    path = tmp_path / "w.csv"
    path.write_text(text)
    with pytest.raises(DocumentError, match=words):
        read_workload(path)


def test_bad_rows_of_parquet_are_named(tmp_path):
    """Floats and nulls are found there too."""
    path = tmp_path / "w.parquet"
    pl.DataFrame({"tokens_in": [1.0, float("nan")], "tokens_out": [1, 1]}).write_parquet(path)
    with pytest.raises(DocumentError, match="query 2: tokens_in is nan"):
        read_workload(path)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DocumentError, match="cannot be read"):
        read_workload(path)


def test_whole_floats_are_token_counts(tmp_path):
    """A table written by pandas has 12.0 for 12."""
    path = tmp_path / "w.parquet"
    pl.DataFrame({"tokens_in": [12.0], "tokens_out": [3.0]}).write_parquet(path)
    assert read_workload(path).tokens_in.tolist() == [12]
    path = tmp_path / "w.csv"
    path.write_text("tokens_in,tokens_out\n12.0,3\n")
    assert read_workload(path).tokens_in.tolist() == [12]


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    """With what it should have held."""
    with pytest.raises(DocumentError, match="there is no such file"):
        read_workload(tmp_path / "none.csv")


@pytest.mark.parametrize("bad", [[-1], [1.5], [float("nan")]])
def test_bad_arrays_are_refused(bad):
    """In memory as from a file."""
    with pytest.raises(RequestError, match="query 1: tokens_in"):
        workload_of(bad, [1])


@pytest.mark.parametrize("places", [1 << 24, 10])
def test_an_assignment_keeps_order_and_counts(store, queries, tmp_path, monkeypatch, places):
    """One row a query in the workload's order; each class split as planned, across batches."""
    monkeypatch.setattr(module, "_ROWS_A_BATCH", 64)
    monkeypatch.setattr(module, "_MOST_PLACES", places)
    workload = read_workload(store(queries))
    rng = np.random.default_rng(1)
    first = rng.integers(0, workload.counts + 1)
    flow = np.stack([first, workload.counts - first])
    for ending in ("csv", "parquet"):
        out = tmp_path / f"plan.{ending}"
        write_assignment(out, workload, flow, ["a", "b"])
        plan = pl.read_csv(out) if ending == "csv" else pl.read_parquet(out)
        assert plan.columns == ["tokens_in", "tokens_out", "model"]
        assert plan.select("tokens_in", "tokens_out").equals(queries)
        sent = plan.filter(pl.col("model") == "a").group_by("tokens_in", "tokens_out").len()
        planned = dict(
            zip(
                zip(workload.tokens_in.tolist(), workload.tokens_out.tolist(), strict=True),
                first.tolist(),
                strict=True,
            )
        )
        assert {(i, o): n for i, o, n in sent.rows()} == {pair: n for pair, n in planned.items() if n}
    assert not list(tmp_path.glob(".*partial"))


def test_counts_are_spread_out_over_rows(tmp_path):
    """A row of count 3 becomes three rows of the plan."""
    path = tmp_path / "w.csv"
    path.write_text("tokens_in,tokens_out,count\n1,1,3\n2,2,1\n")
    workload = read_workload(path)
    parts = list(assign(workload, np.array([[2, 0], [1, 1]])))
    assert np.concatenate([models for _, models in parts]).tolist() == [0, 0, 1, 1]


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path):
    """One message, no half of a file."""
    (tmp_path / "file").write_text("")
    workload = workload_of([1], [1])
    with pytest.raises(RequestError, match="cannot write"):
        write_assignment(tmp_path / "file" / "plan.csv", workload, np.array([[1]]), ["a"])


def test_lengths_that_are_not_known_are_not_looked_at(tmp_path):
    """tokens_out may be missing, and is empty in the plan."""
    path = tmp_path / "w.csv"
    path.write_text("tokens_in\n4\n4\n9\n")
    workload = read_workload(path, lengths_known=False)
    assert (workload.tokens_in.tolist(), workload.counts.tolist()) == ([4, 9], [2, 1])
    write_assignment(tmp_path / "p.csv", workload, np.array([[2, 1]]), ["a"])
    assert pl.read_csv(tmp_path / "p.csv")["tokens_out"].null_count() == 3
