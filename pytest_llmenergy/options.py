"""The options of the pytest plugin: declared, read and checked at this one place. PYTEST_DONT_REWRITE.

Each is a command-line flag `--llm-energy-...` and an ini value `llm_energy_...`; the command line wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.analysis.gate.request import GateRequest
    from pytest_llmenergy.campaign.settings import Settings


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


DTYPES: Final = ("bfloat16", "float16", "float32")
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


class _Reader:
    """Reads options as values; a bad one is a UsageError that names the flag."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def read(self, name: str, parse: Callable[[str], Any], what: str, default: Any = None) -> Any:
        value = given(self._config, name)
        if value is None:
            return default
        try:
            return parse(str(value))
        except ValueError as error:
            raise pytest.UsageError(f"--{name.replace('_', '-')}: {value!r} is not {what}.") from error

    def switch(self, name: str, *, default: bool = False) -> bool:
        value = given(self._config, name)
        return default if value is None else bool(value)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_name(part) for part in text.split(",") if part.strip()))
    if not names:
        raise ValueError
    return names


def _name(text: str) -> str:
    """A directory is the same model with and without a slash at its end."""
    return text.strip().rstrip("/") or "/"


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise ValueError
    return text


def _whole(text: str) -> int:
    whole = int(text)
    if whole < 0:
        raise ValueError
    return whole


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _seconds(text: str) -> float | None:
    """0 switches the rule off."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds or None


def _limit(text: str) -> float | None:
    """A share; 0 switches the rule off."""
    return _share(text) or None


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _probability(text: str) -> float:
    probability = float(text)
    if not 0 < probability < 1:
        raise ValueError
    return probability


def read_settings(config: pytest.Config) -> Settings:
    """The campaign's settings.

    Raises:
        pytest.UsageError: an option has no sense; the message names it.
        RequestError: the grid cannot be had.
    """
    from pytest_llmenergy.campaign.grid import open_grid
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.campaign.stopping import StopRule

    default = Settings()
    reader = _Reader(config)
    counts = "a comma-separated list of whole numbers of at least 1"
    rule = StopRule(
        ci_abs_s=reader.read("llm_energy_ci_abs", _seconds, "a number of seconds", default.rule.ci_abs_s),
        ci_rel=reader.read("llm_energy_ci_rel", _limit, "a share such as 1% or 0.01", default.rule.ci_rel),
        confidence=reader.read(
            "llm_energy_confidence", _probability, "a probability between 0 and 1", default.rule.confidence
        ),
        **_trial_limits(reader, default.rule),
    )
    base_url = reader.read("llm_energy_base_url", _text, "an address")
    grid_name = reader.read("llm_energy_grid", _text, "a grid", default.grid_name)
    return Settings(
        models=reader.read("llm_energy_models", _names, "a list of models", default.models),
        grid_name=grid_name,
        grid=open_grid(
            grid_name,
            tokens_in=reader.read("llm_energy_tokens_in", _counts, counts),
            tokens_out=reader.read("llm_energy_tokens_out", _counts, counts),
        ),
        batch_size=reader.read(
            "llm_energy_batch_size", _count, "a whole number of at least 1", default.batch_size
        ),
        # A server keeps its cache unless it is told not to, and most cannot be told.
        kv_cache=reader.switch("llm_energy_kv_cache", default=base_url is not None),
        base_url=base_url,
        dtype=reader.read("llm_energy_dtype", _dtype, "one of " + ", ".join(DTYPES)),
        device=reader.read("llm_energy_device", _text, "a device"),
        offload=reader.switch("llm_energy_offload"),
        prompts=reader.read("llm_energy_prompts", _path, "a file"),
        tensor_parallel=reader.read(
            "llm_energy_tensor_parallel", _count, "a whole number of at least 1", default.tensor_parallel
        ),
        phases=reader.read("llm_energy_phases", _whole, "a whole number", default.phases),
        meters=reader.read("llm_energy_meters", _names, "a list of meters", default.meters),
        require_measured=reader.switch("llm_energy_require_measured"),
        window_error=reader.read(
            "llm_energy_window_error", _limit, "a share such as 2% or 0.02", default.window_error
        ),
        idle_s=reader.read("llm_energy_idle", _seconds, "a number of seconds", default.idle_s) or 0.0,
        trace=reader.switch("llm_energy_trace"),
        rule=rule,
        seed=reader.read("llm_energy_seed", int, "a whole number", default.seed),
        system=reader.read("llm_energy_system", _text, "a name", None),
        results=reader.read("llm_energy_results", _path, "a folder", None),
        resume=reader.switch("llm_energy_resume"),
    )


def read_gate(config: pytest.Config) -> GateRequest:
    """What the session is held against.

    Raises:
        pytest.UsageError: an option has no sense; the message names it.
    """
    from pytest_llmenergy.analysis.gate.request import GateRequest

    reader = _Reader(config)
    share = "a share such as 5% or 0.05"
    fail_above = reader.read("llm_energy_fail_above", _share, share)
    baseline = reader.read("llm_energy_baseline", _text, "a file or a name")
    return GateRequest(
        baseline=baseline,
        binding=reader.switch("llm_energy_gate") or (fail_above is not None and baseline is not None),
        fail_above=fail_above,
        session_spread=reader.read("llm_energy_session_spread", _share, share),
        tolerances=reader.read("llm_energy_tolerances", _lines, "a list of CELLS=SHARE", ()),
        strict=reader.switch("llm_energy_strict"),
        subset=reader.switch("llm_energy_subset"),
        budget=reader.read("llm_energy_budget", _path, "a file"),
        save=reader.read("llm_energy_save", _text, "a name"),
        store=reader.read("llm_energy_store", _path, "a folder", GateRequest().store),
    )


def _share(text: str) -> float:
    from pytest_llmenergy.units import parse_fraction

    share = parse_fraction(text)
    if not 0 <= share < float("inf"):
        raise ValueError
    return share


def _lines(text: str) -> tuple[str, ...]:
    """Entries separated by commas or by lines."""
    return tuple(entry.strip() for line in text.splitlines() for entry in line.split(",") if entry.strip())


def _trial_limits(reader: _Reader, default: Any) -> dict[str, int]:
    what = "a whole number of at least 1"
    low = reader.read("llm_energy_min_trials", _count, what)
    high = reader.read("llm_energy_max_trials", _count, what)
    # One of them given alone moves the other's default out of its way.
    low, high = (
        low if low is not None else min(default.min_trials, high or default.max_trials),
        high if high is not None else max(default.max_trials, low or default.min_trials),
    )
    if low > high:
        raise pytest.UsageError(
            f"--llm-energy-min-trials {low} is above --llm-energy-max-trials {high}. "
            "Lower one or raise the other."
        )
    return {"min_trials": low, "max_trials": high}
