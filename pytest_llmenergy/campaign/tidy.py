"""Read measurements made elsewhere: TIDY.csv, one row a trial.

An empty energy cell means unknown. Whatever would make a wrong joule of it is refused with its line: text,
NaN, infinity, a negative or zero energy, a repeated trial, rows in another unit.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import DocumentError, require, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

require("polars", feature="reading TIDY.csv", extra="analysis")

import polars as pl  # noqa: E402 - this module is imported late, by who reads such a file

TEXTS = ("model", "system")
COUNTS = ("n_gpus", "batch_size", "input_tokens", "output_tokens", "trial")
ENERGIES = ("gpu_energy_j", "cpu_energy_j")
REALS = ("runtime_s", *ENERGIES)
COLUMNS = (*TEXTS, *COUNTS, *REALS)
CELL = ("model", "system", "n_gpus", "batch_size", "kv_cache", "tokens_in", "tokens_out")
REPEATS = "repeats trial {trial} of {model} on {system}, {tokens_in} tokens in, {tokens_out} out"
_MAY_BE_EMPTY = ("n_gpus", *ENERGIES)
_LEAST = {"n_gpus": 0, "batch_size": 1, "input_tokens": 1, "output_tokens": 1, "trial": 0}
_KV_CACHE = {"true": True, "1": True, "false": False, "0": False}
# Units differ by factors of 1000 (mJ, ms) or 3600 (Wh); the power of one model on one system does not.
_OTHER_UNIT = 200.0


def read_tidy(path: Path, *, kv_cache: bool | None = None) -> pl.DataFrame:
    """The trials of a TIDY.csv, in its order.

    Args:
        path: a CSV file with the columns COLUMNS and, optionally, `kv_cache` (true or false).
        kv_cache: whether a KV cache was in use, where the file has no such column; None: unknown.

    Returns:
        One row a trial with the columns CELL, `trial` and REALS, null where unknown, and `cell`, a number
        that trials of one setting share, counted in the order of their first rows.

    Raises:
        DocumentError: the file is missing, or one of its lines is not a trial; the message names the line.
    """
    table = _Table(path)
    for name in TEXTS:
        table.check_text(name)
    for name in COUNTS:
        table.read_count(name)
    for name in REALS:
        table.read_real(name)
    table.read_kv_cache(kv_cache)
    table.frame = table.frame.rename({"input_tokens": "tokens_in", "output_tokens": "tokens_out"})
    table.frame = with_cell_number(table.frame)
    table.check_gpus()
    table.check_repeats()
    for name in ENERGIES:
        table.check_unit(name)
    return table.frame.select("cell", *CELL, "trial", *REALS)


def with_cell_number(frame: pl.DataFrame) -> pl.DataFrame:
    """The trials with a column `cell`: equal for one setting, counted in the order of their first rows."""
    starts = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in CELL)
    first = pl.int_range(pl.len()) == 0
    # Trials of one cell mostly stand together: only the first row of each run is looked up.
    frame = frame.with_columns((starts | first).cum_sum().alias("run") - 1)
    runs = frame.filter(frame["run"].diff().fill_null(1) > 0).select(CELL)
    settings = runs.unique(maintain_order=True).with_row_index("cell")
    number = runs.join(settings, on=CELL, nulls_equal=True, how="left", maintain_order="left")["cell"]
    return frame.with_columns(number.cast(pl.Int64).gather(frame["run"]).alias("cell")).drop("run")


def read_tables(paths: Sequence[Path], *, kv_cache: bool | None = None) -> pl.DataFrame:
    """The trials of several files, one after another.

    Raises:
        DocumentError: a line of a file is not a trial, or repeats one that an earlier file has.
    """
    tables = [read_tidy(path, kv_cache=kv_cache) for path in paths]
    if len(tables) == 1:
        return tables[0]
    trials = with_cell_number(pl.concat(tables))
    again = trials.select(~pl.struct("cell", "trial").is_first_distinct()).to_series().arg_true()
    if len(again):
        row = trials.row(int(again[0]), named=True)
        same = (trials["cell"] == row["cell"]) & (trials["trial"] == row["trial"])
        begins = [0, *accumulate(table.height for table in tables[:-1])]
        places = []
        for at in same.arg_true()[:2].to_list():
            file = bisect_right(begins, at) - 1
            places.append((paths[file], line_of(paths[file], at - begins[file])))
        (former, former_line), (path, line) = places
        raise DocumentError(
            path,
            f"line {line}: {REPEATS.format(**row)}, which {former} has in line {former_line}.",
            "Give each trial once, and number a cell's trials through; or import each file by itself: fit "
            "takes several documents of one machine together.",
        )
    return trials


def line_of(path: Path, trial: int) -> int:
    """The line on which a file's trial begins, counted from 0: not trial + 2 where fields hold new lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        ends = reader.line_num
        for row in reader:
            if any(row):
                if trial == 0:
                    break
                trial -= 1
            ends = reader.line_num
    return ends + 1


class _Table:
    """The file's rows on their way from text to trials."""

    def __init__(self, path: Path) -> None:
        self.path = path
        frame = self._read_text()
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise DocumentError(path, f"has no column {missing[0]!r}.", _remedy(missing[0], frame.columns))
        self._refuse_cut_row(len(frame.columns))
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
        if frame.is_empty():
            raise DocumentError(path, "has no row.", "Give one row a trial.")
        self.frame = frame

    def _read_text(self) -> pl.DataFrame:
        try:
            return pl.read_csv(self.path.read_bytes(), infer_schema=False)
        except OSError as error:
            raise unreadable(self.path, error) from error
        except pl.exceptions.NoDataError:
            raise DocumentError(self.path, "is empty.", f"Give the columns {','.join(COLUMNS)}.") from None
        except pl.exceptions.ComputeError as error:
            problem = self._first_odd_line() or f"is not a CSV file ({str(error).splitlines()[0]})."
            raise DocumentError(self.path, problem) from error

    def _first_odd_line(self) -> str | None:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                reader = csv.reader(file, strict=True)
                width = len(next(reader))
                for row in reader:
                    if len(row) > width:
                        return f"line {reader.line_num}: has {len(row)} fields, the header has {width}."
        except UnicodeDecodeError as error:
            return f"is not UTF-8 text ({error.reason})."
        except csv.Error as error:
            return f"is not a CSV file: {error}."
        return None

    def _refuse_cut_row(self, width: int) -> None:
        """A file whose writer was killed ends inside a row."""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            last = file.read().decode(errors="replace")
        if last.endswith("\n"):
            return
        (row,) = csv.reader([last.splitlines()[-1]])
        if len(row) < width:
            raise DocumentError(
                self.path,
                f"ends inside a row: the last one has {len(row)} fields, the header has {width}.",
                "Delete that row, or write it whole.",
            )

    def refuse_where(self, bad: pl.Expr | pl.Series, problem: str, remedy: str = "") -> None:
        """Raise for the first row where `bad` holds; `{column}` in the problem is its value."""
        flags = bad if isinstance(bad, pl.Series) else self.frame.select(bad).to_series()
        indices = flags.arg_true()
        if len(indices):
            at = int(indices[0])
            told = problem.format(**self.frame.row(at, named=True))
            raise DocumentError(self.path, f"line {line_of(self.path, at)}: {told}", remedy)

    def check_text(self, name: str) -> None:
        """Names are never empty."""
        self.frame = self.frame.with_columns(pl.col(name).str.strip_chars())
        self.refuse_where(pl.col(name).fill_null("") == "", f"{name} is empty.")

    def read_real(self, name: str) -> None:
        """A positive finite number; energies may be empty."""
        self._read_number(name)
        column = pl.col(name)
        unknown = " Leave it empty where it is not known." if name in _MAY_BE_EMPTY else ""
        self.refuse_where(~column.is_finite(), f"{name} is {{{name}}}.", f"Give a finite number.{unknown}")
        self.refuse_where(
            column <= 0, f"{name} is {{{name}}}.", f"A call takes more than none.{unknown}".strip()
        )

    def read_count(self, name: str) -> None:
        """A whole number."""
        self._read_number(name)
        column = pl.col(name)
        least = _LEAST[name]
        whole = column.is_finite() & (column == column.floor()) & (column >= least) & (column < 2**53)
        self.refuse_where(~whole, f"{name} is {{{name}}}.", f"Give a whole number from {least} up.")
        self.frame = self.frame.with_columns(column.cast(pl.Int64))

    def _read_number(self, name: str) -> None:
        text = self.frame[name]
        number = text.cast(pl.Float64, strict=False)
        if number.null_count() > text.null_count():
            text = text.str.strip_chars()
            text = text.set(text == "", None)
            number = text.cast(pl.Float64, strict=False)
            self.frame = self.frame.with_columns(text)
            self.refuse_where(
                text.is_not_null() & number.is_null(),
                f"{name} is {{{name}!r}}, which is no number.",
                f"Write numbers without a unit, in {_unit(name)}.",
            )
        self.frame = self.frame.with_columns(number)
        if name not in _MAY_BE_EMPTY:
            self.refuse_where(number.is_null(), f"{name} is empty.")

    def read_kv_cache(self, kv_cache: bool | None) -> None:
        """The generation mode: the file's column where it has one."""
        if "kv_cache" not in self.frame.columns:
            self.frame = self.frame.with_columns(pl.lit(kv_cache, dtype=pl.Boolean).alias("kv_cache"))
            return
        text = pl.col("kv_cache").str.strip_chars().str.to_lowercase()
        self.refuse_where(
            text.is_not_null() & (text != "") & ~text.is_in(list(_KV_CACHE)),
            "kv_cache is {kv_cache!r}.",
            "Write true or false, or leave it empty.",
        )
        mode = text.replace_strict(_KV_CACHE, default=None, return_dtype=pl.Boolean)
        self.frame = self.frame.with_columns(mode.alias("kv_cache"))

    def check_gpus(self) -> None:
        """GPU energy needs a GPU."""
        self.refuse_where(
            (pl.col("n_gpus") == 0) & pl.col("gpu_energy_j").is_not_null(),
            "n_gpus is 0, and gpu_energy_j is {gpu_energy_j}.",
            "Say how many GPUs used that energy.",
        )

    def check_repeats(self) -> None:
        """A trial stands once: a file joined twice would count every joule twice."""
        self.refuse_where(
            ~pl.struct("cell", "trial").is_first_distinct(),
            f"{REPEATS}.",
            "Number the trials of a cell, and give each once.",
        )

    def check_unit(self, energy: str) -> None:
        """Rows in mJ, Wh or ms among rows in J and s show in their power."""
        power_w = pl.col(energy) / pl.col("runtime_s")
        usual_w = power_w.median().over("model", "system")
        self.refuse_where(
            (power_w > _OTHER_UNIT * usual_w) | (power_w * _OTHER_UNIT < usual_w),
            f"{{{energy}}} J in {{runtime_s}} s is far from the power of the other rows of {{model}} "
            f"on {{system}}: {energy} or runtime_s is in another unit.",
            "Give J and s throughout.",
        )


def _unit(name: str) -> str:
    return "J" if name in ENERGIES else "s" if name == "runtime_s" else "tokens or pieces"


def _remedy(name: str, present: list[str]) -> str:
    stem = name.rpartition("_")[0]
    alike = [other for other in present if name in REALS and other.startswith(stem) and other not in COLUMNS]
    if alike:
        return f"It has {alike[0]!r}: convert it to {_unit(name)}, and call it {name}."
    return f"Give the columns {','.join(COLUMNS)}."
