"""A workload: read as a stream, merged into classes of equal queries, and a plan written as a stream.

Counting is a group-by and assigning a map, both over plain columns, so either can run on any engine; only the
classes have to be in one place, and however long the workload they are few.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.errors import DocumentError, RequestError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    Ints = NDArray[np.int64]

COLUMNS = ("tokens_in", "tokens_out")
COUNT = "count"
_MOST = (1 << 31) - 1
_ROWS_A_BATCH = 1 << 20
_MOST_COUNTERS = 1 << 20
_MOST_PLACES = 1 << 24
_EXAMPLE = "Give the columns tokens_in,tokens_out and, optionally, count."


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Classes of equal queries, sorted by tokens_in, then tokens_out; all (C,)."""

    tokens_in: Ints
    tokens_out: Ints
    counts: Ints
    path: Path | None = None  # where the queries are, in their order
    lengths_known: bool = True  # else tokens_out is not looked at, and 0 here

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return int(self.counts.sum())

    @property
    def tokens(self) -> Ints:
        """tokens_in + tokens_out, (C,)."""
        return self.tokens_in + self.tokens_out

    def finder(self) -> Callable[[Ints, Ints], NDArray[np.intp]]:
        """A function from (tokens_in, tokens_out) of queries to their classes; every query must have one."""
        base = int(self.tokens_out.max()) + 1
        keys = self.tokens_in * base + self.tokens_out
        if keys[-1] < _MOST_PLACES:  # a place for every pair there could be: ten times a search's speed
            places = np.zeros(int(keys[-1]) + 1, np.int32)
            places[keys] = np.arange(len(keys))
            return lambda tokens_in, tokens_out: places[tokens_in * base + tokens_out].astype(np.intp)
        return lambda tokens_in, tokens_out: np.searchsorted(keys, tokens_in * base + tokens_out)


def workload_of(tokens_in: ArrayLike, tokens_out: ArrayLike, counts: ArrayLike | None = None) -> Workload:
    """Merge queries in memory into classes.

    Args:
        tokens_in: (n,) prompt tokens.
        tokens_out: (n,) generated tokens.
        counts: (n,) how often each; once where not given.

    Raises:
        RequestError: a count of tokens or queries is no whole number of at least 0, or there is no query.
    """
    columns = [_whole(values, name) for values, name in zip((tokens_in, tokens_out), COLUMNS, strict=True)]
    times = None if counts is None else _whole(counts, COUNT)
    if not (len(columns[0]) if times is None else times.sum()):
        raise RequestError("the workload has no queries. Give one with at least one query.")
    base = int(columns[1].max()) + 1
    keys = columns[0] * base
    keys += columns[1]
    if int(keys.max()) < _MOST_COUNTERS:  # a counter for every pair there could be
        counters = np.bincount(keys) if times is None else np.bincount(keys, times).astype(np.int64)
        keys = np.flatnonzero(counters)
        merged = counters[keys]
    else:
        keys, where = np.unique(keys, return_inverse=True)
        merged = (np.bincount(where) if times is None else np.bincount(where, times)).astype(np.int64)
        keys, merged = keys[merged > 0], merged[merged > 0]
    long_in, long_out = np.divmod(keys, base)
    return Workload(tokens_in=long_in, tokens_out=long_out, counts=merged)


def _whole(values: ArrayLike, name: str) -> Ints:
    array = np.asarray(values)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= _MOST:
        return array.astype(np.int64, copy=False)
    good = _good(array)
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise RequestError(f"query {first + 1}: {name} is {array[first]}. {_REMEDY}")
    return array.astype(np.int64)


def _good(values: NDArray[Any]) -> NDArray[np.bool_]:
    floats = values.astype(np.float64)
    good: NDArray[np.bool_] = np.isfinite(floats) & (floats >= 0) & (floats <= _MOST)
    good &= floats == np.floor(floats)
    return good


_REMEDY = "Token counts are whole numbers from 0 up."


def _polars() -> Any:
    return require("polars", feature="reading a workload", extra="routing")


def scan(path: Path, *, lengths_known: bool = True) -> pl.LazyFrame:
    """The workload's columns, unread: tokens_in, tokens_out and, where there is one, count.

    Where the lengths of the answers are not known, tokens_out is 0, whatever the file says.

    Raises:
        DocumentError: the file is missing, empty, of another kind, or lacks a column.
    """
    # Floats, since tables written elsewhere have 12.0 for 12; all below 2^53 are exact.
    return _scan(path, _polars().Float64, lengths_known=lengths_known)


def _scan(path: Path, dtype: Any, *, lengths_known: bool) -> pl.LazyFrame:
    polars = _polars()
    names = _names(path)
    for name in COLUMNS:
        if name not in names and (lengths_known or name != "tokens_out"):
            raise DocumentError(path, f"has no column {name!r}.", _EXAMPLE)
    if path.suffix.lower() == ".parquet":
        frame = polars.scan_parquet(path)
    else:
        typed = {name: dtype for name in (*COLUMNS, COUNT) if name in names}
        frame = polars.scan_csv(path, schema_overrides=typed)
    if not lengths_known:
        frame = frame.with_columns(tokens_out=polars.lit(0, dtype))
    selected: pl.LazyFrame = frame.select(*COLUMNS, *([COUNT] if COUNT in names else []))
    return selected


def _names(path: Path) -> list[str]:
    polars = _polars()
    if not path.is_file():
        raise DocumentError(path, "there is no such file.", _EXAMPLE)
    try:
        parquet = path.suffix.lower() == ".parquet"
        names: list[str] = (
            (polars.scan_parquet(path) if parquet else polars.scan_csv(path)).collect_schema().names()
        )
    except polars.exceptions.NoDataError as error:
        raise DocumentError(path, "is empty.", _EXAMPLE) from error
    except (polars.exceptions.PolarsError, OSError) as error:
        raise DocumentError(path, f"cannot be read: {_first_line(error)}.", _EXAMPLE) from error
    return names


def has_lengths(path: Path) -> bool:
    """Whether a workload says how long the answers are."""
    return "tokens_out" in _names(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def count_classes(frame: pl.LazyFrame) -> pl.DataFrame:
    """Step 1 of 3: merge equal queries; columns tokens_in, tokens_out, count, in a stream."""
    polars = _polars()
    has_count = COUNT in frame.collect_schema().names()
    times = polars.col(COUNT).sum() if has_count else polars.len().cast(polars.Int64).alias(COUNT)
    grouped = frame.group_by(COLUMNS).agg(times, *([polars.col(COUNT).min().alias("least")] * has_count))
    return grouped.collect(engine="streaming")


def read_workload(path: Path, *, lengths_known: bool = True) -> Workload:
    """Read a workload's classes from CSV or Parquet (by its ending), however long it is.

    Raises:
        DocumentError: it cannot be read, a value is not a whole number of at least 0 (with its row), or it
            has no queries.
    """
    polars = _polars()
    try:
        classes = count_classes(scan(path, lengths_known=lengths_known))
    except polars.exceptions.PolarsError as error:
        _refuse_bad_row(path, lengths_known=lengths_known)
        raise DocumentError(path, f"cannot be read: {_first_line(error)}.", _EXAMPLE) from error
    arrays = {name: classes[name].to_numpy() for name in classes.columns}
    if not all(_good(values).all() for values in arrays.values()):
        _refuse_bad_row(path, lengths_known=lengths_known)
    if not len(classes) or not int(arrays[COUNT].sum()):
        raise DocumentError(path, "has no queries.", "Give a workload with at least one.")
    merged = workload_of(*(arrays[name] for name in (*COLUMNS, COUNT)))
    return replace(merged, path=path, lengths_known=lengths_known)


def _refuse_bad_row(path: Path, *, lengths_known: bool) -> None:
    """Find the first value that is no whole number of at least 0, and say where it is."""
    polars = _polars()
    frame = _scan(path, polars.String, lengths_known=lengths_known).with_row_index("row")
    names = [name for name in frame.collect_schema().names() if name != "row"]
    numbers = {name: polars.col(name).cast(polars.Float64, strict=False) for name in names}

    def bad(name: str) -> pl.Expr:
        number: pl.Expr = numbers[name]
        whole = number.is_finite() & (number >= 0) & (number <= _MOST) & (number.floor() == number)
        return ~whole.fill_null(value=False)

    found = frame.filter(polars.any_horizontal(*(bad(name) for name in names))).head(1).collect()
    if len(found):
        row = found.row(0, named=True)
        name = next(name for name in names if found.select(bad(name)).item())
        value = "empty" if row[name] is None else row[name]
        raise DocumentError(path, f"query {row['row'] + 1}: {name} is {value}.", _REMEDY)


def rows(path: Path, *, lengths_known: bool = True) -> Iterator[tuple[Ints, Ints]]:
    """The queries of a workload in their order, in batches: tokens_in and tokens_out, counts spread out."""
    for batch in scan(path, lengths_known=lengths_known).collect_batches(
        chunk_size=_ROWS_A_BATCH, maintain_order=True, lazy=True, engine="streaming"
    ):
        tokens_in, tokens_out = (batch[name].to_numpy().astype(np.int64) for name in COLUMNS)
        if COUNT in batch.columns:
            times = batch[COUNT].to_numpy().astype(np.int64)
            tokens_in, tokens_out = np.repeat(tokens_in, times), np.repeat(tokens_out, times)
        yield tokens_in, tokens_out


def class_rows(workload: Workload) -> Iterator[NDArray[np.intp]]:
    """The class of every query, in the order of the workload's file, or of its classes where it has none."""
    if workload.path is None:
        yield np.repeat(np.arange(len(workload.counts)), workload.counts)
        return
    find = workload.finder()
    for tokens_in, tokens_out in rows(workload.path, lengths_known=workload.lengths_known):
        yield find(tokens_in, tokens_out)


def assign(workload: Workload, flow: Ints) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Step 3 of 3: the class and the model of every query, in order, in batches.

    A class that is split goes to its models in turn: the first queries to the first, as many as it gets.

    Args:
        workload: the queries.
        flow: (K, C), queries of each class at each model.
    """
    home = flow.argmax(axis=0)
    upto = np.cumsum(flow, axis=0)
    split = np.count_nonzero(flow, axis=0) > 1
    seen = np.zeros(len(home), np.int64)  # of the split classes
    for where in class_rows(workload):
        models = home[where]
        at = np.flatnonzero(split[where])
        for c in np.unique(where[at]):
            members = at[where[at] == c]
            places = seen[c] + np.arange(len(members))
            models[members] = np.searchsorted(upto[:, c], places, "right")
            seen[c] += len(members)
        yield where, models


def write_assignment(path: Path, workload: Workload, flow: Ints, models: Sequence[str]) -> None:
    """Write one row a query, tokens_in,tokens_out,model, as CSV or Parquet (by its ending), in a stream.

    Raises:
        RequestError: the file cannot be written.
    """
    polars = _polars()
    from polars.io.plugins import register_io_source

    names = polars.Series("model", list(models), dtype=polars.String)
    schema = {"tokens_in": polars.Int64, "tokens_out": polars.Int64, "model": polars.String}

    def frames(*_pushed_down: Any) -> Iterator[pl.DataFrame]:
        for where, chosen in assign(workload, flow):
            yield polars.DataFrame(
                {
                    "tokens_in": workload.tokens_in[where],
                    "tokens_out": workload.tokens_out[where] if workload.lengths_known else None,
                    "model": names.gather(chosen),
                },
                schema=schema,
            )

    temporary = path.with_name(f".{path.name}.partial")
    frame = register_io_source(frames, schema=schema)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".parquet":
            frame.sink_parquet(temporary, maintain_order=True)
        else:
            frame.sink_csv(temporary, maintain_order=True)
        temporary.replace(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise RequestError(
            f"cannot write {path} ({why}). Choose another place, or mend its permissions."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is none has been complained of
            temporary.unlink()
