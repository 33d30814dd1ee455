"""The options of the pytest plugin. PYTEST_DONT_REWRITE.

Each is a command-line flag `--llm-energy-...` and an ini value `llm_energy_...`; the command line wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True, slots=True)
class Option:
    """One option; flags take no value."""

    name: str  # llm_energy_batch_size
    help: str
    metavar: str | None = None  # None: a switch
    aliases: tuple[str, ...] = ()
    off: str | None = None  # the flag that switches it off

    @property
    def flag(self) -> str:
        """The flag as it is typed."""
        return "--" + self.name.replace("_", "-")


OPTIONS: Final = (
    Option("llm_energy", "measure: without this switch tests that use `energy` are skipped"),
    Option(
        "llm_energy_models",
        "models to measure, comma-separated: presets, local directories, hub ids",
        "NAMES",
        aliases=("--models",),
    ),
    Option("llm_energy_grid", "quick, paper-input, paper-output, paper-grid or a .toml file", "GRID"),
    Option("llm_energy_tokens_in", "prompt tokens instead of the grid's, comma-separated", "COUNTS"),
    Option("llm_energy_tokens_out", "generated tokens instead of the grid's, comma-separated", "COUNTS"),
    Option("llm_energy_batch_size", "sequences in a batch (32)", "N"),
    Option(
        "llm_energy_kv_cache",
        "keep keys and values between steps; the paper, and the default, recompute them",
        off="--llm-energy-no-kv-cache",
    ),
    Option(
        "llm_energy_base_url",
        "measure a server of this machine that speaks the OpenAI API instead of loading models; batch is "
        "then concurrency, and the KV cache is on unless switched off",
        "URL",
    ),
    Option("llm_energy_dtype", "bfloat16, float16 or float32 (what the model suggests)", "DTYPE"),
    Option(
        "llm_energy_device",
        "auto, all (every GPU, split by layers), cpu, cuda or cuda:N (auto: the fewest GPUs that hold it)",
        "DEVICE",
    ),
    Option("llm_energy_offload", "let what no GPU has room for stay in the machine's memory"),
    Option(
        "llm_energy_tensor_parallel",
        "share every matrix between so many GPUs, where transformers has a plan for the model (1)",
        "N",
    ),
    Option("llm_energy_prompts", "your prompts, one a line, instead of random tokens; cut to length", "FILE"),
    Option("llm_energy_phases", "so many more trials a cell, split into prefill and decode (0)", "N"),
    Option("llm_energy_meters", "auto, or some of nvml,rapl,uprof,amd_energy,estimate; replay:FILE", "NAMES"),
    Option("llm_energy_require_measured", "refuse to run where energy would only be estimated"),
    Option(
        "llm_energy_window_error",
        "repeat short calls in one window until the meters' error bound is below this share of the energy "
        "(2%%); 0: never",
        "SHARE",
    ),
    Option(
        "llm_energy_idle",
        "measure idle power so long before and after each model, in s (5); 0: off",
        "SECONDS",
    ),
    Option("llm_energy_trace", "keep every domain's power in trace.parquet beside the results"),
    Option("llm_energy_ci_abs", "stop at this half-width of the mean runtime, in s (0.5); 0: off", "SECONDS"),
    Option("llm_energy_ci_rel", "stop at this relative half-width of the mean energy (1%%); 0: off", "SHARE"),
    Option("llm_energy_confidence", "of both intervals (0.95)", "P"),
    Option("llm_energy_min_trials", "at least so many counted trials a cell (5)", "N"),
    Option("llm_energy_max_trials", "at most so many counted trials a cell (25)", "N"),
    Option("llm_energy_seed", "of the order of cells and the random prompts (0)", "N"),
    Option("llm_energy_system", "name of this system in the results; the GPUs or the CPU otherwise", "NAME"),
    Option(
        "llm_energy_results",
        "folder of results.json (reports/<models>-<grid>; reports/tests without a sweep)",
        "DIR",
    ),
    Option("llm_energy_resume", "go on with what the folder's journal does not hold"),
    Option("llm_energy_baseline", "compare with a results document or stored baselines", "FILE|NAME"),
    Option("llm_energy_gate", "exit with status 1 when the comparison, or a budget, fails"),
    Option(
        "llm_energy_fail_above",
        "increase from which a cell or a model fails the gate; implies it (1%% of a model, 3%% of a cell)",
        "SHARE",
    ),
    Option("llm_energy_tolerances", "the same for single cells: '* in 8 out *=10%%, ...'", "CELLS=SHARE"),
    Option(
        "llm_energy_session_spread",
        "assumed relative sd of unchanged sessions against one baseline (1%%)",
        "SHARE",
    ),
    Option("llm_energy_strict", "a gate that is inconclusive fails, too"),
    Option("llm_energy_subset", "cells of the baseline were left out on purpose"),
    Option("llm_energy_budget", "hold the models to a budget file (llmenergy-report budget)", "FILE"),
    Option("llm_energy_save", "store the results as a baseline of this name", "NAME"),
    Option("llm_energy_store", "folder of stored baselines (.llmenergy)", "DIR"),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare them; a default of None lets an ini value through."""
    group = parser.getgroup("llm-energy", "energy of LLM inference")
    for option in OPTIONS:
        how: dict[str, Any] = {"dest": option.name, "default": None, "help": option.help}
        if option.metavar is None:
            how |= {"action": "store_const", "const": True}
        else:
            how |= {"metavar": option.metavar}
        try:
            group.addoption(option.flag, *option.aliases, **how)
        except ValueError:
            group.addoption(option.flag, **how)  # another plugin owns the short spelling
        if option.off is not None:
            group.addoption(
                option.off,
                dest=option.name,
                action="store_const",
                const=False,
                default=None,
                help=f"the opposite of {option.flag}",
            )
        kind: Literal["bool", "string"] = "bool" if option.metavar is None else "string"
        parser.addini(option.name, option.help.replace("%%", "%"), type=kind, default=None)


def given(config: pytest.Config, name: str) -> Any:
    """What the command line says, else the ini file, else None."""
    value = config.getoption(name, None)
    return config.getini(name) if value is None else value


def is_measuring(config: pytest.Config) -> bool:
    """Whether --llm-energy is on."""
    return bool(given(config, "llm_energy"))
