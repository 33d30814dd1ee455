"""What a campaign was asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmenergy.campaign.grid import GRIDS, Grid
from pytest_llmenergy.campaign.stopping import StopRule

DEFAULT_MODEL = "tiny-llama"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole request, validated; every default of the product stands here once."""

    models: tuple[str, ...] = (DEFAULT_MODEL,)  # that sweeps run over; none where no test is a sweep
    grid_name: str = "quick"
    grid: Grid = GRIDS["quick"]
    batch_size: int = 32
    kv_cache: bool = False
    meters: tuple[str, ...] = ("auto",)
    require_measured: bool = False
    window_error: float | None = 0.02
    idle_s: float = 5.0
    trace: bool = False
    rule: StopRule = field(default_factory=StopRule)
    seed: int = 0
    base_url: str | None = None  # of a server that has the models; else they are loaded here
    dtype: str | None = None
    device: str | None = None
    offload: bool = False
    tensor_parallel: int = 1
    prompts: Path | None = None  # one a line, in place of random tokens
    phases: int = 0  # trials a cell that are split into prefill and decode, beside those that count
    system: str | None = None
    results: Path | None = None
    resume: bool = False

    @property
    def campaign(self) -> str:
        """The campaign's name, which is also the folder its results are kept in."""
        if self.results is not None:
            return self.results.name
        if not self.models:
            return "tests"
        models = "+".join(
            (Path(model).resolve() if Path(model).is_dir() else Path(model)).name for model in self.models
        )
        return f"{models}-{Path(self.grid_name).stem}" + ("-kv" if self.kv_cache else "")

    @property
    def folder(self) -> Path:
        """Where results and journal are kept."""
        return self.results if self.results is not None else Path("reports") / self.campaign

    def as_document(self) -> dict[str, Any]:
        """The settings as they stand in the JSON."""
        grid = {
            name: {"tokens_in": list(sweep.tokens_in), "tokens_out": list(sweep.tokens_out)}
            for name in ("input", "output", "grid")
            if (sweep := self.grid.sweep(name)) is not None
        }
        return {
            "models": list(self.models),
            "grid": {"name": self.grid_name, **grid},
            "batch_size": self.batch_size,
            "kv_cache": self.kv_cache,
            "meters": list(self.meters),
            "require_measured": self.require_measured,
            "window_error": self.window_error,
            "idle_s": self.idle_s,
            "stopping": asdict(self.rule),
            "seed": self.seed,
            "base_url": self.base_url,
            "dtype": self.dtype,
            "device": self.device,
            "offload": self.offload,
            "tensor_parallel": self.tensor_parallel,
            "prompts": None if self.prompts is None else str(self.prompts),
            "phases": self.phases,
            "system": self.system,
        }
