"""An A/B comparison from its first block to its verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.align import align
from pytest_llmenergy.analysis.gate.comparable import refuse_incomparable
from pytest_llmenergy.analysis.gate.readings import read_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.analysis.gate.looks import Looks
    from pytest_llmenergy.analysis.gate.readings import Session
    from pytest_llmenergy.analysis.gate.verdicts import GateReport, Rules
    from pytest_llmenergy.campaign.interleave import Interleaving


def compare_in_blocks(
    comparison: Interleaving,
    looks: Looks,
    rules_for: Callable[[Session, Session], Rules],
    *,
    metric: str | None = None,
    say: Callable[[str], None],
) -> GateReport:
    """Measure block after block until a look is final.

    Args:
        comparison: runs one arm of one block, or returns what it measured before.
        looks: after how many blocks to judge.
        rules_for: the rules, once the first block has shown which cells there are.
        metric: which joules; None takes all, or the GPU's where that is all there is.
        say: told what is going on.

    Raises:
        RequestError: an arm could not be measured, or the two are not comparable.
    """
    blocks: list[tuple[Session, Session]] = []
    across: dict[str, tuple[object, object]] = {}
    report = None
    for look in looks.blocks:
        while len(blocks) < look:
            block = len(blocks)
            measured = {}
            for arm in comparison.plan.order(block):
                known = comparison.done(block, arm) is not None
                say(f"block {block + 1} of {looks.last}: {arm}{' (measured before)' if known else ''}")
                path = comparison.path(block, arm)
                measured[arm] = read_session(comparison.run(block, arm), path, metric)
            base, head = measured["base"], measured["head"]
            if comparison.plan.base.arguments != comparison.plan.head.arguments:
                head, across = align(base, head)
            refuse_incomparable(base, head)
            blocks.append((base, head))
            if not base.readings.keys() & head.readings.keys():
                break  # more blocks of nothing are nothing
        report = looks.judge(blocks, rules_for(*blocks[0]))
        if looks.is_final(report):
            break
        say(f"after {report.units} blocks: {report.verdict.value}, going on to {looks.last}")
    if report is None:
        raise AssertionError("looks hold at least one")
    notes = tuple(f"Compared across {name}: base {a}, head {b}." for name, (a, b) in across.items())
    arms = {"base": comparison.plan.base, "head": comparison.plan.head}
    names = {
        side: " ".join(filter(None, (arm.commit or "this checkout", *arm.arguments)))
        for side, arm in arms.items()
    }
    return replace(
        report,
        base=names["base"],
        head=names["head"],
        notes=(*notes, *report.notes),
        details={**report.details, "seed": comparison.plan.seed, "trials": comparison.plan.trials},
    )
