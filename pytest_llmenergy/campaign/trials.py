"""One cell's trials: warm-up, then calls in windows until the stopping rule says so."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmenergy.campaign.results import energy_basis, energy_of
from pytest_llmenergy.campaign.stopping import describe
from pytest_llmenergy.errors import WrongWorkError
from pytest_llmenergy.records import PHASES, DomainEnergy, Phase, Provenance, Stop, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmenergy.campaign.stopping import StopRule
    from pytest_llmenergy.meters.window import Meters, Window

SPOILED_IN_A_ROW = 5  # after so many trials without a reading, the next one will have none either


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
    on_trial: OnTrial,
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
        on_trial: told of every trial as soon as it is there.
        account: what a call's result and runtime say beside its tokens: `ttft_s`, `tpot_s`, and details of
            the trial; raises WrongWorkError.
        split: more trials, split into phases; they do not count, since the mark disturbs them.
    """
    measuring = _Measuring(Trials(rule), call, meters, verify, on_trial, account)
    cell = measuring.cell
    for warmup in warmups:
        measuring.one(warmup)
        if cell.stop is not None:
            return cell
    while cell.stop is None:
        measuring.one(None)
        cell.stop = cell.stop or rule.decide(*cell.figures()) or _given_up(cell)
    if split is not None and cell.error is None:
        for _ in range(split.trials):
            measuring.in_phases(split)
    return cell


@dataclass(frozen=True, slots=True)
class _Measuring:
    cell: Trials
    call: Callable[[], Any]
    meters: Meters
    verify: Callable[[Any], int | None]
    on_trial: OnTrial
    account: Callable[[Any, float], dict[str, Any]] | None

    def one(self, warmup: Warmup | None) -> None:
        """Measure one trial and note it; wrong work stops the cell."""
        with self.meters.window() as window:
            output = self.call()
        self._note(output, window, {"warmup": warmup is not None, "first_after_load": _is_first(warmup)})

    def in_phases(self, split: Split) -> None:
        """Measure one trial in two windows that meet at the first token, and note it."""
        decode: list[Window] = []
        with self.meters.window() as whole, contextlib.ExitStack() as stack:
            prefill = stack.enter_context(self.meters.window("prefill"))

            def at_first_token() -> None:
                stack.close()  # waits for the GPU, and ends the window
                decode.append(stack.enter_context(self.meters.window("decode")))

            output = split.call(at_first_token)
        found: dict[str, Any] = {
            "excluded": PHASES,
            "phases": tuple(_phase(window) for window in (prefill, *decode)),
            "ttft_s": prefill.runtime_s,
        }
        if decode and split.decode_steps and decode[0].runtime_s is not None:
            found["tpot_s"] = decode[0].runtime_s / split.decode_steps
        self._note(output, whole, found)

    def _note(self, output: Any, window: Window, found: dict[str, Any]) -> None:
        tokens, wrong = None, None
        try:
            tokens = self.verify(output)
            if self.account is not None and window.runtime_s is not None:
                details = self.account(output, window.runtime_s)
                for name in ("ttft_s", "tpot_s"):
                    if name in details:
                        found[name] = details.pop(name)
                found["details"] = details
        except WrongWorkError as error:
            wrong = str(error)
        del output
        trial = _trial(len(self.cell.trials), window, tokens, wrong, found)
        self.cell.trials.append(trial)
        if wrong is not None:
            self.cell.error = wrong
            self.cell.stop = self.cell.stopped("failed")
        self.on_trial(self.cell, trial)


def _is_first(warmup: Warmup | None) -> bool:
    return warmup is not None and warmup.first_after_load


def _phase(window: Window) -> Phase:
    return Phase(name=window.label, runtime_s=window.runtime_s or 0.0, domains=window.domains)


def _trial(index: int, window: Window, tokens: int | None, wrong: str | None, found: dict[str, Any]) -> Trial:
    if window.runtime_s is None:
        raise AssertionError("the window is still open")
    return Trial(
        index=index,
        runtime_s=window.runtime_s,
        domains=window.domains,
        tokens_generated=tokens,
        started_s=window.started_s,
        meter_cpu_s=window.meter_cpu_s,
        **{**found, "excluded": wrong or spoiled(window.domains) or found.get("excluded")},
    )


def spoiled(domains: Sequence[DomainEnergy]) -> str | None:
    """Why a trial's energy is not whole: the reasons of the domains that gave no reading."""
    lost = [part for part in domains if part.provenance is Provenance.UNAVAILABLE]
    return "; ".join(f"{part.domain}: {part.reason or 'no reading'}" for part in lost) or None


def _given_up(cell: Trials) -> Stop | None:
    attempts = [trial for trial in cell.trials if not trial.warmup]
    last = attempts[-SPOILED_IN_A_ROW:]
    hopeless = len(last) == SPOILED_IN_A_ROW and not any(trial.counts for trial in last)
    if not hopeless and len(attempts) < 2 * cell.rule.max_trials:
        return None
    if len(cell.counted) < cell.rule.min_trials:
        cell.error = f"{len(cell.counted)} usable trials of {len(attempts)}; the last: {last[-1].excluded}"
    return cell.stopped("no-reading")
