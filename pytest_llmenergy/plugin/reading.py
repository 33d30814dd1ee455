"""What the command line and the ini file ask for, as a campaign's settings and a gate's request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_llmenergy.analysis.gate.request import GateRequest
from pytest_llmenergy.campaign.grid import open_grid
from pytest_llmenergy.campaign.settings import Settings
from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.options import given
from pytest_llmenergy.units import parse_fraction

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES: Final = ("bfloat16", "float16", "float32")


def read_settings(config: pytest.Config) -> Settings:
    """The campaign's settings.

    Raises:
        pytest.UsageError: an option has no sense; the message names it.
        RequestError: the grid cannot be had.
    """
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


def _share(text: str) -> float:
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
