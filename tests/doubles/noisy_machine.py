"""Sessions of a machine whose noise and whose true change are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.readings import Reading, Session
from pytest_llmenergy.records import Campaign, Cell, Provenance

if TYPE_CHECKING:
    import random

AXIS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def cells(n: int, model: str = "mistral-7b") -> list[Cell]:
    """The first n cells of the 9 x 9 grid."""
    grid = [(tokens_in, tokens_out) for tokens_in in AXIS for tokens_out in AXIS]
    return [
        Cell(model=model, system="replay", n_gpus=1, batch_size=32, kv_cache=False, tokens_in=i, tokens_out=o)
        for i, o in grid[:n]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyMachine:
    """Relative noise of trials and sessions, all log-normal; drift and spikes as on a warm, busy machine."""

    trial: float = 0.01
    session: float = 0.0
    drift: float = 0.0  # over the whole campaign, linear
    spike_share: float = 0.0
    spike: float = 0.06

    def session_of(
        self,
        members: list[Cell],
        draw: random.Random,
        *,
        trials: int,
        changes: dict[Cell, float] | None = None,
        everywhere: float = 0.0,
        from_s: float = 0.0,
        to_s: float = 0.0,
    ) -> Session:
        """One session; it stands in the campaign's drift from `from_s` to `to_s`, shares of the whole."""
        shift = draw.gauss(0, self.session)
        order = list(range(len(members)))
        draw.shuffle(order)
        readings = {}
        for position, index in enumerate(order):
            cell = members[index]
            at = from_s + (to_s - from_s) * position / len(members)
            change = (changes or {}).get(cell, 0.0) + everywhere
            level = math.log(cell.tokens_in + 10) + math.log1p(change) + shift + math.log1p(self.drift * at)
            logs = tuple(
                level
                + draw.gauss(0, self.trial)
                + (math.log1p(self.spike) if draw.random() < self.spike_share else 0.0)
                for _ in range(trials)
            )
            readings[cell] = Reading(logs=logs, metric="energy_j", provenance=Provenance.MEASURED)
        return Session(name="simulated", campaign=Campaign(cells=()), readings=readings)

    def blocks(
        self,
        members: list[Cell],
        draw: random.Random,
        *,
        blocks: int,
        trials: int,
        changes: dict[Cell, float] | None = None,
        everywhere: float = 0.0,
    ) -> list[tuple[Session, Session]]:
        """Blocks of base and head in random order, in one drift."""
        found = []
        for k in range(blocks):
            halves = [(2 * k / (2 * blocks), (2 * k + 1) / (2 * blocks))]
            halves.append((halves[0][1], (2 * k + 2) / (2 * blocks)))
            draw.shuffle(halves)
            base = self.session_of(members, draw, trials=trials, from_s=halves[0][0], to_s=halves[0][1])
            head = self.session_of(
                members,
                draw,
                trials=trials,
                changes=changes,
                everywhere=everywhere,
                from_s=halves[1][0],
                to_s=halves[1][1],
            )
            found.append((base, head))
        return found
