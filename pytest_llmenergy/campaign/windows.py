"""What is metered outside the experiment's cells: callables and blocks of the user's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.campaign.cell import describe_error, refuse_no_count
from pytest_llmenergy.campaign.journal import Event, TrialDone, WindowDone
from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.campaign.trials import Trials, Warmup, run_trials
from pytest_llmenergy.records import Trial, WindowRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llmenergy.campaign.interrupts import Interrupts
    from pytest_llmenergy.campaign.observer import Observer
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.meters.window import Meters, Window


class Windows:
    """Measures callables and blocks, and keeps what they cost.

    Args:
        settings: of the campaign.
        meters: watch them.
        interrupts: may end the work.
        note: takes what is to be kept.
        observer: shows progress.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        meters: Meters,
        interrupts: Interrupts,
        note: Callable[[Event], None],
        observer: Observer,
    ) -> None:
        self.records: list[WindowRecord] = []
        self._settings = settings
        self._meters = meters
        self._interrupts = interrupts
        self._note = note
        self._observer = observer

    def measure(
        self,
        call: Callable[[], Any],
        *,
        label: str,
        tokens_generated: int | None = None,
        test: str | None = None,
    ) -> WindowRecord:
        """Measure any callable until the stopping rule says so; the first call is a warm-up.

        Args:
            call: takes nothing; what it returns is dropped.
            label: its name in the results.
            tokens_generated: by one call, over its whole batch, where it generates tokens.
            test: the test that asked.
        """
        __tracebackhide__ = True  # what a callable raises is its own
        if tokens_generated is not None:
            refuse_no_count("tokens_out", tokens_generated)

        def dropping() -> None:
            __tracebackhide__ = True
            call()

        seen = Trials(self._settings.rule)

        def note(trials: Trials, trial: Trial) -> None:
            nonlocal seen
            seen = trials
            self._note(TrialDone(cell=label, trial=trial))
            self._observer.trial(trials, trial)

        def record() -> WindowRecord:
            counted = seen.counted
            summary = summarise(
                seen.trials, tokens_generated=tokens_generated, confidence=self._settings.rule.confidence
            )
            return WindowRecord(
                label=label,
                runtime_s=summary.runtime_s,
                domains=counted[-1].domains if counted else (),
                tokens_generated=tokens_generated,
                trials=tuple(seen.trials),
                stop=seen.stop,
                summary=summary,
                error=seen.error,
                test=test,
            )

        try:
            run_trials(
                dropping,
                meters=self._meters,
                rule=self._settings.rule,
                verify=lambda _: tokens_generated,
                warmups=(Warmup(),),
                window_error=self._settings.window_error,
                on_trial=note,
                working=self._interrupts.allowed,
            )
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            seen.error = describe_error(error)
            seen.stop = seen.stopped(reason)
            self._keep(record())
            raise
        return self._keep(record())

    @contextlib.contextmanager
    def block(self, label: str, *, test: str | None = None) -> Iterator[Window]:
        """Meter one block; what it cost is kept even when it raises."""
        cut_short: str | None = None
        with contextlib.ExitStack() as stack:
            window = stack.enter_context(self._meters.window(label))
            try:
                with self._interrupts.allowed():
                    yield window
            except BaseException as error:
                cut_short = describe_error(error)
                raise
            finally:
                stack.close()  # closes the window, so that its figures are there
                self._keep(
                    WindowRecord(
                        label=label,
                        runtime_s=window.runtime_s,
                        domains=window.domains,
                        error=cut_short,
                        test=test,
                    )
                )

    def _keep(self, record: WindowRecord) -> WindowRecord:
        self.records.append(record)
        self._note(WindowDone(record=record))
        return record
