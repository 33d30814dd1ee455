"""The machine and the software that a campaign ran on, and whether two of them may be compared."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_llmenergy.records import Environment, Gpu, MeterSource
from pytest_llmenergy.units import watts_from_milliwatts

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIBRARIES = (
    "pytest-llmenergy",
    "pytest",
    "pytest-benchmark",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "pyJoules",
    "nvidia-ml-py",
)
_COMMIT_TIMEOUT_S = 10


def read_environment(*, meters: Sequence[MeterSource] = (), folder: Path | None = None) -> Environment:
    """Look at this machine; what cannot be found is None. Asks git once for the commit of `folder`."""
    import psutil

    driver, gpus = read_gpus()
    commit, dirty = _commit(folder or Path.cwd())
    environment = Environment(
        hostname=socket.gethostname(),
        os=_os_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        cpu_model=_cpu_model(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cpus=psutil.cpu_count(),
        memory_b=psutil.virtual_memory().total,
        gpus=gpus,
        driver=driver,
        libraries=_libraries(),
        commit=commit,
        commit_dirty=dirty,
        meters=tuple(meters),
    )
    return msgspec.structs.replace(environment, fingerprint=fingerprint(environment))


def comparable(environment: Environment) -> dict[str, str | None]:
    """What must be equal before two campaigns' joules may be compared, by the name a message uses.

    The software is not in it: a change of the software is what a comparison is for.
    """
    parts: dict[str, str | None] = {
        "machine": environment.hostname,
        "CPU": environment.cpu_model,
        "driver": environment.driver,
    }
    for gpu in environment.gpus:
        limit = None if gpu.power_limit_w is None else f"{gpu.power_limit_w:.0f} W"
        parts[f"GPU {gpu.index}"] = f"{gpu.name} {gpu.uuid or ''}".strip()
        parts[f"power limit of GPU {gpu.index}"] = limit
    used = [source.name for source in environment.meters if source.available]
    parts["meters"] = ", ".join(sorted(used)) or None
    return parts


def fingerprint(environment: Environment) -> str:
    """A short hash, equal for campaigns whose joules may be compared."""
    text = msgspec.json.encode(sorted(comparable(environment).items(), key=lambda part: part[0]))
    return hashlib.sha256(text).hexdigest()[:16]


def differences(first: Environment, second: Environment) -> list[str]:
    """What stands in the way of comparing two campaigns, in words; empty when nothing does."""
    one, other = comparable(first), comparable(second)
    return [
        f"{name}: {one.get(name) or 'unknown'} against {other.get(name) or 'unknown'}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def system_name(environment: Environment) -> str:
    """A short name of the hardware: the GPUs where there are any, else the CPU."""
    names = [gpu.name for gpu in environment.gpus]
    if names:
        kinds = sorted(set(names))
        return " + ".join(f"{names.count(kind)}x {kind}" for kind in kinds)
    return environment.cpu_model or environment.hostname or "unknown"


def read_gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's version and its GPUs; (None, ()) without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, ()
    try:
        count = pynvml.nvmlDeviceGetCount()
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return driver, tuple(_gpu(index) for index in range(count))
    except pynvml.NVMLError:
        return None, ()  # the NVML meter says why, with the remedy
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = limit_w = memory_b = None
    name = f"GPU {index}"
    with contextlib.suppress(pynvml.NVMLError):
        name = _text(pynvml.nvmlDeviceGetName(handle))
    with contextlib.suppress(pynvml.NVMLError):
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    with contextlib.suppress(pynvml.NVMLError):
        limit_w = watts_from_milliwatts(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    with contextlib.suppress(pynvml.NVMLError):
        memory_b = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(index=index, name=name, uuid=uuid, power_limit_w=limit_w, memory_b=memory_b)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return platform.system()


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _libraries() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(folder), *arguments),
            capture_output=True,
            text=True,
            check=True,
            timeout=_COMMIT_TIMEOUT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None  # no git, no repository, or no commit yet
