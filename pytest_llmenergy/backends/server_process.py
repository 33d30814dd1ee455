"""The processes and GPUs behind a port of this machine, so that the energy metered is the server's."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Any


def is_local(host: str) -> bool:
    """Whether a host name is this machine's."""
    import psutil

    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {address.address.partition("%")[0] for each in psutil.net_if_addrs().values() for address in each}
    return all(str(a) in own or ipaddress.ip_address(str(a).partition("%")[0]).is_loopback for a in addresses)


def processes_behind(port: int) -> list[Any]:
    """The processes that listen on a TCP port, and all they started; none where the system will not tell."""
    import psutil

    found: dict[int, Any] = {}
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port or not connection.pid:
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def gpus_of(pids: set[int]) -> tuple[int, ...] | None:
    """The GPUs on which one of the processes computes, by NVML's index; none where there is no driver.

    None where it cannot be known: NVML will not tell, or shows none of them on any GPU, as it does where they
    have other numbers than it sees (in a container, say).
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()  # no driver, no GPU
    try:
        found = [
            index
            for index in range(pynvml.nvmlDeviceGetCount())
            if pids
            & {
                p.pid
                for p in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            }
        ]
    except pynvml.NVMLError:
        found = []
    finally:
        pynvml.nvmlShutdown()
    return tuple(found) or None
