"""One background thread for everything that must be read again and again while a model runs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_SLEEP_S = 60.0


class Scheduler(Protocol):
    """Runs tasks when they are due. A task takes the time and returns when it wants to run next."""

    clock: Callable[[], float]
    failures: list[Exception]  # of tasks that were dropped for them

    def add(self, task: Callable[[float], float]) -> None:
        """Run a task now, and from then on when it asks to."""
        ...

    def hasten(self, task: Callable[[float], float], time_s: float) -> None:
        """Run a task at this time if it would run later."""
        ...

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Let tasks run until `done`, or for so long; whether it is done."""
        ...

    @property
    def cpu_s(self) -> float:
        """CPU time the tasks have cost."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Sampler:
    """A scheduler on a thread of its own, which starts with the first task.

    A task that raises is dropped and the error kept in `failures`; the other tasks go on.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.failures: list[Exception] = []
        self._due: dict[Callable[[float], float], float] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._cpu_s = 0.0
        self._thread: threading.Thread | None = None

    @property
    def cpu_s(self) -> float:
        """CPU time of the thread."""
        return self._cpu_s

    def add(self, task: Callable[[float], float]) -> None:
        """Run a task now, and from then on when it asks to."""
        with self._changed:
            self._due[task] = self.clock()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmenergy-sampler", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def hasten(self, task: Callable[[float], float], time_s: float) -> None:
        """Run a task at this time if it would run later."""
        with self._changed:
            if time_s < self._due.get(task, time_s):
                self._due[task] = time_s
                self._changed.notify_all()

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `done`, which is asked after each task; whether it is done."""
        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    def close(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    wait_s = min(self._due.values(), default=self.clock() + _LONGEST_SLEEP_S) - self.clock()
                    if wait_s <= 0:
                        break
                    self._changed.wait(min(wait_s, _LONGEST_SLEEP_S))
                if self._closing:
                    return
                now_s = self.clock()
                ready = [task for task, due_s in self._due.items() if due_s <= now_s]
                for task in ready:
                    self._due[task] = float("inf")  # `hasten` may bring it forward while it runs
            for task in ready:
                self._run_one(task)
            self._cpu_s = time.thread_time()

    def _run_one(self, task: Callable[[float], float]) -> None:
        try:
            next_s = task(self.clock())
        except Exception as error:  # noqa: BLE001 - one broken source must not blind the others
            with self._changed:
                self.failures.append(error)
                del self._due[task]
                self._changed.notify_all()
            return
        with self._changed:
            self._due[task] = min(next_s, self._due[task])
            self._changed.notify_all()
