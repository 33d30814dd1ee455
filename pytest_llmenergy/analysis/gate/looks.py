"""When an A/B comparison may stop early, and what each look may cost.

Every look may raise a false alarm, so each has an equal share of the error rates (Bonferroni); most
comparisons are clear at the first look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.judge import compare_blocks
from pytest_llmenergy.analysis.gate.verdicts import RunVerdict
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.analysis.gate.readings import Session
    from pytest_llmenergy.analysis.gate.verdicts import GateReport, Outcome, Rules

DEFAULT_LOOKS = (5, 10)
_MIN_BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Looks:
    """After how many blocks to judge, in order; the last is the end."""

    blocks: tuple[int, ...] = DEFAULT_LOOKS

    def __post_init__(self) -> None:
        """Refuse looks that make no sense.

        Raises:
            RequestError: none, one below three blocks, or not in order.
        """
        ordered = list(self.blocks) == sorted(set(self.blocks))
        if not self.blocks or not ordered or self.blocks[0] < _MIN_BLOCKS:
            raise RequestError(
                f"looks after {list(self.blocks)} blocks make no sense; give rising numbers from "
                f"{_MIN_BLOCKS} on, such as 5,10, or one number for no early stop."
            )

    @property
    def last(self) -> int:
        """The most blocks there can be."""
        return self.blocks[-1]

    def judge(self, blocks: Sequence[tuple[Session, Session]], rules: Rules) -> GateReport:
        """The verdict of the blocks at one look, with the false-alarm rate of all looks together."""
        n = len(self.blocks)
        shared = replace(rules, grid_alpha=rules.grid_alpha / n, cell_alpha=rules.cell_alpha / n)
        report = compare_blocks(blocks, shared)
        return replace(
            report,
            false_alarm_rate=n * report.false_alarm_rate,
            details={**report.details, "looks": list(self.blocks)},
        )

    def is_final(self, report: GateReport) -> bool:
        """Whether more blocks would change nothing: the verdict is clear, or these were the last."""
        if report.units >= self.last or report.verdict in {RunVerdict.FAIL, RunVerdict.NOTHING_COMPARED}:
            return True
        outcomes = [*(c.outcome for c in report.cells), *(g.outcome for g in report.grids)]
        return report.verdict is RunVerdict.PASS and not any(_may_rise(outcome) for outcome in outcomes)


def _may_rise(outcome: Outcome) -> bool:
    """Whether more blocks could show an increase that matters."""
    return (
        outcome.change is not None
        and outcome.tolerance is not None
        and outcome.change >= outcome.tolerance.fail_from / 2
    )
