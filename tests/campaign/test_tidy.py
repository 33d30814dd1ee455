"""Reading measurements made elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest

from pytest_llmenergy.campaign.tidy import read_tables, read_tidy
from pytest_llmenergy.errors import DocumentError

if TYPE_CHECKING:
    from pathlib import Path

HEADER = (
    "model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j\n"
)
ROW = "m,node,1,32,8,16,1,0.5,100.5,3\n"


def _write(tmp_path: Path, text: str, name: str = "tidy.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_a_row_is_a_trial_in_joules_and_seconds(tmp_path: Path) -> None:
    """Columns keep their names but for the tokens, and their order does not matter."""
    path = _write(tmp_path, HEADER + ROW)
    assert read_tidy(path).row(0, named=True) == {
        "cell": 0,
        "model": "m",
        "system": "node",
        "n_gpus": 1,
        "batch_size": 32,
        "kv_cache": None,
        "tokens_in": 8,
        "tokens_out": 16,
        "trial": 1,
        "runtime_s": 0.5,
        "gpu_energy_j": 100.5,
        "cpu_energy_j": 3.0,
    }
    columns = HEADER.strip().split(",")[::-1]
    turned = ",".join(columns) + "\n" + ",".join(ROW.strip().split(",")[::-1]) + "\n"
    assert read_tidy(_write(tmp_path, turned)).equals(read_tidy(_write(tmp_path, HEADER + ROW)))


def test_an_empty_energy_is_unknown_and_not_zero(tmp_path: Path) -> None:
    """Energies and the number of GPUs may be empty; blanks and a missing last field count as empty."""
    rows = "m,node,,32,8,16,1,0.5,,\nm,node,, 32 ,8,16,2,0.5,  , 4\nm,node,,32,8,16,3,0.5\n"
    frame = read_tidy(_write(tmp_path, HEADER + rows))
    assert frame["gpu_energy_j"].to_list() == [None, None, None]
    assert frame["cpu_energy_j"].to_list() == [None, 4.0, None]
    assert frame["n_gpus"].to_list() == [None, None, None]


def test_rows_of_a_cell_need_not_stand_together(tmp_path: Path) -> None:
    """Cells are numbered by their settings, in the order of their first rows; unknown is a setting."""
    rows = [
        f"m,node,{gpus},32,8,{n},{trial},0.5,9,\n" for trial in (1, 2) for gpus in ("", "1") for n in (16, 8)
    ]
    assert read_tidy(_write(tmp_path, HEADER + "".join(rows)))["cell"].to_list() == [0, 1, 2, 3] * 2


def test_files_of_every_platform_read_alike(tmp_path: Path) -> None:
    """A byte order mark, carriage returns, blank lines, quoted names and decimals in counts."""
    text = "\ufeff" + HEADER + '\n"m, large",node,1,32,8.0,16,1,5e-1,100.5,3\n\n'
    frame = read_tidy(_write(tmp_path, text.replace("\n", "\r\n")))
    assert frame["model"].to_list() == ["m, large"]
    assert frame["tokens_in"].to_list() == [8]


def test_the_generation_mode_comes_from_the_file_or_from_its_owner(tmp_path: Path) -> None:
    """A column kv_cache is believed; without one the argument is."""
    assert read_tidy(_write(tmp_path, HEADER + ROW), kv_cache=True)["kv_cache"].to_list() == [True]
    rows = [ROW.strip() + ",true", ROW.strip().replace(",1,0.5", ",2,0.5") + ","]
    text = HEADER.strip() + ",kv_cache\n" + "\n".join(rows) + "\n"
    assert read_tidy(_write(tmp_path, text), kv_cache=False)["kv_cache"].to_list() == [True, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("m,node,1,32,8,16,1,fast,1,1", "line 3: runtime_s is 'fast', which is no number"),
        ("m,node,1,32,8,16,1,0.5,12 kJ,1", "line 3: gpu_energy_j is '12 kJ'.*without a unit, in J"),
        ("m,node,1,32,8,16,1,,1,1", "line 3: runtime_s is empty"),
        ("m,node,1,32,8,16,1,nan,1,1", "line 3: runtime_s is nan"),
        ("m,node,1,32,8,16,1,0.5,inf,1", "line 3: gpu_energy_j is inf.*Leave it empty"),
        ("m,node,1,32,8,16,1,0.5,-1,1", r"line 3: gpu_energy_j is -1\.0"),
        ("m,node,1,32,8,16,1,0.5,1,0", r"line 3: cpu_energy_j is 0\.0.*Leave it empty where it is not known"),
        ("m,node,1,32,8,16,1,0,1,1", r"line 3: runtime_s is 0\.0"),
        ("m,node,1,32,8.5,16,1,0.5,1,1", r"line 3: input_tokens is 8\.5.*whole number from 1"),
        ("m,node,1,32,8,0,1,0.5,1,1", "line 3: output_tokens is 0"),
        ("m,node,1,-2,8,16,1,0.5,1,1", "line 3: batch_size is -2"),
        (",node,1,32,8,16,1,0.5,1,1", "line 3: model is empty"),
        ("m,node,0,32,8,16,1,0.5,1,1", "line 3: n_gpus is 0, and gpu_energy_j"),
        ("m,node,1,32,8,16,1,0.5,1,1,9", "line 3: has 11 fields, the header has 10"),
        (ROW.strip(), "line 3: repeats trial 1 of m on node, 8 tokens in, 16 out"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    """One message names the file, the line, and what to write instead."""
    path = _write(tmp_path, HEADER + ROW + row + "\n")
    with pytest.raises(DocumentError, match=message) as error:
        read_tidy(path)
    assert str(error.value).startswith(f"{path}: ")


def test_the_line_is_that_of_an_editor(tmp_path: Path) -> None:
    """Blank lines and new lines inside quotes are counted as an editor counts them."""
    text = HEADER + '\n"m\nlong",node,1,32,8,16,1,0.5,1,1\nm,node,1,32,8,16,1,0.5,x,1\n'
    with pytest.raises(DocumentError, match="line 5: gpu_energy_j is 'x'"):
        read_tidy(_write(tmp_path, text))


@pytest.mark.parametrize(
    "odd",
    ["0.5,100500,3", "500,100.5,3", "0.5,0.0279,3", "0.5,100.5,3000"],
    ids=["energy in mJ", "runtime in ms", "energy in Wh", "CPU energy in mJ"],
)
def test_rows_in_another_unit_are_found_by_their_power(tmp_path: Path, odd: str) -> None:
    """A thousandfold power among rows of one model is a unit, not a measurement."""
    rows = "".join(f"m,node,1,32,8,16,{i},0.5,{100 + i},3\n" for i in range(5))
    with pytest.raises(DocumentError, match=r"line 7: .*is in another unit"):
        read_tidy(_write(tmp_path, HEADER + rows + f"m,node,1,32,8,16,9,{odd}\n"))


def test_a_column_in_another_unit_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A file with gpu_energy_mj in place of gpu_energy_j is told to convert it."""
    path = _write(tmp_path, HEADER.replace("gpu_energy_j", "gpu_energy_mj") + ROW)
    with pytest.raises(
        DocumentError, match=r"no column 'gpu_energy_j'\. It has 'gpu_energy_mj': convert it to J"
    ):
        read_tidy(path)
    with pytest.raises(DocumentError, match="no column 'trial'"):
        read_tidy(_write(tmp_path, HEADER.replace("trial,", "")))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    """A writer that was killed leaves half a row, whose last number may be half a number."""
    with pytest.raises(DocumentError, match="ends inside a row: the last one has 9 fields"):
        read_tidy(_write(tmp_path, HEADER + ROW + "m,node,1,32,8,16,2,0.5,10"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (HEADER.encode(), "has no row"), (b"\xff\xfe\x00a", "."), (b'a,b\n"1', ".")],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Empty, a header alone, binary, an open quote: a message and no traceback."""
    path = tmp_path / "tidy.csv"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_tidy(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """As every file that cannot be read."""
    with pytest.raises(DocumentError, match="No such file"):
        read_tidy(tmp_path / "absent.csv")
    with pytest.raises(DocumentError, match="Is a directory"):
        read_tidy(tmp_path)


def test_several_files_are_one_table_and_no_trial_counts_twice(tmp_path: Path) -> None:
    """A trial that stands in two files is refused."""
    first = _write(tmp_path, HEADER + ROW)
    second = _write(tmp_path, HEADER + ROW.replace(",1,0.5", ",2,0.5"), "second.csv")
    both = read_tables([first, second])
    assert both["trial"].to_list() == [1, 2]
    assert both.schema["trial"] == pl.Int64


def test_a_trial_of_two_files_is_told_by_both_their_lines(tmp_path: Path) -> None:
    """The file that repeats it is named with its line, and the one that had it first with its own."""
    other = ROW.replace(",16,", ",32,")
    first = _write(tmp_path, HEADER + "\n" + other + ROW, "first.csv")
    second = _write(tmp_path, HEADER + other.replace(",1,0.5", ",2,0.5") + '\n"m"' + ROW[1:], "second.csv")
    third = _write(tmp_path, HEADER + ROW.replace("m,", "n,"), "third.csv")
    with pytest.raises(DocumentError) as error:
        read_tables([first, second, third])
    assert str(error.value).startswith(
        f"{second}: line 4: repeats trial 1 of m on node, 8 tokens in, 16 out, which {first} has in line 4. "
    )
