"""A machine whose true energy and runtime are known: what replay meters and replay backends stand on.

It has a clock of its own, so a campaign of hours runs in milliseconds and nothing is slept on. A replay file
(TOML, schema llmenergy.replay/1) holds the truth; docs/replay.md describes it.
"""

from __future__ import annotations

import random
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmenergy.errors import DocumentError, RequestError, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPLAY_SCHEMA = "llmenergy.replay/1"


class Coefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one call costs: the step is shared by the batch, the rest is per sequence of it.

    Without a KV cache, step j passes all tokens_in + j positions; with one, the prompt once and then one
    token a step, which reads the context before it.
    """

    constant: float = 0.0
    step: float = 0.0
    token_pass: float = 0.0
    pair: float = 0.0  # without a cache: per pair of positions attended; with one: of the prompt
    context_read: float = 0.0  # with a cache: per position of context read by a decode step

    def evaluate(self, tokens_in: int, tokens_out: int, batch_size: int, *, kv_cache: bool) -> float:
        """The cost of one call (docs/fits.md derives the sums)."""
        t, n = tokens_in, tokens_out
        if kv_cache:
            passes = t + (n - 1)
            pairs = t * t
            contexts = (n - 1) * t + n * (n - 1) // 2
        else:
            passes = n * t + n * (n - 1) // 2
            pairs = n * t * t + t * n * (n - 1) + (n - 1) * n * (2 * n - 1) // 6
            contexts = 0
        per_sequence = self.token_pass * passes + self.pair * pairs + self.context_read * contexts
        return self.constant + self.step * n + batch_size * per_sequence


class ReplayModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's truth: runtime, and energy by domain."""

    name: str
    runtime_s: Coefficients
    energy_j: dict[str, Coefficients]
    kv_runtime_s: Coefficients | None = None  # with a KV cache; as without one where absent
    kv_energy_j: dict[str, Coefficients] | None = None
    max_tokens: int | None = None


class Noise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Relative noise on a call's energy and runtime."""

    trial: float = 0.0  # normal, each call
    session: float = 0.0  # normal, once a session
    drift: float = 0.0  # grows linearly to this over drift_calls calls
    drift_calls: int = 1000
    spike_share: float = 0.0  # share of the calls that cost spike more
    spike: float = 0.0


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A true change of the cells that match; a field left out matches all."""

    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    energy: float = 1.0
    runtime: float = 1.0


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A replay file."""

    schema: str
    models: tuple[ReplayModel, ...]
    seed: int = 0
    estimated: tuple[str, ...] = ()  # domains whose joules are to be marked as estimates
    idle_power_w: dict[str, float] = {}  # drawn by a domain whenever no call runs
    noise: Noise = Noise()
    changes: tuple[Change, ...] = ()


def read_replay(path: Path) -> Replay:
    """Read a replay file.

    Raises:
        DocumentError: it is missing, no TOML, or not of the schema.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        replay = msgspec.convert(document, Replay)
    except OSError as error:
        raise unreadable(path, error) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise DocumentError(path, f"is not a replay file: {error}.", "See docs/replay.md.") from error
    if replay.schema != REPLAY_SCHEMA:
        raise DocumentError(path, f"has schema {replay.schema!r}; this version reads {REPLAY_SCHEMA!r}.")
    return replay


class World:
    """The simulated machine: a clock and a joule counter a domain, moved by `call` and `idle` alone."""

    def __init__(self, replay: Replay, *, session: int | str = 0) -> None:
        self.replay = replay
        self.now_s = 0.0
        self.energy_j = {domain: 0.0 for model in replay.models for domain in model.energy_j}
        self._models = {model.name: model for model in replay.models}
        self._random = random.Random(f"{replay.seed}/{session}")  # noqa: S311 - noise, not secrets
        self._calls = 0
        self._shift = 1 + replay.noise.session * self._random.gauss(0, 1)

    @property
    def models(self) -> dict[str, ReplayModel]:
        """The models by name."""
        return self._models

    def model(self, name: str) -> ReplayModel:
        """The model of that name.

        Raises:
            RequestError: the replay file has no such model.
        """
        if name not in self._models:
            raise RequestError(
                f"the replay file has no model {name!r}; it has {', '.join(sorted(self._models))}."
            )
        return self._models[name]

    def truth(
        self, name: str, tokens_in: int, tokens_out: int, batch_size: int, *, kv_cache: bool
    ) -> tuple[float, dict[str, float]]:
        """A call's runtime in s and energy in J by domain, without noise."""
        model = self.model(name)
        runtime = model.runtime_s
        energies = model.energy_j
        if kv_cache:
            runtime = model.kv_runtime_s or runtime
            energies = model.kv_energy_j or energies
        energy_factor = runtime_factor = 1.0
        for change in self.replay.changes:
            wanted = (change.model, change.tokens_in, change.tokens_out)
            if all(w in (None, v) for w, v in zip(wanted, (name, tokens_in, tokens_out), strict=True)):
                energy_factor *= change.energy
                runtime_factor *= change.runtime

        def cost(coefficients: Coefficients) -> float:
            return coefficients.evaluate(tokens_in, tokens_out, batch_size, kv_cache=kv_cache)

        return (
            runtime_factor * cost(runtime),
            {domain: energy_factor * cost(coefficients) for domain, coefficients in energies.items()},
        )

    def call(
        self,
        name: str,
        tokens_in: int,
        tokens_out: int,
        batch_size: int,
        *,
        kv_cache: bool,
        on_first_token: Callable[[], None] | None = None,
    ) -> None:
        """Run one call: the clock and the counters move by its noisy cost, in two moves where one is marked.

        The cost up to the first token is that of a call of one token.
        """
        runtime_s, energies_j = self.truth(name, tokens_in, tokens_out, batch_size, kv_cache=kv_cache)
        noise = self.replay.noise
        factor = self._shift * (1 + noise.drift * min(1.0, self._calls / noise.drift_calls))
        factor *= 1 + noise.trial * self._random.gauss(0, 1)
        if self._random.random() < noise.spike_share:
            factor *= 1 + noise.spike
        self._calls += 1
        slower = 1 + noise.trial * self._random.gauss(0, 1)
        if on_first_token is not None:
            first_s, first_j = self.truth(name, tokens_in, 1, batch_size, kv_cache=kv_cache)
            self._move(first_s * slower, first_j, factor)
            on_first_token()
            runtime_s -= first_s
            energies_j = {domain: energy_j - first_j[domain] for domain, energy_j in energies_j.items()}
        self._move(runtime_s * slower, energies_j, factor)

    def _move(self, runtime_s: float, energies_j: dict[str, float], factor: float) -> None:
        self.now_s += runtime_s
        for domain, energy_j in energies_j.items():
            self.energy_j[domain] += energy_j * factor

    def idle(self, seconds: float) -> None:
        """Let time pass at idle power."""
        self.now_s += seconds
        for domain, power_w in self.replay.idle_power_w.items():
            self.energy_j[domain] = self.energy_j.get(domain, 0.0) + power_w * seconds

    def clock(self) -> float:
        """Seconds on the simulated machine's clock."""
        return self.now_s


def open_world(path: Path, **options: Any) -> World:
    """Read a replay file and start its machine."""
    return World(read_replay(path), **options)
