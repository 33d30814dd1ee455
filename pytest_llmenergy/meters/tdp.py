"""Thermal design power of some CPUs, from their makers' product pages: what the estimate stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tdp:
    """A CPU package: its thermal design power and its physical cores."""

    name: str
    tdp_w: float
    cores: int


# For a CPU that is not listed: 5 W a core, between a many-core server (3.5 W) and a desktop (8 W).
DEFAULT_W_PER_CORE = 5.0

_TABLE = (
    Tdp("EPYC 7351", 170, 16),
    Tdp("EPYC 7402", 180, 24),
    Tdp("EPYC 7443", 200, 24),
    Tdp("EPYC 7452", 155, 32),
    Tdp("EPYC 7502", 180, 32),
    Tdp("EPYC 7513", 200, 32),
    Tdp("EPYC 7542", 225, 32),
    Tdp("EPYC 7543", 225, 32),
    Tdp("EPYC 75F3", 280, 32),
    Tdp("EPYC 7642", 225, 48),
    Tdp("EPYC 7662", 225, 64),
    Tdp("EPYC 7702", 200, 64),
    Tdp("EPYC 7713", 225, 64),
    Tdp("EPYC 7742", 225, 64),
    Tdp("EPYC 7763", 280, 64),
    Tdp("EPYC 9334", 210, 32),
    Tdp("EPYC 9354", 280, 32),
    Tdp("EPYC 9374F", 320, 32),
    Tdp("EPYC 9454", 290, 48),
    Tdp("EPYC 9534", 280, 64),
    Tdp("EPYC 9554", 360, 64),
    Tdp("EPYC 9654", 360, 96),
    Tdp("EPYC 9754", 360, 128),
    Tdp("Ryzen 7 5800X", 105, 8),
    Tdp("Ryzen 9 5950X", 105, 16),
    Tdp("Ryzen 9 7950X", 170, 16),
    Tdp("Ryzen 9 9950X", 170, 16),
    Tdp("Xeon E5-2680 v4", 120, 14),
    Tdp("Xeon Gold 6130", 125, 16),
    Tdp("Xeon Gold 6148", 150, 20),
    Tdp("Xeon Gold 6248", 150, 20),
    Tdp("Xeon Gold 6330", 205, 28),
    Tdp("Xeon Gold 6338", 205, 32),
    Tdp("Xeon Gold 6430", 270, 32),
    Tdp("Xeon Platinum 8168", 205, 24),
    Tdp("Xeon Platinum 8260", 165, 24),
    Tdp("Xeon Platinum 8280", 205, 28),
    Tdp("Xeon Platinum 8358", 250, 32),
    Tdp("Xeon Platinum 8360Y", 250, 36),
    Tdp("Xeon Platinum 8380", 270, 40),
    Tdp("Xeon Platinum 8462Y+", 300, 32),
    Tdp("Xeon Platinum 8468", 350, 48),
    Tdp("Xeon Platinum 8480+", 350, 56),
    Tdp("Xeon Platinum 8480C", 350, 56),
    Tdp("Xeon Platinum 8558", 330, 48),
    Tdp("Xeon Platinum 8568Y+", 350, 48),
    Tdp("Xeon Platinum 8592+", 350, 64),
)


def find(cpu_model: str | None) -> Tdp | None:
    """The table's entry for a CPU's name as the kernel has it; None where it is not listed."""
    if cpu_model is None:
        return None
    plain = re.sub(r"\((?:R|TM)\)|\bCPU\b", " ", cpu_model)
    words = f" {' '.join(plain.split())} "
    return next((entry for entry in _TABLE if f" {entry.name} " in words), None)
