"""One cell's trials: warm-up, then calls in windows until the stopping rule says so.

A window holds as many calls back to back as its meters need to be sure of the energy. A trial that something
disturbed is repeated; where the disturbance does not end, it is the condition of the measurement and counts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pytest_llmenergy import student_t
from pytest_llmenergy.campaign.repetitions import bound_rel, repetitions_for
from pytest_llmenergy.campaign.stopping import describe
from pytest_llmenergy.campaign.summary import energy_basis, energy_of
from pytest_llmenergy.errors import WrongWorkError
from pytest_llmenergy.records import PHASES, DomainEnergy, Phase, Provenance, Stop, Trial
from pytest_llmenergy.units import format_percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from pytest_llmenergy.campaign.stopping import StopRule
    from pytest_llmenergy.meters.window import Meters, Window

    Working = Callable[[], AbstractContextManager[None]]

SPOILED_IN_A_ROW = 5  # after so many trials without a reading, the next one will have none either
DISTURBED_IN_A_ROW = 5  # after so many disturbed trials, the next one will be disturbed too
_DISTURBED = "disturbed: "
_WINDOW_TOO_SHORT = "the window was too short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A call that is recorded and marked, not counted."""

    first_after_load: bool = False


@dataclass(slots=True)
class Trials:
    """What has been measured of one cell so far."""

    rule: StopRule
    trials: list[Trial] = field(default_factory=list)
    stop: Stop | None = None
    error: str | None = None
    tolerates_disturbance: bool = False

    @property
    def attempts(self) -> list[Trial]:
        """The trials that are no warm-up."""
        return [trial for trial in self.trials if not trial.warmup]

    def tolerate_disturbance(self) -> None:
        """From now on count what something has disturbed; it keeps its flags."""
        self.tolerates_disturbance = True
        self.trials = [
            msgspec.structs.replace(trial, excluded=None) if _is_disturbed(trial) else trial
            for trial in self.trials
        ]

    @property
    def counted(self) -> list[Trial]:
        """The trials that enter means and intervals."""
        return [trial for trial in self.trials if trial.counts]

    def figures(self) -> tuple[list[float], list[float | None]]:
        """Runtimes in s and energies in J of the counted trials."""
        counted = self.counted
        basis = energy_basis(counted)
        return [trial.runtime_s for trial in counted], [energy_of(trial, basis) for trial in counted]

    def stopped(self, reason: str) -> Stop:
        """Stop for a reason that is no rule's."""
        runtimes_s, energies_j = self.figures()
        return describe(reason, runtimes_s, energies_j, self.rule.confidence)


class OnTrial(Protocol):
    """Called after each trial, before the next: the journal, the progress line."""

    def __call__(self, trials: Trials, trial: Trial) -> None:
        """Take note."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Trials that are split into prefill and decode, after those that count and beside them."""

    trials: int
    call: Callable[[Callable[[], None]], Any]  # the same work; calls its argument at the first token
    decode_steps: int  # tokens a sequence gets after its first


def run_trials(
    call: Callable[[], Any],
    *,
    meters: Meters,
    rule: StopRule,
    verify: Callable[[Any], int | None],
    warmups: Sequence[Warmup] = (),
    window_error: float | None = None,
    on_trial: OnTrial,
    working: Working = contextlib.nullcontext,
    account: Callable[[Any, float], dict[str, Any]] | None = None,
    split: Split | None = None,
) -> Trials:
    """Measure a call until the rule says so.

    A trial whose work is wrong ends the cell with an error; one whose reading failed is excluded with the
    reason and repeated. An exception of the call itself is raised, after what was measured has been noted.

    Args:
        call: the work; it alone runs inside the window.
        meters: what watches it.
        rule: when to stop.
        verify: the tokens generated, counted on the call's own result; raises WrongWorkError.
        warmups: calls before the first counted one.
        window_error: a window holds so many calls that the meters' error bound is below this share of its
            energy; None: always one.
        on_trial: told of every trial as soon as it is there.
        working: is around the calls of each window: what runs there may be interrupted.
        account: what a call's result and runtime say beside its tokens: `ttft_s`, `tpot_s`, and details of
            the trial; raises WrongWorkError.
        split: more trials, split into phases; they do not count, since the mark disturbs them.
    """
    __tracebackhide__ = True  # what the call raises is its own
    measuring = _Measuring(Trials(rule), call, meters, verify, on_trial, working, account, window_error)
    cell = measuring.cell
    for warmup in warmups:
        measuring.one(warmup)
        if cell.stop is not None:
            return cell
    while cell.stop is None:
        measuring.one(None)
        if not cell.tolerates_disturbance and _is_always_disturbed(cell):
            cell.tolerate_disturbance()
        cell.stop = cell.stop or rule.decide(*cell.figures()) or _given_up(cell)
    if split is not None and cell.error is None:
        for _ in range(split.trials):
            measuring.in_phases(split)
    return cell


@dataclass(slots=True)
class _Measuring:
    cell: Trials
    call: Callable[[], Any]
    meters: Meters
    verify: Callable[[Any], int | None]
    on_trial: OnTrial
    working: Working
    account: Callable[[Any, float], dict[str, Any]] | None
    window_error: float | None
    repetitions: int = 1

    def one(self, warmup: Warmup | None) -> None:
        """Measure one trial and note it; wrong work stops the cell."""
        __tracebackhide__ = True
        outputs: list[Any] = []
        with self.meters.window() as window, self.working():
            for _ in range(1 if warmup is not None else self.repetitions):
                # A comprehension would be a frame in the traceback of what it raises.
                outputs.append(self.call())  # noqa: PERF401
        how = {"warmup": warmup is not None, "first_after_load": _is_first(warmup)}
        self._note(outputs, window, how)

    def in_phases(self, split: Split) -> None:
        """Measure one trial in two windows that meet at the first token, and note it."""
        decode: list[Window] = []
        with self.meters.window() as whole, contextlib.ExitStack() as stack:
            prefill = stack.enter_context(self.meters.window("prefill"))

            def at_first_token() -> None:
                stack.close()  # waits for the GPU, and ends the window
                decode.append(stack.enter_context(self.meters.window("decode")))

            with self.working():
                output = split.call(at_first_token)
        found: dict[str, Any] = {
            "excluded": PHASES,
            "phases": tuple(_phase(window) for window in (prefill, *decode)),
            "ttft_s": prefill.runtime_s,
        }
        if decode and split.decode_steps and decode[0].runtime_s is not None:
            found["tpot_s"] = decode[0].runtime_s / split.decode_steps
        self._note([output], whole, found)

    def _note(self, outputs: list[Any], window: Window, found: dict[str, Any]) -> None:
        """Count what the calls of a window did, and note the trial."""
        tokens, wrong = None, None
        repetitions = len(outputs)
        times_s: dict[str, list[float]] = {}
        try:
            for output in outputs:
                tokens = self.verify(output)
                if self.account is not None and window.runtime_s is not None:
                    details = self.account(output, window.runtime_s / repetitions)
                    for name in ("ttft_s", "tpot_s"):
                        if name in details:
                            times_s.setdefault(name, []).append(details.pop(name))
                    found["details"] = details
        except WrongWorkError as error:
            wrong = str(error)
        found |= {name: student_t.mean(values) for name, values in times_s.items()}
        outputs.clear()
        trial = _trial(len(self.cell.trials), window, repetitions, tokens, found)
        trial = msgspec.structs.replace(trial, excluded=wrong or trial.excluded or self._why_not(trial))
        self.cell.trials.append(trial)
        if wrong is not None:
            self.cell.error = wrong
            self.cell.stop = self.cell.stopped("failed")
        self.on_trial(self.cell, trial)

    def _why_not(self, trial: Trial) -> str | None:
        """Why the trial does not count; the next window is made long enough."""
        needed = trial.repetitions
        if self.window_error is not None:
            needed = repetitions_for(trial, self.window_error)
            self.repetitions = max(self.repetitions, needed)
        lost = spoiled(trial.domains)
        if needed > trial.repetitions and not trial.warmup:
            by = bound_rel(trial.domains)
            known = "not known" if by is None else f"known to {format_percent(by)} only"
            return f"{_WINDOW_TOO_SHORT}: its energy is {known}"
        if lost is None and trial.flags and not trial.warmup and not self.cell.tolerates_disturbance:
            return _DISTURBED + "; ".join(trial.flags)
        return lost


def _is_first(warmup: Warmup | None) -> bool:
    return warmup is not None and warmup.first_after_load


def _phase(window: Window) -> Phase:
    return Phase(name=window.label, runtime_s=window.runtime_s or 0.0, domains=window.domains)


def _trial(index: int, window: Window, repetitions: int, tokens: int | None, found: dict[str, Any]) -> Trial:
    """One call's figures: the window's over the calls it held."""
    domains = window.domains
    if window.runtime_s is None:
        raise AssertionError("the window is still open")
    return Trial(
        index=index,
        runtime_s=window.runtime_s / repetitions,
        domains=tuple(_per_call(part, repetitions) for part in domains),
        repetitions=repetitions,
        tokens_generated=tokens,
        started_s=window.started_s,
        flags=window.flags,
        meter_cpu_s=None if window.meter_cpu_s is None else window.meter_cpu_s / repetitions,
        **found,
    )


def _per_call(part: DomainEnergy, repetitions: int) -> DomainEnergy:
    return msgspec.structs.replace(
        part,
        energy_j=None if part.energy_j is None else part.energy_j / repetitions,
        bound_j=None if part.bound_j is None else part.bound_j / repetitions,
    )


def _is_disturbed(trial: Trial) -> bool:
    return trial.excluded is not None and trial.excluded.startswith(_DISTURBED)


def _is_spoiled(trial: Trial) -> bool:
    """Whether there was no reading; a window that was too short is followed by a longer one."""
    excluded = trial.excluded or ""
    return bool(excluded) and not excluded.startswith((_DISTURBED, _WINDOW_TOO_SHORT))


def _is_always_disturbed(cell: Trials) -> bool:
    attempts = cell.attempts
    last = attempts[-DISTURBED_IN_A_ROW:]
    if len(last) == DISTURBED_IN_A_ROW and all(map(_is_disturbed, last)):
        return True
    # One that comes and goes is the condition, too, once most readings of a whole cap of trials have it.
    read = len(attempts) - sum(map(_is_spoiled, attempts))
    return len(attempts) >= cell.rule.max_trials and 2 * sum(map(_is_disturbed, attempts)) > read


def spoiled(domains: Sequence[DomainEnergy]) -> str | None:
    """Why a trial's energy is not whole: the reasons of the domains that gave no reading."""
    lost = [part for part in domains if part.provenance is Provenance.UNAVAILABLE]
    return "; ".join(f"{part.domain}: {part.reason or 'no reading'}" for part in lost) or None


def _given_up(cell: Trials) -> Stop | None:
    attempts = cell.attempts
    last = attempts[-SPOILED_IN_A_ROW:]
    hopeless = len(last) == SPOILED_IN_A_ROW and all(map(_is_spoiled, last))
    if not hopeless and len(attempts) < 2 * cell.rule.max_trials:
        return None
    if len(cell.counted) < cell.rule.min_trials:
        cell.error = f"{len(cell.counted)} usable trials of {len(attempts)}; the last: {last[-1].excluded}"
    return cell.stopped("no-reading")
