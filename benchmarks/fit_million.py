"""A million trials: `import` and `fit`, beside the same fits with pandas and statsmodels formulas.

    python benchmarks/fit_million.py [--peer-groups 100]

10 models on 100 systems, 100 cells each, 10 trials a cell; energy and runtime; every form that suits. The
peer fits the same forms to the same cell means (ordinary least squares, and RLM with Huber's T of the
relative errors) a group at a time. It is timed on the first `--peer-groups` of the 1000 groups, without its
imports, and its time per group multiplied; ours is timed whole, from the command line, writing both documents
of JSON. Ours also leaves every cell out of every fit; what that costs the peer, a refit each, is timed on one
group and given apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

AXIS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MODELS, SYSTEMS, TRIALS, FORMS = 10, 100, 10, 6
REPORT = [sys.executable, "-c", "from pytest_llmenergy.cli import main; main()"]
CPU = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
CPU.pop("PYTHONDONTWRITEBYTECODE", None)  # every process would compile its libraries again


def write_trials(path: Path, systems: int) -> int:
    """Token-pass costs with 2 % of noise; returns how many trials."""
    draw = np.random.default_rng(0)
    model, system, i, o, trial = (
        axis.ravel()
        for axis in np.meshgrid(
            range(MODELS), range(systems), range(len(AXIS)), range(len(AXIS)), range(TRIALS), indexing="ij"
        )
    )
    t, n = np.array(AXIS, float)[i], np.array(AXIS, float)[o]
    passes = n * t + n * (n - 1) / 2
    pairs = n * t * t + t * n * (n - 1) + (n - 1) * n * (2 * n - 1) / 6
    scale = (1 + 0.1 * model) * (1 + 0.01 * system)

    def noisy(cost: np.ndarray) -> np.ndarray:
        return scale * cost * (1 + 0.02 * draw.standard_normal(len(cost)))

    pl.DataFrame(
        {
            "model": np.char.add("m", model.astype(str)),
            "system": np.char.add("s", system.astype(str)),
            "n_gpus": np.ones(len(t), int),
            "batch_size": np.full(len(t), 32),
            "input_tokens": t.astype(int),
            "output_tokens": n.astype(int),
            "trial": trial + 1,
            "runtime_s": noisy(0.026 * n + 4e-5 * passes + 2e-8 * pairs),
            "gpu_energy_j": noisy(4 * n + 0.027 * passes + 5e-6 * pairs),
            "cpu_energy_j": pl.Series([None] * len(t), dtype=pl.Float64),
        }
    ).write_csv(path)
    return len(t)


def timed(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in GB of a command."""
    began_s = time.monotonic()
    process = subprocess.Popen(command, env=CPU, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.monotonic() - began_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def peer(path: str, groups: int) -> None:
    """The same fits, as one would write them."""
    import pandas as pd
    import statsmodels.formula.api as smf

    began_s = time.process_time()
    trials = pd.read_csv(path)
    keys = ["model", "system", "input_tokens", "output_tokens"]
    cells = trials.groupby(keys, as_index=False)[["gpu_energy_j", "runtime_s"]].mean()
    read_s = time.process_time() - began_s
    began_s = time.process_time()
    fitted = 0
    left_out_s = 0.0
    for _, group in list(cells.groupby(["model", "system"]))[:groups]:
        t, n = group["input_tokens"].astype(float), group["output_tokens"].astype(float)
        terms = {
            "t": t,
            "n": n,
            "tn": t * n,
            "s1": n * t + n * (n - 1) / 2,
            "s2": n * t * t + t * n * (n - 1) + (n - 1) * n * (2 * n - 1) / 6,
            "c": 1.0,
        }
        for metric in ("gpu_energy_j", "runtime_s"):
            y = group[metric]
            data = group.assign(**terms)
            for formula in (f"{metric} ~ 0 + t + n + tn", f"{metric} ~ t + n + tn"):
                fit = smf.ols(formula, data).fit()
                fitted += 1
                _ = fit.params, fit.bse, fit.conf_int(), fit.rsquared, fit.fvalue, fit.f_pvalue
                _ = fit.get_influence().cooks_distance
            relative = pd.DataFrame({name: column / y for name, column in terms.items()}).assign(one=1.0)
            for columns in ("t + n + tn", "n + s1", "n + s1 + s2", "c + n + s1 + s2"):
                robust = smf.rlm(f"one ~ 0 + {columns}", relative).fit(update_scale=False)
                fitted += 1
                _ = robust.params, robust.bse, robust.conf_int()
                if fitted <= FORMS:  # the first group's first metric
                    left_s = time.process_time()
                    for cell in relative.index:
                        others = relative.drop(cell)
                        smf.rlm(f"one ~ 0 + {columns}", others).fit(update_scale=False).params  # noqa: B018
                    left_out_s += time.process_time() - left_s
    fits_s = time.process_time() - began_s - left_out_s
    print(f"{read_s} {fits_s / groups} {fitted} {2 * left_out_s}")


def main() -> None:
    """Print every figure as a ratio in one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-groups", type=int, default=100)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer, arguments.peer_groups)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, results, fits = (folder / leaf for leaf in ("tidy.csv", "results.json", "fits.json"))
        ours = {}
        timed([*REPORT, "fit", "--help"])
        for systems in (SYSTEMS // 4, SYSTEMS // 2, SYSTEMS):
            count = write_trials(table, systems)
            steps = {
                "import": timed([*REPORT, "import", str(table), "-o", str(results), "--no-kv-cache"]),
                "fit": timed([*REPORT, "fit", str(results), "--json", str(fits)]),
            }
            ours[count] = sum(cpu_s for _, cpu_s, _ in steps.values())
            for step, (wall_s, cpu_s, peak_gb) in steps.items():
                print(
                    f"{count:>9} trials, {step:6}: {cpu_s:6.1f} s of CPU, {wall_s:6.1f} s, {peak_gb:.2f} GB"
                )
        paper = timed([*REPORT, "fit", str(results), "--form", "paper", "--json", str(fits)])
        print(f"{count:>9} trials, fit --form paper alone: {paper[1]:.1f} s of CPU, {paper[2]:.2f} GB")
        command = [
            sys.executable,
            __file__,
            "--peer",
            str(table),
            "--peer-groups",
            str(arguments.peer_groups),
        ]
        said = subprocess.run(command, env=CPU, check=True, capture_output=True, text=True).stdout
        read_s, group_s, fitted, left_out_s = (float(word) for word in said.split())
        peer_s = read_s + group_s * MODELS * SYSTEMS
        print(
            f"pandas and statsmodels: {read_s:.1f} s to read, {group_s:.3f} s a group "
            f"({fitted:.0f} fits timed): {peer_s:.0f} s of CPU for {MODELS * SYSTEMS} groups"
        )
        counts = sorted(ours)
        ours_s = ours[counts[-1]]
        all_s = peer_s + left_out_s * MODELS * SYSTEMS
        print(
            f"import and fit of {counts[-1]} trials, CPU time: {all_s / ours_s:.0f} x faster than the peer,"
        )
        print(f"{peer_s / ours_s:.1f} x faster than the peer without left-out errors")
        growth = ours[counts[-1]] / ours[counts[-2]]
        print(f"twice the trials take {growth:.2f} x the time")


if __name__ == "__main__":
    main()
