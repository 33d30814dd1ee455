"""uProf's rows to joules: pure arithmetic."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.edges import Edge, Tick, energy_between
from pytest_llmenergy.meters.integrate import Bounded
from pytest_llmenergy.meters.machine import TICK_S
from pytest_llmenergy.meters.uprof_csv import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmenergy.meters.residency import Residency

TIME_DOUBT_S = 0.002  # the times of real rows are off by so much


def attributed(
    steps: Iterable[Interval], records: Sequence[Residency], column_of_core: dict[int, int]
) -> list[Interval]:
    """Power of the cores we were on, times our share of them, over each interval."""
    found = []
    first = 0
    for step in steps:
        power_w = 0.0
        while first < len(records) and records[first].end_s <= step.start_s:
            first += 1
        for record in records[first:]:
            overlap_s = min(step.end_s, record.end_s) - max(step.start_s, record.start_s)
            if record.start_s >= step.end_s:
                break
            weight = overlap_s / (step.end_s - step.start_s)
            power_w += weight * sum(
                step.power_w[column_of_core[core]] * share
                for core, share in record.shares.items()
                if core in column_of_core
            )
        found.append(Interval(step.start_s, step.end_s, (power_w,), step.gap_s))
    return found


def share_doubt_j(
    steps: Sequence[Interval], records: Sequence[Residency], column_of_core: dict[int, int]
) -> float:
    """What our shares may be off by: CPU time is counted in ticks, one at each end of a window and core."""
    cores = {core for record in records for core in record.shares if core in column_of_core}
    highest_w = (max(step.power_w[column_of_core[core]] for step in steps) for core in cores)
    return 2 * TICK_S * sum(highest_w)


def energy_of_intervals(
    steps: Sequence[Interval], start_s: float, end_s: float, time_doubt_s: float = TIME_DOUBT_S
) -> Bounded:
    """Energy of mean powers over intervals between two times inside them: the intervals' ends are ticks."""
    energies = accumulate((step.power_w[0] * (step.end_s - step.start_s) for step in steps), initial=0.0)
    times_s = (steps[0].start_s, *(step.end_s for step in steps))
    ticks = [Tick(at_s, time_doubt_s, energy_j) for at_s, energy_j in zip(times_s, energies, strict=True)]

    def edge(time_s: float) -> Edge:
        before = [tick for tick in ticks if tick.time_s <= time_s]
        made = Edge(time_s, before[-1].energy_j, before)
        for tick in ticks[len(before) :]:
            made.see(tick)
        return made

    period_s = (times_s[-1] - times_s[0]) / len(steps)
    found = energy_between(edge(start_s), edge(end_s), period_s=period_s, cap_w=float("inf"))
    gaps_j = sum(
        step.gap_s * max(other.power_w[0] for other in steps)
        for step in steps
        if step.gap_s > 0 and step.end_s > start_s and step.start_s < end_s
    )
    if found is None:  # no power after the window at all: nothing was spent, or the rows end with it
        inside = [step for step in steps if step.end_s > start_s and step.start_s < end_s]
        energy_j = sum(
            step.power_w[0] * (min(step.end_s, end_s) - max(step.start_s, start_s)) for step in inside
        )
        cut_j = sum(step.power_w[0] * (step.end_s - step.start_s) for step in (inside[0], inside[-1]))
        return Bounded(energy_j, cut_j + gaps_j)
    return Bounded(found.energy_j, found.bound_j + gaps_j)
