"""Tensor parallelism as transformers does it: one process a rank, each with its share of every matrix.

Ours is rank 0. The others are started here, load the same model, and repeat each call of ours, so that the
collectives inside meet; run as a module, this file is such a rank.
"""

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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import Work
from pytest_llmenergy.backends.placement import ALL, AUTO
from pytest_llmenergy.backends.sources import Source, Weights
from pytest_llmenergy.backends.transformers_model import Request, TransformersModel
from pytest_llmenergy.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

_STOP_S = 30.0
_LOOK_S = 0.1  # between two looks whether all are there
_GRACE_S = 2.0  # a rank whose connection broke is about to end


def check_machine(n_ranks: int, device: str) -> None:
    """Refuse a machine that has not the GPUs asked for.

    Raises:
        RequestError: there are too few, or a device was named: transformers takes the first GPUs there are.
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not n_gpus:
        return  # the ranks are processes on the CPU
    if device not in (AUTO, ALL):
        raise RequestError(
            f"tensor parallelism takes the machine's first {n_ranks} GPUs, not {device}: leave "
            "--llm-energy-device out; CUDA_VISIBLE_DEVICES chooses among GPUs."
        )
    if n_gpus < n_ranks:
        raise RequestError(
            f"tensor parallelism over {n_ranks} GPUs was asked for; torch can use {n_gpus} here. "
            "Lower --llm-energy-tensor-parallel."
        )


def check(network: Any, name: str, n_ranks: int) -> None:
    """Refuse a model that cannot be shared out, before any process is started.

    Raises:
        RequestError: the architecture has no plan, or its heads do not divide.
    """
    if not network.supports_tp_plan:
        raise RequestError(
            f"{name}: transformers has no tensor-parallel plan for {network.config.model_type!r}. Leave "
            "--llm-energy-tensor-parallel out; --llm-energy-device all splits it by layers."
        )
    config = network.config.get_text_config()
    for what in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, what, None)
        if heads is not None and heads % n_ranks:
            raise RequestError(
                f"{name}: {what} is {heads}, which {n_ranks} processes cannot share evenly. "
                "Choose a --llm-energy-tensor-parallel that divides it."
            )


def load(
    source: Source,
    directory: Path,
    *,
    dtype: str,
    n_ranks: int,
    details: dict[str, Any],
    trust_remote_code: bool = False,
) -> TensorParallelModel:
    """Start the other ranks, and load our share with them.

    Args:
        source: what the model is called.
        directory: holds it as save_pretrained writes it; read while this runs and not after.
        dtype: as torch names it.
        n_ranks: processes, ours included.
        details: for the model's record.
        trust_remote_code: run code that the directory brings.

    Raises:
        EngineError: a rank has ended before all was loaded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_free_port(), n_ranks))
        ranks = Ranks(directory, dtype=dtype, n_ranks=n_ranks, trust_remote_code=trust_remote_code)
        stack.callback(_leave_group)
        stack.callback(ranks.close)
        network = ranks.beside(
            lambda: _shard(directory, dtype=dtype, n_ranks=n_ranks, trust_remote_code=trust_remote_code)
        )
        placed = {"placement": "tensor parallel", "tensor_parallel": n_ranks}
        return TensorParallelModel(
            network, source=source, details={**details, **placed}, ranks=ranks, held=stack.pop_all()
        )


class TensorParallelModel(TransformersModel):
    """Our share of a model, and the processes that have the others."""

    def __init__(
        self,
        network: Any,
        *,
        source: Source,
        details: dict[str, Any],
        ranks: Ranks,
        held: contextlib.ExitStack,
    ) -> None:
        super().__init__(network, source=source, load_s=0.0, details=details)
        self.n_ranks = ranks.n_ranks
        self._ranks = ranks
        self._held = held

    def generate(self, request: Request, *, on_first_token: Callable[[], None] | None = None) -> torch.Tensor:
        """Generate with every rank; returns [batch_size, tokens_in + tokens_out].

        Raises:
            EngineError: a rank has ended.
        """
        self._ranks.send(request.work)
        try:
            return super().generate(request, on_first_token=on_first_token)
        except RuntimeError:
            self._ranks.check(_GRACE_S)  # a rank that has ended is why ours could not go on
            raise

    def close(self) -> None:
        """End the other ranks and free the memory."""
        super().close()
        self._held.close()


class Ranks:
    """The other processes."""

    def __init__(self, directory: Path, *, dtype: str, n_ranks: int, trust_remote_code: bool) -> None:
        self.n_ranks = n_ranks
        self._patience_s = 0.0  # with those that do not end when they are let go
        asked = json.dumps(
            {
                "directory": str(directory),
                "dtype": dtype,
                "n_ranks": n_ranks,
                "trust_remote_code": trust_remote_code,
            }
        )
        self._logs = [tempfile.TemporaryFile() for _ in range(1, n_ranks)]  # noqa: SIM115 - closed in close()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, asked],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, log in enumerate(self._logs, start=1)
        ]

    def send(self, work: Work) -> None:
        """Have every rank do a call.

        Raises:
            EngineError: one has ended.
        """
        self.check()
        line = json.dumps(asdict(work)).encode() + b"\n"
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.write(line)
                process.stdin.flush()

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
        if done.exception() is not None:
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
                self._patience_s = 0.0  # the others wait for it and do not hear us
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


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _shard(directory: Path, *, dtype: str, n_ranks: int, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    network = AutoModelForCausalLM.from_pretrained(
        directory,
        distributed_config=DistributedConfig(tp_size=n_ranks),
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    )
    torch.distributed.barrier()  # the directory may go once every rank has read it
    return network


@contextlib.contextmanager
def _environment(port: int, n_ranks: int) -> Iterator[None]:
    """What torch.distributed reads, for us and those we start."""
    ours = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
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


def _be_a_rank(asked: dict[str, Any]) -> None:
    """Load our share, then do every call that is sent, until the sender has no more."""
    import torch

    torch.set_num_threads(1)
    directory = Path(asked.pop("directory"))
    network = _shard(directory, **asked)
    source = Source(name=str(directory), weights=Weights.TRAINED, directory=directory)
    model = TransformersModel(network, source=source, load_s=0.0, details={})
    for line in sys.stdin:
        model.generate(model.prepare(Work(**json.loads(line))))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _be_a_rank(json.loads(sys.argv[1]))
