"""How often the stopping rule's interval holds the true mean: Student's t beside the normal's z.

    python benchmarks/stopping_coverage.py [RUNS]

Simulated runtimes are normal; the rule is ±0.5 s at 95 %, at most 25 trials, runtime only.
"""

from __future__ import annotations

import math
import random
import statistics
import sys

from pytest_llmenergy.campaign.stopping import StopRule

LIMIT_S, CAP, Z_95 = 0.5, 25, 1.96


def by_z(draw: random.Random, deviation_s: float) -> bool:
    """The normal's interval from two trials on."""
    runtimes_s = [draw.gauss(10, deviation_s)]
    while True:
        runtimes_s.append(draw.gauss(10, deviation_s))
        half_width_s = Z_95 * statistics.stdev(runtimes_s) / math.sqrt(len(runtimes_s))
        if half_width_s <= LIMIT_S or len(runtimes_s) >= CAP:
            return abs(statistics.fmean(runtimes_s) - 10) <= half_width_s


def by_rule(draw: random.Random, deviation_s: float) -> bool:
    """Ours: Student's t from five trials on."""
    rule, runtimes_s, stop = StopRule(ci_rel=None), list[float](), None
    while stop is None:
        runtimes_s.append(draw.gauss(10, deviation_s))
        stop = rule.decide(runtimes_s, [None] * len(runtimes_s))
    return abs(statistics.fmean(runtimes_s) - 10) <= (stop.runtime_half_width_s or 0.0)


def main() -> None:
    """Print the share of intervals that hold the truth, by standard deviation."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"{'sd':>4}  {'z, from 2':>9}  {'t, from 5':>9}   ({runs} runs each)")
    for deviation_s in (0.2, 0.5, 1.0):
        shares = []
        for covers in (by_z, by_rule):
            draw = random.Random(1)
            shares.append(sum(covers(draw, deviation_s) for _ in range(runs)) / runs)
        print(f"{deviation_s:>4}  {shares[0]:>9.3f}  {shares[1]:>9.3f}")


if __name__ == "__main__":
    main()
