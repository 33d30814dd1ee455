"""What belongs to a server: the processes behind its port, and the GPUs they compute on."""

import os
import subprocess
import sys

import pytest

from pytest_llmenergy.backends import server_process
from tests.doubles.nvml import NvmlDouble

pytest.importorskip("psutil")

# A front end that listens and an engine that it has started, as vLLM is built.
SERVER = """
import socket, subprocess, sys
listening = socket.create_server(("127.0.0.1", 0))
engine = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
print(listening.getsockname()[1], engine.pid, flush=True)
input()
engine.communicate()
"""


def test_what_a_server_has_started_is_behind_its_port_too():
    """The process that listens, and the engine it started; nothing where nobody listens."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        port, engine = map(int, server.stdout.readline().split())
        assert {process.pid for process in server_process.processes_behind(port)} == {server.pid, engine}
        server.communicate("\n")
    assert server_process.processes_behind(port) == []


@pytest.fixture
def nvml(tmp_path):
    """The driver's double; without a GPU afterwards."""
    double = NvmlDouble(tmp_path)
    yield double
    double.load("")


def test_the_gpus_of_a_server_are_those_its_processes_compute_on(nvml):
    """One of three, whoever else computes; unknown, not none, where no GPU shows the server's processes."""
    pytest.importorskip("pynvml")
    nvml.load(f"gpu a\ngpu b\ngpu c\nprocess 1 {os.getpid()}\nprocess 2 {os.getppid()}\n")
    assert server_process.gpus_of({os.getpid()}) == (1,)
    assert server_process.gpus_of({os.getpid(), os.getppid()}) == (1, 2)
    assert server_process.gpus_of({2**22}) is None
    assert server_process.gpus_of(set()) is None
    nvml.load("")
    assert server_process.gpus_of({os.getpid()}) == ()
