"""One cell: what is asked of a model, and the record of what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmenergy.campaign.grid import Place
from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.campaign.trials import Split, Trials, Warmup, run_trials
from pytest_llmenergy.environment import system_name
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import DOES_NOT_FIT, Cell, CellRecord, Environment, Stop

if TYPE_CHECKING:
    from pytest_llmenergy.backends import LoadedModel, Work
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.campaign.trials import OnTrial, Working
    from pytest_llmenergy.errors import DoesNotFitError
    from pytest_llmenergy.meters.window import Meters


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a test asked for."""

    model: str
    work: Work
    settings: Settings
    test: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Where it stands in the campaign's plan."""
        return Place(self.model, self.work.tokens_in, self.work.tokens_out)

    def cell(self, loaded: LoadedModel | None, environment: Environment) -> Cell:
        """The setting; a model that could not be loaded does not know its GPUs."""
        system = None if loaded is None else loaded.system
        return Cell(
            model=self.model,
            system=self.settings.system or system or system_name(environment),
            n_gpus=None if loaded is None else loaded.n_gpus,
            batch_size=self.work.batch_size,
            kv_cache=self.work.kv_cache,
            tokens_in=self.work.tokens_in,
            tokens_out=self.work.tokens_out,
        )


def measure_cell(
    asked: Asked,
    cell: Cell,
    loaded: LoadedModel,
    *,
    meters: Meters,
    is_fresh: bool,
    on_trial: OnTrial,
    working: Working,
) -> CellRecord:
    """Warm up, run trials until the stopping rule says so, and account for the work.

    Args:
        asked: the request.
        cell: its setting.
        loaded: the model.
        meters: what watches it.
        is_fresh: the model has not been called since it was loaded; its first call is recorded apart.
        on_trial: told of every trial as soon as it is there.
        working: is around the calls.

    Raises:
        DoesNotFitError: the cell needs more memory than there is.
    """
    work, settings = asked.work, asked.settings
    request = loaded.prepare(work)
    trials = run_trials(
        lambda: loaded.generate(request),
        meters=meters,
        rule=settings.rule,
        verify=lambda output: loaded.verify(request, output),
        warmups=(*((Warmup(first_after_load=True),) if is_fresh else ()), Warmup()),
        window_error=settings.window_error,
        on_trial=on_trial,
        working=working,
        account=lambda output, runtime_s: {
            **loaded.timings(output),
            **_of_trial(loaded.account(work, runtime_s)),
        },
        split=Split(
            trials=settings.phases if work.tokens_out > 1 else 0,
            call=lambda mark: loaded.generate(request, on_first_token=mark),
            decode_steps=work.tokens_out - 1,
        ),
    )
    record = _record(asked, cell, trials, trials.stop)
    if record.summary is None or not record.summary.runtime_s or trials.error is not None:
        return record
    physics = loaded.account(work, record.summary.runtime_s)
    return msgspec.structs.replace(record, details={**record.details, **physics})


def without_room(
    asked: Asked, cell: Cell, error: DoesNotFitError, trials: Trials | None = None
) -> CellRecord:
    """The record of a cell that does not fit, with the sizes."""
    trials = trials or Trials(asked.settings.rule)
    trials.error = str(error)
    record = _record(asked, cell, trials, trials.stopped(DOES_NOT_FIT))
    sizes = {"needed_b": error.needed_b, "available_b": error.available_b}
    return msgspec.structs.replace(record, details={**record.details, **sizes})


def broken_off(asked: Asked, cell: Cell, reason: str, error: BaseException, trials: Trials) -> CellRecord:
    """The record of a cell whose call raised: what had been measured, and why there is no more."""
    trials.error = describe_error(error)
    return _record(asked, cell, trials, trials.stopped(reason))


def describe_error(error: BaseException) -> str:
    """An exception in one line; an interrupt in words."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _record(asked: Asked, cell: Cell, trials: Trials, stop: Stop | None) -> CellRecord:
    return CellRecord(
        **msgspec.structs.asdict(cell),
        trials=tuple(trials.trials),
        stop=stop,
        summary=summarise(
            trials.trials,
            tokens_generated=cell.tokens_generated,
            confidence=asked.settings.rule.confidence,
        ),
        error=trials.error,
        test=asked.test,
        details=dict(asked.details),
    )


def _of_trial(physics: dict[str, Any]) -> dict[str, Any]:
    """What of a call's physics differs from trial to trial; the rest stands in the cell once."""
    return {name: physics[name] for name in ("flops_per_s", "mfu") if physics.get("mfu") is not None}


def refuse_no_count(name: str, count: object) -> None:
    """Token counts and batch sizes are whole numbers from 1 on.

    Raises:
        RequestError: this one is not.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"{name} must be a whole number of at least 1, not {count!r}.")
