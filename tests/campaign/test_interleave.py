"""The order of base and head, and what makes two comparisons one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llmenergy.campaign.checkouts import Checkout
from pytest_llmenergy.campaign.interleave import Arm, Interleaving, Plan
from pytest_llmenergy.campaign.results import write_results
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Campaign

PLAN = Plan(
    base=Arm(commit="a" * 40), head=Arm(commit="b" * 40), arguments=("bench",), folder=".", trials=3, seed=0
)


def test_each_pair_of_blocks_has_both_orders():
    """What drifts steadily weighs on both arms alike, at every even number of blocks."""
    for seed in range(20):
        plan = replace(PLAN, seed=seed)
        for pair in range(5):
            assert {plan.order(2 * pair), plan.order(2 * pair + 1)} == {("base", "head"), ("head", "base")}


def test_the_order_is_random():
    """Over seeds, either arm goes first about as often."""
    first = [replace(PLAN, seed=seed).order(0)[0] for seed in range(200)]
    assert 70 < first.count("base") < 130


def test_a_plan_is_known_by_all_it_holds():
    """Another commit, argument, seed or number of trials is another comparison."""
    others = [
        replace(PLAN, head=Arm(commit="c" * 40)),
        replace(PLAN, arguments=("bench", "-k", "x")),
        replace(PLAN, seed=1),
        replace(PLAN, trials=4),
        replace(PLAN, head=Arm(commit="b" * 40, arguments=("--llm-energy-kv-cache",))),
    ]
    assert len({plan.key for plan in (PLAN, *others)}) == 6
    assert replace(PLAN).key == PLAN.key


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    """Results of two comparisons are never mixed."""
    Interleaving(PLAN, tmp_path, {})
    Interleaving(replace(PLAN), tmp_path, {})
    with pytest.raises(RequestError, match="another comparison"):
        Interleaving(replace(PLAN, seed=9), tmp_path, {})


def test_an_arm_that_was_interrupted_is_not_done(tmp_path):
    """A document that says it is incomplete is measured again; a complete one is not."""
    comparison = Interleaving(PLAN, tmp_path, {})
    assert comparison.done(0, "base") is None
    write_results(comparison.path(0, "base"), Campaign(cells=(), complete=False))
    assert comparison.done(0, "base") is None
    write_results(comparison.path(0, "base"), Campaign(cells=()))
    assert comparison.done(0, "base") == Campaign(cells=())
    assert comparison.measured(2) == 1


def test_both_arms_of_a_block_are_asked_for_the_same_and_the_next_for_another_order(tmp_path):
    """The seed, of prompts and order, moves with the block; the trials are as many as planned, no fewer."""
    where = Checkout(root=tmp_path, folder=tmp_path, python=tmp_path / "python")
    comparison = Interleaving(replace(PLAN, seed=7), tmp_path, {"base": where, "head": where})

    def asked(block, arm):
        return {word for word in comparison.command(block, arm) if "results" not in word}

    assert asked(0, "base") == asked(0, "head")
    assert asked(1, "base") == asked(1, "head")
    assert asked(1, "base") - asked(0, "base") == {"--llm-energy-seed=8"}
    assert {"--llm-energy-min-trials=3", "--llm-energy-max-trials=3"} <= asked(0, "base")
