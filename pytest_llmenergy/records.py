"""The nouns: what is measured and kept, as it stands in the JSON.

Energies in J, times in s, unknown is None. One trial's figures are those of one call: a window that held
several back-to-back calls (`repetitions`) is divided by their number once, where it is closed.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

RESULTS_SCHEMA = "llmenergy.results/1"


class Provenance(enum.StrEnum):
    """Where a joule comes from."""

    MEASURED = "measured"  # from a counter or a sensor
    ESTIMATED = "estimated"  # from a model of the hardware
    UNAVAILABLE = "unavailable"  # no reading; the energy is None and the reason says why


class DomainEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of one domain in one window."""

    domain: str  # "gpu:0", "cpu:package-0", "dram:0", "cpu:attributed"
    energy_j: float | None
    provenance: Provenance
    bound_j: float | None = None  # repeatability: |energy_j - truth| <= bound_j, gain error apart
    reason: str | None = None  # why unavailable, or what the estimate rests on
    meter: str | None = None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of a call: prefill to every sequence's first token, decode from there to the end."""

    name: str  # "prefill" or "decode"
    runtime_s: float
    domains: tuple[DomainEnergy, ...]


# Why a trial that was split into phases does not count: the mark at the first token disturbs it.
PHASES = "phases"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One backend call in one window (or the mean of `repetitions` calls back to back in one window)."""

    index: int
    runtime_s: float
    domains: tuple[DomainEnergy, ...]
    warmup: bool = False  # recorded, not counted
    excluded: str | None = None  # why this trial does not count
    repetitions: int = 1
    tokens_generated: int | None = None  # over the whole batch; the prompt is not counted
    first_after_load: bool = False  # the slow one: kernels are compiled, caches filled
    started_s: float | None = None  # since the campaign began, monotonic
    flags: tuple[str, ...] = ()  # what may have disturbed it (throttling, foreign load), in words
    meter_cpu_s: float | None = None  # what the meters themselves cost, in CPU time
    ttft_s: float | None = None  # time to first token; of torch models on trials with phases alone
    tpot_s: float | None = None  # time per output token after the first
    phases: tuple[Phase, ...] = ()  # on trials that ask for them
    details: dict[str, Any] = {}

    @property
    def counts(self) -> bool:
        """Whether this trial enters means and intervals."""
        return not self.warmup and self.excluded is None


DOES_NOT_FIT = "does-not-fit"


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Why a cell stopped, after how many counted trials, with what half-widths."""

    # "runtime", "energy" (the rule that held last), "max-trials", "failed", "interrupted", DOES_NOT_FIT
    reason: str
    trials: int
    runtime_half_width_s: float | None = None
    energy_half_width_rel: float | None = None
    confidence: float | None = None


class PhaseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's means over its trials with phases; energies and times are those of one call of the batch."""

    name: str
    trials: int
    runtime_s: float
    energy_j: float | None
    gpu_energy_j: float | None
    cpu_energy_j: float | None
    provenance: Provenance


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's means over its counted trials; energies and times are those of one call of the batch."""

    runtime_s: float | None
    energy_j: float | None
    gpu_energy_j: float | None
    cpu_energy_j: float | None
    energy_j_per_token: float | None  # per generated token
    provenance: Provenance
    energy_j_per_token_half_width: float | None = None  # Student t at the cell's confidence
    energy_basis: str | None = None  # "energy_j", or "gpu_energy_j" where that is all there is
    power_w: float | None = None
    throughput_tok_s: float | None = None
    bound_rel: float | None = None  # the meters' own error bound, relative, on one trial
    idle_power_w: float | None = None  # of the domains of `energy_basis`, with the model loaded
    idle_spread_w: float | None = None  # standard deviation of that power from one idle window to the next
    meter_cpu_share: float | None = None  # CPU time of the meters over the time of a trial
    net_energy_j: float | None = None  # energy less idle power x runtime; may be negative
    ttft_s: float | None = None  # means over the trials that have them
    tpot_s: float | None = None
    phases: tuple[PhaseSummary, ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the experiment. Token counts are per sequence."""

    model: str
    system: str
    n_gpus: int | None
    batch_size: int
    kv_cache: bool | None
    tokens_in: int
    tokens_out: int

    @property
    def tokens_generated(self) -> int:
        """Generated tokens over the whole batch."""
        return self.batch_size * self.tokens_out

    @property
    def label(self) -> str:
        """A name a person can find again: `mistral-7b in 32 out 128 batch 32 no-kv`."""
        cache = {True: " kv", False: " no-kv", None: ""}[self.kv_cache]
        return f"{self.model} in {self.tokens_in} out {self.tokens_out} batch {self.batch_size}{cache}"


class CellRecord(Cell, frozen=True, kw_only=True):
    """A cell with everything that was measured of it."""

    trials: tuple[Trial, ...]
    stop: Stop | None = None
    summary: Summary | None = None
    error: str | None = None  # why the cell has no usable result
    test: str | None = None  # the test that measured it
    details: dict[str, Any] = {}

    @property
    def cell(self) -> Cell:
        """The setting alone: what two records must share to be of the same cell."""
        return Cell(**{name: getattr(self, name) for name in Cell.__struct_fields__})


class WindowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `energy.window()` or `energy(fn)` measured outside a cell."""

    label: str
    runtime_s: float | None
    domains: tuple[DomainEnergy, ...]
    tokens_generated: int | None = None  # per call, where the user said so
    trials: tuple[Trial, ...] = ()
    stop: Stop | None = None
    summary: Summary | None = None
    error: str | None = None  # why there is no usable result
    test: str | None = None


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it was loaded."""

    model: str
    backend: str
    load_s: float | None = None
    parameters: int | None = None
    active_parameters: int | None = None  # those that one token passes through
    details: dict[str, Any] = {}  # dtype, attention, device map, weights, seed ...
    idle: tuple[dict[str, Any], ...] = ()


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU of the machine."""

    index: int
    name: str
    uuid: str | None = None
    memory_b: int | None = None
    power_limit_w: float | None = None


class MeterSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of energy readings on this machine: in use, or why not."""

    name: str
    available: bool
    domains: tuple[str, ...] = ()
    provenance: Provenance | None = None
    reason: str | None = None
    remedy: str | None = None
    details: dict[str, Any] = {}


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the software a campaign ran on."""

    hostname: str | None = None
    os: str | None = None
    kernel: str | None = None
    python: str | None = None
    cpu_model: str | None = None
    physical_cores: int | None = None
    logical_cpus: int | None = None
    memory_b: int | None = None
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    libraries: dict[str, str] = {}
    commit: str | None = None
    commit_dirty: bool | None = None
    meters: tuple[MeterSource, ...] = ()
    fingerprint: str | None = None  # equal for campaigns whose joules may be compared


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """A results document: one ordered, seeded set of cells on one machine."""

    schema: str = RESULTS_SCHEMA
    name: str = ""
    created: str | None = None  # ISO 8601, UTC
    complete: bool = True  # False when it was interrupted
    environment: Environment = Environment()
    settings: dict[str, Any] = {}
    models: tuple[ModelRecord, ...] = ()
    cells: tuple[CellRecord, ...]
    windows: tuple[WindowRecord, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self.cells and not self.windows
