"""The other processes of a model that is shared out: started, sent calls, not waited for when they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.errors import EngineError, LLMEnergyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_STOP_S = 30.0
_LOOK_S = 0.1  # between two looks whether all are there
_GRACE_S = 2.0  # a rank whose connection broke is about to end


class Ranks:
    """Processes that share a model with this one, which is rank 0."""

    def __init__(self, module: str, asked: Mapping[str, Any], n_ranks: int) -> None:
        """Start them, in an `environment`.

        Args:
            module: run by each, with `asked` as JSON for its argument; it reads calls from standard input.
            asked: what they shall load.
            n_ranks: processes, ours included.
        """
        self.n_ranks = n_ranks
        self._patience_s = 0.0  # none with those that are busy: they may wait for one that has ended
        self._logs = [tempfile.TemporaryFile() for _ in range(1, n_ranks)]  # noqa: SIM115 - closed in close()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(asked)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, log in enumerate(self._logs, start=1)
        ]

    def send(self, call: Mapping[str, Any]) -> None:
        """Have every rank do a call.

        Raises:
            EngineError: one has ended.
        """
        self.check()
        self._patience_s = 0.0
        line = json.dumps(call).encode() + b"\n"
        try:
            for process in self._processes:
                if process.stdin is not None:
                    process.stdin.write(line)
                    process.stdin.flush()
        except OSError:
            self.check(_GRACE_S)  # it has ended since
            raise

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do our part of what takes all ranks, and return what it gives.

        A rank that has ended is never met: torch would wait for it for hours, and cannot be told to stop. So
        the work is done in a thread, which is left behind then.

        Raises:
            EngineError: a rank has ended.
        """
        done: Future[Any] = Future()

        def do() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again below
                done.set_exception(error)

        threading.Thread(target=do, name="llmenergy-rank-0", daemon=True).start()
        while not wait([done], timeout=_LOOK_S).done:
            self.check()
        error = done.exception()
        if error is not None and not isinstance(error, LLMEnergyError):
            self.check(_GRACE_S)  # a rank that has ended is why ours could not go on
        found = done.result()
        self._patience_s = _STOP_S  # from now on they listen
        return found

    def check(self, grace_s: float = 0.0) -> None:
        """See whether all are there, `grace_s` from now.

        Raises:
            EngineError: one has ended; the message has its last words.
        """
        for rank, (process, log) in enumerate(zip(self._processes, self._logs, strict=True), start=1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
            if process.poll() is not None:
                log.seek(0)
                words = _last_words(log.read().decode(errors="replace"), process.returncode)
                raise EngineError(f"rank {rank} of the tensor-parallel model has ended: {words}")

    def close(self) -> None:
        """Let them end; kill the one that does not."""
        for process in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        for process in self._processes:
            try:
                process.wait(self._patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in self._logs:
            log.close()


def _last_words(log: str, status: int) -> str:
    """Why a process ended, by its log and its exit status."""
    if status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    # torch's own warnings, which begin with a bracket, come after the error that ended it.
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("[")]
    return lines[-1].strip() if lines else f"silently, with status {status}"


@contextlib.contextmanager
def environment(n_ranks: int) -> Iterator[None]:
    """What torch.distributed reads, for us and those we start."""
    ours = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(n_ranks),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
