"""Workloads of a million to a hundred million queries: seconds, memory, ratio to just reading the file.

    python benchmarks/routing_scale.py [--queries 1e6,1e7,1e8] [--models 3,7,20] [--folder /tmp]

Each size runs in a process of its own, so its memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from routing_workload import alpaca_like, made_up, peak_gb

from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.problem import largest_remainder, make_problem
from pytest_llmenergy.routing.workload import read_workload, write_assignment

PART = 5_000_000


def write(path: Path, queries: int) -> None:
    """A Parquet workload, made in parts so that making it takes little memory."""
    parts = []
    for start in range(0, queries, PART):
        tokens_in, tokens_out = alpaca_like(min(PART, queries - start), seed=start)
        part = path.with_suffix(f".{start}")
        pl.DataFrame(
            {"tokens_in": tokens_in.astype(np.int32), "tokens_out": tokens_out.astype(np.int32)}
        ).write_parquet(part)
        parts.append(part)
    pl.scan_parquet(parts).sink_parquet(path)
    for part in parts:
        part.unlink()


def measure(path: Path, models: int) -> None:
    """Read, plan and write, in this process."""
    times = [time.perf_counter()]
    sums = (pl.col("tokens_in").sum(), pl.col("tokens_out").sum())
    pl.scan_parquet(path).select(sums).collect(engine="streaming")
    times.append(time.perf_counter())
    workload = read_workload(path)
    times.append(time.perf_counter())
    hosts, shares = made_up(models)
    counts = largest_remainder(shares, workload.queries)
    point = plan_at(make_problem(hosts, workload, (counts, counts)), 0.5)
    times.append(time.perf_counter())
    assert point.solution.gap == 0
    planned_gb = peak_gb()
    write_assignment(
        path.with_suffix(".plan.parquet"), workload, point.solution.flow, [h.name for h in hosts]
    )
    times.append(time.perf_counter())
    scan_s, count_s, solve_s, write_s = np.diff(times)
    print(
        f"{workload.queries:>11,} {len(workload.counts):>8,} {models:6d} {scan_s:7.2f} {count_s:7.2f}"
        f" {solve_s:7.2f} {write_s:7.2f} {(count_s + solve_s) / scan_s:9.1f}"
        f" {planned_gb:8.2f} {peak_gb():8.2f}",
        flush=True,
    )


def main() -> None:
    """Print a line a size and number of models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", default="1e6,1e7,1e8")
    parser.add_argument("--models", default="3,7,20")
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    print("    queries  classes models  scan s count s solve s write s plan/scan peak GB with writing")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for queries in map(int, map(float, given.queries.split(","))):
            path = Path(folder) / f"{queries}.parquet"
            write(path, queries)
            for models in map(int, given.models.split(",")):
                process = multiprocessing.get_context("spawn").Process(target=measure, args=(path, models))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(process.exitcode)
            path.unlink()


if __name__ == "__main__":
    main()
