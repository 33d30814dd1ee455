"""Base and head in turn: blocks in random order, each arm a pytest session, each kept as soon as it is done.

The folder of results is the journal: an arm whose document is there and complete is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.campaign.opening import REPLAY_SESSION
from pytest_llmenergy.campaign.results import RESULTS_NAME, read_results, write_json
from pytest_llmenergy.errors import DocumentError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_llmenergy.campaign.checkouts import Checkout
    from pytest_llmenergy.records import Campaign

ARMS = ("base", "head")
PLAN_SCHEMA = "llmenergy.ab-plan/1"
PLAN_NAME = "plan.json"
_FINISHED = (0, 1)  # tests passed, or some failed: the document has what was measured
_LAST_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the comparison."""

    commit: str | None  # None: a checkout without git
    arguments: tuple[str, ...] = ()  # pytest arguments of this arm alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what is measured; two calls with an equal plan are one comparison."""

    base: Arm
    head: Arm
    arguments: tuple[str, ...]  # pytest arguments of both
    folder: str  # that the command was given in, within the repository
    trials: int
    seed: int

    @property
    def key(self) -> str:
        """A short name of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def order(self, block: int) -> tuple[str, ...]:
        """Which arm goes first, drawn by pair of blocks: what drifts steadily weighs on both arms alike."""
        first = random.Random(f"{self.seed}/{block // 2}").random() < 0.5  # noqa: S311, PLR2004 - a coin
        return ARMS if first == (block % 2 == 0) else ARMS[::-1]


class Interleaving:
    """A comparison in its folder."""

    def __init__(self, plan: Plan, folder: Path, checkouts: Mapping[str, Checkout]) -> None:
        """Begin it, or go on with it.

        Raises:
            RequestError: the folder holds another comparison, or cannot be written.
        """
        self.plan = plan
        self.folder = folder
        self._checkouts = checkouts
        document = {"schema": PLAN_SCHEMA, **json.loads(json.dumps(asdict(plan)))}
        path = folder / PLAN_NAME
        if path.exists():
            try:
                former = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DocumentError(path, "is damaged.", "Move the folder away to begin anew.") from error
            if former != document:
                raise RequestError(
                    f"{folder} holds another comparison. Choose another folder with --output, or repeat its "
                    "command to go on with it."
                )
        else:
            write_json(path, document)

    def path(self, block: int, arm: str) -> Path:
        """Where an arm's document is."""
        return self.folder / f"block-{block + 1:02d}" / arm / RESULTS_NAME

    def done(self, block: int, arm: str) -> Campaign | None:
        """The arm's document, when it is there and complete."""
        path = self.path(block, arm)
        if not path.exists():
            return None
        campaign = read_results(path)
        return campaign if campaign.complete else None

    def measured(self, blocks: int) -> int:
        """How many arms of so many blocks are done."""
        return sum(self.done(block, arm) is not None for block in range(blocks) for arm in ARMS)

    def command(self, block: int, arm: str) -> list[str]:
        """The pytest command of one arm."""
        own = getattr(self.plan, arm).arguments
        trials = str(self.plan.trials)
        return [
            str(self._checkouts[arm].python),
            "-m",
            "pytest",
            *self.plan.arguments,
            *own,
            "--llm-energy",
            f"--llm-energy-results={self.path(block, arm).parent.resolve()}",
            f"--llm-energy-min-trials={trials}",
            f"--llm-energy-max-trials={trials}",
            # The same prompts in the same order in both arms of a block, others in the next.
            f"--llm-energy-seed={self.plan.seed + block}",
        ]

    def run(self, block: int, arm: str) -> Campaign:
        """Measure one arm, unless it is done.

        Raises:
            RequestError: pytest ended without a complete document; its last words are in the message.
            KeyboardInterrupt: the user interrupted; what is complete is kept.
        """
        found = self.done(block, arm)
        if found is not None:
            return found
        path = self.path(block, arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.with_name("pytest.log")
        checkout = self._checkouts[arm]
        command = self.command(block, arm)
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=checkout.folder, env=self._environment(block, arm), stdout=file, stderr=file
            )
            status = _wait(process)
        found = self.done(block, arm) if status in _FINISHED else None
        if found is None:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            raise RequestError(
                f"block {block + 1}, {arm}: pytest ended with status {status} and no complete results. "
                f"The same command goes on from here. {log} ends:\n" + "\n".join(lines)
            )
        return found

    def _environment(self, block: int, arm: str) -> dict[str, str]:
        root = self._checkouts[arm].root
        places = [str(place) for place in (root / "src", root) if place.is_dir()]
        if os.environ.get("PYTHONPATH"):
            places.append(os.environ["PYTHONPATH"])
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")},
            "PYTHONPATH": os.pathsep.join(places),
            REPLAY_SESSION: f"{self.plan.seed}/{block}/{arm}",
        }


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for pytest; an interrupt lets it write what it has, and then goes on up."""
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
