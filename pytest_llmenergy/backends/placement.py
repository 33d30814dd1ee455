"""Which device holds which part of a model, decided on its shapes before anything is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmenergy import units
from pytest_llmenergy.errors import DoesNotFitError, RequestError, require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llmenergy.backends.architecture import Preset

# Share of a GPU that weights may take; the rest is for the cache, the activations and the kernels. With it,
# the numbers of A100 40 GB GPUs in the paper's Table 1 come out.
WEIGHTS_SHARE = 0.95
AUTO, ALL = "auto", "all"
ONE_DEVICE, LAYER_SPLIT, CPU_OFFLOAD = "one device", "layer split", "CPU offload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Free memory in bytes."""

    gpus_b: Mapping[int, int]
    cpu_b: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What goes where: a module's name ("" is the whole model) to a GPU's index or "cpu"."""

    device_map: dict[str, int | str]
    kind: str  # ONE_DEVICE, LAYER_SPLIT (not tensor parallelism: one GPU works at a time) or CPU_OFFLOAD

    def device_of(self, name: str) -> int | str:
        """The device of a parameter, by the longest module name that holds it."""
        while name not in self.device_map:
            name = name.rpartition(".")[0]
        return self.device_map[name]

    @property
    def main_device(self) -> int | str:
        """Where the input goes: the first GPU, or the CPU where there is none."""
        return min((d for d in self.device_map.values() if isinstance(d, int)), default="cpu")

    def summary(self) -> dict[str, int]:
        """How many modules each device holds, by its name."""
        devices = (f"cuda:{part}" if isinstance(part, int) else part for part in self.device_map.values())
        return dict(Counter(devices))


def one_device(device: str) -> int | str:
    """The one device of a model whose size is not known before it is read: the first GPU, or the CPU."""
    gpus = dict.fromkeys(free_room().gpus_b, 0)
    if device == "cpu" or (device in (AUTO, ALL) and not gpus):
        return "cpu"
    return min(gpus) if device in (AUTO, ALL) else _index_of(device, gpus)


def check_device(device: str) -> None:
    """Refuse a device that this machine has not; torch is imported only where a GPU is named.

    Raises:
        RequestError: there is no such device.
    """
    if device in (AUTO, ALL, "cpu"):
        return
    _gpu_index(device)  # a spelling that means nothing, before torch is asked
    require("torch", feature="Running a model", extra="models")
    import torch

    _index_of(device, dict.fromkeys(range(torch.cuda.device_count() if torch.cuda.is_available() else 0), 0))


def gpus_needed(preset: Preset, gpu_memory_b: float) -> int | None:
    """GPUs of that size that hold the weights in bf16, no layer cut in two; None if a layer does not fit."""
    room_b = WEIGHTS_SHARE * gpu_memory_b
    layers = int(preset.config["num_hidden_layers"])
    table_b = 2 * int(preset.config["vocab_size"]) * int(preset.config["hidden_size"])
    n_tables = 1 if preset.config["tie_word_embeddings"] else 2
    layer_b = (preset.memory_b - n_tables * table_b) / layers
    pieces = [table_b, *[layer_b] * layers, *[table_b] * (n_tables - 1)]
    if max(pieces) > room_b:
        return None
    gpus, used_b = 1, 0.0
    for piece_b in pieces:
        if used_b + piece_b > room_b:
            gpus, used_b = gpus + 1, 0.0
        used_b += piece_b
    return gpus


def free_room() -> Room:
    """The memory that is free now on this machine."""
    import psutil
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Room(
        gpus_b={index: torch.cuda.mem_get_info(index)[0] for index in gpus},
        cpu_b=psutil.virtual_memory().available,
    )


def place(network: Any, room: Room, *, name: str, device: str = AUTO, offload: bool = False) -> Placement:
    """Place a model that stands on the meta device.

    Args:
        network: the model, tied.
        room: what is free.
        name: for messages.
        device: "auto" takes the fewest GPUs that hold it, or the CPU where there is none; "all" spreads it
            over every GPU; "cpu", "cuda", "cuda:1" take that one.
        offload: let what no GPU has room for stay in the machine's memory and be copied over at every pass.

    Raises:
        RequestError: there is no such device.
        DoesNotFitError: it does not fit.
    """
    weights_b = network.get_memory_footprint(return_buffers=False)
    gpus_b = {index: int(WEIGHTS_SHARE * free_b) for index, free_b in room.gpus_b.items()}
    if device == "cpu" or (device in (AUTO, ALL) and not gpus_b):
        if weights_b > room.cpu_b:
            raise _does_not_fit(name, weights_b, room.cpu_b, "in memory", "Take a smaller model or dtype.")
        return Placement(device_map={"": "cpu"}, kind=ONE_DEVICE)
    if device not in (AUTO, ALL):
        gpus_b = {index: gpus_b[index] for index in (_index_of(device, gpus_b),)}
    if len(gpus_b) == 1 or device != ALL:
        for index in gpus_b:
            if weights_b <= gpus_b[index]:
                return Placement(device_map={"": index}, kind=ONE_DEVICE)
    split = _split(network, gpus_b, every=device == ALL)
    if split is not None:
        return split
    if offload:
        return _offloaded(network, gpus_b, room.cpu_b, name=name, weights_b=weights_b)
    free = f"{len(gpus_b)} GPU{'s' if len(gpus_b) > 1 else ''}"
    raise _does_not_fit(
        name,
        weights_b,
        sum(gpus_b.values()),
        f"on {free}",
        "Add GPUs, take a smaller dtype, or ask for CPU offload (its energy is then mostly of copying).",
    )


def _gpu_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise RequestError(f"there is no device {device!r}; take auto, all, cpu, cuda or cuda:0.")
    return int(index or 0)


def _index_of(device: str, gpus_b: Mapping[int, int]) -> int:
    index = _gpu_index(device)
    if index not in gpus_b:
        there = ", ".join(f"cuda:{n}" for n in gpus_b) or "no GPU that torch can use"
        raise RequestError(
            f"there is no device {device!r} on this machine; there is {there}. "
            "Choose another --llm-energy-device."
        )
    return index


def _split(network: Any, gpus_b: Mapping[int, int], *, every: bool) -> Placement | None:
    """A layer split by Accelerate over the fewest GPUs, or all, evenly filled; None if they are too few."""
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    whole = {"no_split_module_classes": list(network._no_split_modules or ()), "dtype": network.dtype}  # noqa: SLF001 - Accelerate's own way
    indices = sorted(gpus_b)
    footprint_b = network.get_memory_footprint()
    for count in [len(indices)] if every else range(1, len(indices) + 1):
        most = {index: gpus_b[index] for index in indices[:count]}
        even = get_balanced_memory(network, max_memory=dict(most), **whole)
        for limits in (even, most):
            device_map = infer_auto_device_map(network, max_memory={**limits, "cpu": footprint_b}, **whole)
            if all(isinstance(part, int) for part in device_map.values()):
                used = set(device_map.values())
                kind = LAYER_SPLIT if len(used) > 1 else ONE_DEVICE
                return Placement(device_map=dict(device_map), kind=kind)
    return None


def _offloaded(
    network: Any, gpus_b: Mapping[int, int], cpu_b: int, *, name: str, weights_b: int
) -> Placement:
    from accelerate.utils import infer_auto_device_map

    device_map = infer_auto_device_map(
        network,
        max_memory=dict([*gpus_b.items(), ("cpu", cpu_b)]),
        no_split_module_classes=list(network._no_split_modules or ()),  # noqa: SLF001 - Accelerate's own way
        dtype=network.dtype,
    )
    if "disk" in device_map.values():
        raise _does_not_fit(
            name,
            weights_b,
            sum(gpus_b.values()) + cpu_b,
            "on its GPUs and in memory",
            "Take a smaller model.",
        )
    return Placement(device_map=dict(device_map), kind=CPU_OFFLOAD)


def _does_not_fit(name: str, needed_b: int, available_b: int, where: str, remedy: str) -> DoesNotFitError:
    return DoesNotFitError(
        f"{name} does not fit: its weights take {units.format_quantity(needed_b, 'B')}, and "
        f"{units.format_quantity(available_b, 'B')} are free {where}. {remedy}",
        needed_b=needed_b,
        available_b=available_b,
    )
