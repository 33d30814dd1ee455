"""The closing tables say of which machine, how many trials, and what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.records import Campaign, CellRecord, Trial, WindowRecord
from pytest_llmenergy.report.tables import plain_table, render, summary_tables
from tests.doubles.windows import LOST, gpu

if TYPE_CHECKING:
    from pytest_llmenergy.records import DomainEnergy


def trials(
    *, flags: tuple[str, ...] = (), excluded: str | None = None, part: DomainEnergy | None = None
) -> tuple[Trial, ...]:
    return tuple(
        Trial(index=i, runtime_s=1.0, domains=(part or gpu(100.0 + i),), flags=flags, excluded=excluded)
        for i in range(3)
    )


def cell(n_gpus: int, tokens_in: int = 8, measured: tuple[Trial, ...] | None = None) -> CellRecord:
    measured = trials() if measured is None else measured
    return CellRecord(
        model="m",
        system="node",
        n_gpus=n_gpus,
        batch_size=1,
        kv_cache=False,
        tokens_in=tokens_in,
        tokens_out=10,
        trials=measured,
        summary=summarise(measured, tokens_generated=10),
    )


def lines(campaign: Campaign) -> list[str]:
    found = render(summary_tables(campaign))
    assert max(map(len, found)) <= 80
    return found


def test_cells_on_one_gpu_and_on_two_are_in_tables_of_their_own() -> None:
    """In one table two rows of the same tokens would contradict each other."""
    found = lines(Campaign(cells=(cell(1), cell(2), cell(1, tokens_in=16))))
    titles = [line for line in found if line.startswith("m on node")]
    assert titles == ["m on node, batch 1, no KV cache", "m on node (2 GPUs), batch 1, no KV cache"]
    second = found.index(titles[1])
    rows = [(n > second, line.split()[0]) for n, line in enumerate(found) if line.split()[1:2] == ["10"]]
    assert rows == [(False, "8"), (False, "16"), (True, "8")]


def window(measured: tuple[Trial, ...]) -> WindowRecord:
    return WindowRecord(
        label="mine",
        runtime_s=None,
        domains=(),
        trials=measured,
        summary=summarise(measured, tokens_generated=None),
        error="0 usable trials of 3",
    )


def test_a_window_none_of_whose_trials_counts_shows_no_trial() -> None:
    """A window without trials is one measurement."""
    bare = WindowRecord(label="block", runtime_s=1.0, domains=(gpu(5.0),))
    lost = window(trials(excluded="gpu:0: GPU is lost", part=LOST))
    found = lines(Campaign(cells=(), windows=(lost, bare)))
    counts = {line.split()[0]: line.split()[1] for line in found if line.split()[:1] in (["mine"], ["block"])}
    assert counts == {"mine": "0", "block": "1"}
    assert "mine: 0 usable trials of 3" in found
    assert "3 trials were excluded; results.json says why." in found


def test_a_note_counts_the_cells_that_were_disturbed_while_they_were_measured() -> None:
    """Only those whose disturbed trials count; the others were repeated."""
    cap = ("gpu:0: power cap",)
    condition = cell(1, 8, trials(flags=cap))
    repeated = cell(1, 16, (*trials(), *trials(flags=cap, excluded="disturbed: gpu:0: power cap")))
    note = "Disturbed while it was measured, "
    said = " ".join(lines(Campaign(cells=(condition, repeated, cell(1, 32)))))
    trials_each = len(condition.trials)
    assert f"{note}1 of 3 cells: m 8->10 in {trials_each} of {trials_each} trials (gpu:0: power cap)." in said
    assert not any("disturbed" in line for line in lines(Campaign(cells=(repeated, cell(1, 32)))))
    capped = msgspec.structs.replace(repeated, tokens_in=64)
    assert not any(note in line for line in lines(Campaign(cells=(capped,))))


def test_a_blank_line_stands_between_text_and_a_table() -> None:
    """One, whoever yields them; none before the first table."""
    table = plain_table("title", "a wide column")
    table.add_row("1")
    printed = render([table, "a note", table])
    first, second = (n for n, line in enumerate(printed) if line == "title")
    assert first == 0
    assert printed[second - 2 : second] == ["a note", ""]
