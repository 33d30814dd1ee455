"""`CUDA_VISIBLE_DEVICES`: which GPUs this process uses, by index, UUID or MIG name."""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Selector:
    """One entry: an index, the beginning of a UUID, or a MIG instance."""

    text: str
    index: int | None = None
    uuid: str | None = None  # GPU-..., perhaps abbreviated
    mig: str | None = None  # MIG-... as it stands


def parse(text: str | None) -> tuple[Selector, ...] | None:
    """The entries up to the first that is none, as CUDA does; None where all GPUs are visible."""
    if text is None:
        return None
    selectors: list[Selector] = []
    for part in text.split(","):
        entry = part.strip()
        if entry.startswith("MIG-GPU-"):  # MIG-GPU-<uuid>/<GPU instance>/<compute instance>, before R470
            uuid = entry.removeprefix("MIG-").partition("/")[0]
            selectors.append(Selector(entry, uuid=uuid, mig=entry))
        elif entry.startswith("MIG-"):
            selectors.append(Selector(entry, mig=entry))
        elif entry.startswith("GPU-"):
            selectors.append(Selector(entry, uuid=entry))
        elif entry.isdecimal():
            selectors.append(Selector(entry, index=int(entry)))
        else:
            break  # -1, an empty entry, or nonsense: CUDA stops here
    return tuple(selectors)


def here() -> tuple[Selector, ...] | None:
    """What this process sees."""
    return parse(os.environ.get(VARIABLE))
