"""The gate's verdicts on sessions whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from pytest_llmenergy.analysis.gate import (
    Mode,
    Rules,
    RunVerdict,
    Tolerance,
    Verdict,
    compare_blocks,
    compare_sessions,
)
from pytest_llmenergy.analysis.gate.align import align
from pytest_llmenergy.analysis.gate.budget import Budget, Budgets, hold, updated
from pytest_llmenergy.analysis.gate.looks import Looks
from pytest_llmenergy.analysis.gate.readings import Reading
from pytest_llmenergy.analysis.gate.tolerances import parse_tolerances
from pytest_llmenergy.environment import fingerprint
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Environment, Gpu, MeterSource, Provenance
from tests.doubles.noisy_machine import NoisyMachine, cells

GRID = cells(81)
SMALL = cells(9)
QUIET = NoisyMachine(trial=0.005, session=0.003)


def one_session(machine=QUIET, members=GRID, seed=0, **kwargs):
    return machine.session_of(members, random.Random(seed), trials=5, **kwargs)


def history(n, machine=QUIET, members=GRID):
    return [one_session(machine, members, seed=100 + k) for k in range(n)]


def without(session, *gone):
    return replace(session, readings={c: r for c, r in session.readings.items() if c not in gone})


def with_reading(session, cell, **fields):
    return replace(session, readings={**session.readings, cell: replace(session.readings[cell], **fields)})


def with_environment(session, environment):
    environment = msgspec.structs.replace(environment, fingerprint=fingerprint(environment))
    campaign = msgspec.structs.replace(session.campaign, environment=environment)
    return replace(session, campaign=campaign)


def verdict_of(report, cell):
    return next(c.outcome for c in report.cells if c.cell == cell)


def test_no_change_passes():
    """Two sessions of one machine pass, cell by cell and as a whole."""
    report = compare_sessions([one_session(seed=1)], [one_session(seed=2)], Rules())
    assert report.verdict is RunVerdict.PASS
    assert report.exit_status == 0
    assert report.count(Verdict.PASS) == 81
    assert report.grids[0].cells == 81


@pytest.mark.parametrize("cell", [GRID[0], GRID[40], GRID[80]])
def test_one_cell_of_81_that_rose_is_found(cell):
    """A true +5 % in one cell fails that cell and no other."""
    head = one_session(seed=2, changes={cell: 0.05})
    report = compare_sessions([one_session(seed=1)], [head], Rules())
    assert report.verdict is RunVerdict.FAIL
    assert [c.cell for c in report.cells if c.outcome.verdict is Verdict.FAIL] == [cell]
    assert verdict_of(report, cell).change == pytest.approx(0.05, abs=0.02)


def test_a_whole_grid_that_rose_is_found():
    """+5 % everywhere fails the model."""
    report = compare_sessions([one_session(seed=1)], [one_session(seed=2, everywhere=0.05)], Rules())
    assert report.grids[0].outcome.verdict is Verdict.FAIL
    assert report.exit_status == 1


def test_an_improvement_elsewhere_is_no_regression_here():
    """Cells that stay where they were while the rest gets 10 % better do not fail."""
    better = dict.fromkeys(GRID[9:], -0.10)
    for seed in range(2, 12):
        head = one_session(seed=seed, changes=better)
        report = compare_sessions([one_session(seed=1)], [head], Rules())
        assert report.count(Verdict.FAIL) == 0
        assert report.grids[0].outcome.change < -0.05


def test_an_assumed_spread_widens_the_bounds():
    """What may be called a change depends on how much sessions are said to differ."""
    base, head = [one_session(seed=1)], [one_session(seed=2, everywhere=0.05)]
    small = compare_sessions(base, head, Rules(session_spread=0.005))
    large = compare_sessions(base, head, Rules(session_spread=0.05))
    assert small.verdict is RunVerdict.FAIL
    assert large.verdict is RunVerdict.INCONCLUSIVE
    assert small.smallest_effect < 0.04
    assert large.smallest_effect > 0.15
    assert "5.0 %" in large.notes[0]


def test_strict_fails_on_inconclusive():
    """With --strict, not knowing is a failure."""
    base, head = [one_session(seed=1)], [one_session(seed=2, everywhere=0.05)]
    assert compare_sessions(base, head, Rules(session_spread=0.05)).exit_status == 0
    assert compare_sessions(base, head, Rules(session_spread=0.05, strict=True)).exit_status == 1


def test_a_vanished_cell_fails():
    """A cell of the base that the head lacks is reported and fails the run."""
    head = without(one_session(seed=2), GRID[7])
    report = compare_sessions([one_session(seed=1)], [head], Rules())
    assert verdict_of(report, GRID[7]).verdict is Verdict.NOT_MEASURED
    assert report.verdict is RunVerdict.FAIL
    assert compare_sessions([one_session(seed=1)], [head], Rules(subset=True)).verdict is RunVerdict.PASS


def test_a_cell_without_energy_is_not_measured():
    """A cell whose meter gave nothing is not passed over."""
    lost = with_reading(one_session(seed=2), GRID[3], logs=(), problem="no reading")
    report = compare_sessions([one_session(seed=1)], [lost], Rules())
    assert verdict_of(report, GRID[3]).verdict is Verdict.NOT_MEASURED
    assert verdict_of(report, GRID[3]).reason == "no reading"
    assert report.exit_status == 1


def test_a_renamed_model_is_reported():
    """A model under another name is lost and new, and the report asks whether it was renamed."""
    renamed = {msgspec.structs.replace(c, model="new"): r for c, r in one_session(seed=2).readings.items()}
    head = replace(one_session(seed=2), readings=renamed)
    report = compare_sessions([one_session(seed=1)], [head], Rules())
    assert report.count(Verdict.NOT_MEASURED) == 81
    assert report.count(Verdict.NO_BASELINE) == 81
    assert report.verdict is RunVerdict.NOTHING_COMPARED
    assert any("renamed" in note for note in report.notes)


def test_a_new_cell_is_listed_and_does_not_fail():
    """A cell the base lacks has no baseline; the rest decides."""
    report = compare_sessions([without(one_session(seed=1), GRID[5])], [one_session(seed=2)], Rules())
    assert verdict_of(report, GRID[5]).verdict is Verdict.NO_BASELINE
    assert report.verdict is RunVerdict.PASS


def test_a_gate_that_compared_nothing_fails():
    """Two empty documents are no pass."""
    empty = replace(one_session(), readings={})
    report = compare_sessions([empty], [empty], Rules())
    assert report.verdict is RunVerdict.NOTHING_COMPARED
    assert report.exit_status == 1
    assert report.false_alarm_rate == 0


@pytest.mark.parametrize("n", [2, 9])
def test_a_short_history_never_fails_and_says_so(n):
    """Below ten stored sessions an increase of a half is inconclusive at most."""
    report = compare_sessions(history(n), [one_session(seed=2, everywhere=0.5)], Rules())
    assert report.mode is Mode.HISTORY
    assert report.verdict is RunVerdict.INCONCLUSIVE
    assert f"{n} stored sessions: a history needs 10" in report.notes[0]
    assert report.false_alarm_rate == 0
    assert report.smallest_effect is None


def test_a_history_learns_the_spread():
    """The same +5 % fails on a machine whose sessions agree, and not where they differ by 4 %."""
    rough = NoisyMachine(trial=0.005, session=0.04)
    quiet = compare_sessions(history(10), [one_session(seed=2, everywhere=0.05)], Rules())
    noisy = compare_sessions(history(10, rough), [one_session(rough, seed=3, everywhere=0.05)], Rules())
    assert quiet.grids[0].outcome.verdict is Verdict.FAIL
    assert noisy.grids[0].outcome.verdict is Verdict.INCONCLUSIVE
    assert quiet.smallest_effect < 0.03
    assert noisy.smallest_effect > 0.1


def test_history_finds_one_cell_though_sessions_differ():
    """A cell that rose alone is seen beside the rest of its grid, whatever shifted the session."""
    rough = NoisyMachine(trial=0.005, session=0.02)
    head = one_session(rough, seed=4, changes={GRID[11]: 0.06})
    report = compare_sessions(history(10, rough), [head], Rules())
    assert [c.cell for c in report.cells if c.outcome.verdict is Verdict.FAIL] == [GRID[11]]


def test_a_cell_that_is_young_in_the_history_cannot_fail():
    """A cell that three of twelve sessions hold is inconclusive; the others are judged."""
    stored = [without(s, GRID[0]) if k < 9 else s for k, s in enumerate(history(12))]
    report = compare_sessions(stored, [one_session(seed=2, changes={GRID[0]: 0.5})], Rules())
    assert verdict_of(report, GRID[0]).verdict is Verdict.INCONCLUSIVE
    assert report.grids[0].cells == 80
    assert any("1 cells stand in fewer than 10" in note for note in report.notes)


def test_blocks_need_no_assumption():
    """In A/B the session's shift cancels or is seen in the spread of blocks."""
    same = compare_blocks(QUIET.blocks(SMALL, random.Random(1), blocks=7, trials=3), Rules())
    rose = compare_blocks(
        QUIET.blocks(SMALL, random.Random(1), blocks=7, trials=3, changes={SMALL[4]: 0.05}), Rules()
    )
    assert same.verdict is RunVerdict.PASS
    assert same.notes == () or "Assumed" not in same.notes[0]
    assert verdict_of(rose, SMALL[4]).verdict is Verdict.FAIL
    assert rose.count(Verdict.FAIL) == 1


def test_a_cell_that_failed_in_one_block_is_still_compared():
    """A block that lost a cell costs one difference, not the cell."""
    blocks = QUIET.blocks(SMALL, random.Random(1), blocks=7, trials=3)
    blocks[2] = (blocks[2][0], without(blocks[2][1], SMALL[0]))
    report = compare_blocks(blocks, Rules())
    assert verdict_of(report, SMALL[0]).verdict is Verdict.PASS


def test_one_block_is_refused():
    """One difference has no spread."""
    with pytest.raises(RequestError, match="two of them"):
        compare_blocks(QUIET.blocks(SMALL, random.Random(1), blocks=1, trials=3), Rules())


def test_a_wider_tolerance_lets_a_cell_rise():
    """A cell whose tolerance is 10 % may rise by 5 %, and one that rises by 20 % fails."""
    allowed = {GRID[2]: Tolerance.above(0.10)}
    up = compare_sessions(
        [one_session(seed=1)], [one_session(seed=2, changes={GRID[2]: 0.05})], Rules(cells=allowed)
    )
    more = compare_sessions(
        [one_session(seed=1)], [one_session(seed=2, changes={GRID[2]: 0.20})], Rules(cells=allowed)
    )
    assert verdict_of(up, GRID[2]).verdict is not Verdict.FAIL
    assert verdict_of(more, GRID[2]).verdict is Verdict.FAIL


def test_a_tolerance_measured_with_the_cell_counts():
    """What the test's marker said travels with the results."""
    head = with_reading(one_session(seed=2, changes={GRID[2]: 0.05}), GRID[2], tolerance=0.2)
    report = compare_sessions([one_session(seed=1)], [head], Rules())
    assert verdict_of(report, GRID[2]).verdict is Verdict.PASS
    assert verdict_of(report, GRID[2]).tolerance.fail_from == 0.2


def test_fail_above_moves_every_tolerance():
    """With a limit of 10 %, +5 % over the grid is no failure; with one of 2 % it is."""
    base, head = [one_session(seed=1)], [one_session(seed=2, everywhere=0.05)]
    assert compare_sessions(base, head, Rules().with_limit(0.10)).count(Verdict.FAIL) == 0
    assert compare_sessions(base, head, Rules().with_limit(0.02)).verdict is RunVerdict.FAIL


def test_tolerances_match_labels_and_the_last_wins():
    """Patterns are those of a shell, and a later line overrides an earlier one."""
    found = parse_tolerances(["* in 8 *=10%", "* in 8 out 16 *=0.2"], GRID)
    assert len(found) == 9
    assert found[GRID[0]].fail_from == pytest.approx(0.10)
    assert found[GRID[1]].fail_from == pytest.approx(0.2)


@pytest.mark.parametrize("line", ["=5%", "* in 8 *", "*=five", "*=-1%", "*=nan"])
def test_an_unreadable_tolerance_is_refused(line):
    """The message shows the form."""
    with pytest.raises(RequestError, match="CELLS=SHARE"):
        parse_tolerances([line], GRID)


def test_a_tolerance_that_matches_no_cell_is_refused():
    """A mistyped pattern is not a rule that quietly does nothing."""
    with pytest.raises(RequestError, match="matches no cell"):
        parse_tolerances(["llama*=10%"], GRID)


ENVIRONMENT = Environment(
    hostname="node1",
    cpu_model="EPYC",
    driver="560.1",
    gpus=(Gpu(index=0, name="A100", uuid="GPU-1", power_limit_w=400.0),),
    meters=(MeterSource(name="nvml", available=True),),
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hostname": "node2"}, "machine: node1 against node2"),
        ({"driver": "570.2"}, "driver: 560.1 against 570.2"),
        (
            {"gpus": (Gpu(index=0, name="A100", uuid="GPU-1", power_limit_w=300.0),)},
            "power limit of GPU 0: 400 W against 300 W",
        ),
        ({"meters": (MeterSource(name="rapl", available=True),)}, "meters: nvml against rapl"),
    ],
)
def test_another_machine_is_refused(changed, words):
    """A baseline of another machine, driver, power limit or meter is refused, and the difference named."""
    base = with_environment(one_session(seed=1), ENVIRONMENT)
    head = with_environment(one_session(seed=2), msgspec.structs.replace(ENVIRONMENT, **changed))
    with pytest.raises(RequestError, match=words):
        compare_sessions([base], [head], Rules())
    with pytest.raises(RequestError, match=words):
        compare_blocks([(base, head), (base, head)], Rules())
    same = with_environment(one_session(seed=2), ENVIRONMENT)
    assert compare_sessions([base], [same], Rules()).verdict is RunVerdict.PASS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"provenance": Provenance.ESTIMATED}, "measured against estimated"),
        ({"metric": "gpu_energy_j"}, "energy counted: energy_j against gpu_energy_j"),
        ({"sources": frozenset({("gpu", "estimate")})}, r"meter: nvml \(gpu\) against estimate \(gpu\)"),
    ],
)
def test_other_joules_are_refused(fields, words):
    """Estimated against measured, other sums, other meters: refused, even in one cell of 81."""
    base = with_reading(one_session(seed=1), GRID[6], sources=frozenset({("gpu", "nvml")}))
    head = with_reading(one_session(seed=2), GRID[6], **{"sources": frozenset({("gpu", "nvml")}), **fields})
    with pytest.raises(RequestError, match=words):
        compare_sessions([base], [head], Rules())


def test_a_model_of_one_cell_is_its_own_grid():
    """One cell has the whole of the model's error rate and a limit of its own."""
    report = compare_sessions(
        [one_session(members=GRID[:1], seed=1)],
        [one_session(members=GRID[:1], seed=2, everywhere=0.08)],
        Rules(),
    )
    assert report.grids == ()
    assert report.verdict is RunVerdict.FAIL
    assert report.false_alarm_rate == pytest.approx(0.01)
    assert report.cells[0].outcome.tolerance == Rules().lone


def test_one_trial_a_cell_is_not_taken_for_certainty():
    """With a single trial everywhere the report says that trial noise is unknown."""
    machine = NoisyMachine(trial=0.005)
    base, head = (machine.session_of(SMALL, random.Random(k), trials=1) for k in (1, 2))
    report = compare_sessions([base], [head], Rules())
    assert any("one trial" in note for note in report.notes)


def test_the_document_has_the_fields_of_its_schema():
    """llmenergy.gate/1: verdict, cells with change and bounds, false-alarm rate, smallest effect."""
    report = compare_sessions([one_session(seed=1)], [one_session(seed=2)], Rules())
    document = report.to_document()
    assert document["schema"] == "llmenergy.gate/1"
    assert document["verdict"] == "pass"
    assert document["false_alarm_rate"] == pytest.approx(0.0125)
    assert document["smallest_effect"] > 0
    cell = document["cells"][0]
    assert {"model", "tokens_in", "tokens_out", "verdict", "change", "ci_low", "ci_high"} <= set(cell)
    assert cell["ci_low"] < cell["change"] < cell["ci_high"]


def test_a_block_s_figure_is_the_median():
    """One spiked trial does not move a block's figure."""
    reading = Reading(logs=(0.0, 0.0, 0.0, 0.0, 0.5))
    assert reading.median == 0.0
    assert reading.level == pytest.approx(0.1)


def test_one_spiked_trial_of_three_does_not_move_a_block():
    """In either arm: the change is that of the medians."""
    blocks = QUIET.blocks(SMALL, random.Random(1), blocks=5, trials=3)
    cell = SMALL[4]
    spiked = []
    for base, head in blocks:
        logs = sorted(head.readings[cell].logs)
        spiked.append((base, with_reading(head, cell, logs=(*logs[:2], logs[2] + 0.3))))
    assert verdict_of(compare_blocks(spiked, Rules()), cell) == verdict_of(
        compare_blocks(blocks, Rules()), cell
    )


def test_several_models_share_the_error_and_each_sees_less():
    """The grids' 1 % is all of them together: of two models each has half."""
    one = one_session(members=SMALL), one_session(members=SMALL, seed=1)
    alone = compare_sessions([one[0]], [one[1]], Rules()).grids[0].outcome

    def doubled(session):
        twin = {msgspec.structs.replace(cell, model="twin"): r for cell, r in session.readings.items()}
        return replace(session, readings=session.readings | twin)

    both = compare_sessions([doubled(one[0])], [doubled(one[1])], Rules()).grids
    assert [grid.model for grid in both] == ["mistral-7b", "twin"]
    assert both[0].outcome.change == alone.change
    assert both[0].outcome.smallest_effect > 1.01 * alone.smallest_effect


def test_the_dearest_cell_counts_for_a_budget():
    """Of the cells that a budget matches; one that none matches is broken."""
    session = one_session(members=SMALL)
    costs = {cell: session.readings[cell].energy_j_per_token for cell in SMALL}
    dearest = max(costs, key=costs.get)
    least = min(costs.values())
    budgets = Budgets(
        budget=(
            Budget(model="mistral-7b", max_energy_j_per_token=(least + costs[dearest]) / 2),
            Budget(model="mistral-7b", max_energy_j_per_token=1.01 * costs[dearest]),
            Budget(model="other", max_energy_j_per_token=1.0),
        )
    )
    broken, kept, unmeasured = hold(budgets, session)
    assert (broken.broken, kept.broken, unmeasured.broken) == (True, False, True)
    assert (broken.cell, broken.energy_j_per_token) == (dearest, costs[dearest])


def test_a_setting_with_several_values_is_not_aligned():
    """Cells of two batch sizes are not those of one: a vanished one must not be taken for another."""
    base = one_session(members=SMALL)
    larger = {msgspec.structs.replace(cell, batch_size=64): r for cell, r in base.readings.items()}
    head, across = align(base, replace(base, readings=base.readings | larger))
    assert across == {}
    assert {cell.batch_size for cell in head.readings} == {32, 64}


def test_budgets_move_to_the_dearest_cell_and_the_headroom():
    """Those there are and a new one alike; one that was not measured stays."""
    session = one_session(members=SMALL)
    dearest = max(reading.energy_j_per_token for reading in session.readings.values())
    other = Budget(model="other", max_energy_j_per_token=1.0)
    before = Budgets(budget=(other, Budget(model="mistral-7b", max_energy_j_per_token=1.0)))
    for budgets in (before, Budgets(budget=(other,))):
        stayed, moved = updated(budgets, session, 0.1).budget
        assert stayed == other
        assert moved.max_energy_j_per_token == pytest.approx(1.1 * dearest, rel=1e-3)


def test_a_budget_of_measured_energy_meets_no_estimate():
    """Nor the other way round: one is not held against the other."""
    session = one_session(members=SMALL[:1])
    estimated = with_reading(session, SMALL[0], provenance=Provenance.ESTIMATED)
    measured = Budget(model="mistral-7b", max_energy_j_per_token=1e9)
    of_estimates = msgspec.structs.replace(measured, provenance=Provenance.ESTIMATED)
    for budget, held, other in ((measured, session, estimated), (of_estimates, estimated, session)):
        assert not hold(Budgets(budget=(budget,)), held)[0].broken
        with pytest.raises(RequestError, match="they are not held against each other"):
            hold(Budgets(budget=(budget,)), other)


def test_every_look_pays_its_share():
    """Two looks judge at half the error each, and state the rate of both together."""
    blocks = QUIET.blocks(SMALL, random.Random(1), blocks=10, trials=3)
    first = Looks((5, 10)).judge(blocks[:5], Rules())
    only = Looks((5,)).judge(blocks[:5], Rules())
    assert first.confidence == pytest.approx(0.995)
    assert only.confidence == pytest.approx(0.99)
    assert first.false_alarm_rate == only.false_alarm_rate == pytest.approx(0.0125)
    assert first.grids[0].outcome.ci_high > only.grids[0].outcome.ci_high


def test_a_comparison_goes_on_while_a_rise_is_in_sight():
    """A pass with a cell that may be rising is looked at again; a clear pass and a failure end it."""
    looks = Looks((5, 10))
    clear = looks.judge(QUIET.blocks(SMALL, random.Random(1), blocks=5, trials=3), Rules())
    rising = looks.judge(
        QUIET.blocks(SMALL, random.Random(1), blocks=5, trials=3, changes={SMALL[0]: 0.02}), Rules()
    )
    failed = looks.judge(QUIET.blocks(SMALL, random.Random(1), blocks=5, trials=3, everywhere=0.05), Rules())
    assert looks.is_final(clear)
    assert rising.verdict is not RunVerdict.FAIL
    assert not looks.is_final(rising)
    assert looks.is_final(failed)


@pytest.mark.parametrize("blocks", [(), (2,), (5, 5), (10, 5)])
def test_looks_that_make_no_sense_are_refused(blocks):
    """The message says what would."""
    with pytest.raises(RequestError, match="rising numbers from 3 on"):
        Looks(blocks)


def test_cells_that_only_differ_in_a_setting_are_aligned():
    """A field with one value a side is compared across; one with several is not."""
    base = one_session(members=SMALL, seed=1)
    kv = {msgspec.structs.replace(c, kv_cache=True, batch_size=8): r for c, r in base.readings.items()}
    head, across = align(base, replace(base, readings=kv))
    assert across == {"batch_size": (32, 8), "kv_cache": (False, True)}
    assert head.readings.keys() == base.readings.keys()
    assert align(base, base)[1] == {}


def test_a_cell_must_exceed_what_stored_sessions_show():
    """An increase that some cell once had with nothing changed fails no cell; without that it does."""
    stored = history(10, members=SMALL)
    head = one_session(members=SMALL, seed=2, changes={SMALL[0]: 0.05})
    assert verdict_of(compare_sessions(stored, [head], Rules()), SMALL[0]).verdict is Verdict.FAIL
    once = stored[3].readings[SMALL[8]]
    stored[3] = with_reading(stored[3], SMALL[8], logs=tuple(log + 0.08 for log in once.logs))
    assert verdict_of(compare_sessions(stored, [head], Rules()), SMALL[0]).verdict is not Verdict.FAIL


def test_trials_widen_the_bounds_of_a_grid():
    """With sessions said to be alike, what is left is the noise of 5 trials of 9 cells, twice."""
    noisy = NoisyMachine(trial=0.02)
    base, head = ([one_session(noisy, SMALL, seed=k)] for k in (1, 2))
    grid = compare_sessions(base, head, Rules(session_spread=0.0)).grids[0].outcome
    expected = 2.33 * 0.02 * (2 / 5 / 9) ** 0.5
    assert grid.ci_high - grid.change == pytest.approx(expected, rel=0.25)
