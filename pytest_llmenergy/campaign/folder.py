"""The folder of a campaign: begun anew beside a former one, or gone on with."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.campaign.journal import JOURNAL_NAME, Event, Journal, Opened, refuse_if_held
from pytest_llmenergy.campaign.results import RESULTS_NAME
from pytest_llmenergy.environment import differences
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.campaign.observer import Observer
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.records import Environment

TRACE_NAME = "trace.parquet"
GATE_NAME = "gate.json"
FILES = (JOURNAL_NAME, RESULTS_NAME, TRACE_NAME, GATE_NAME)  # all that a campaign may leave in its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A campaign's folder, held by this process."""

    path: Path
    journal: Journal
    created: str  # when the campaign began
    events: tuple[Event, ...] = ()  # of the sessions before, where it is gone on with
    kept: Path | None = None  # where a former campaign of the same folder went

    def put_back(self, observer: Observer) -> None:
        """Give the former campaign its place again, where nothing was measured in its stead."""
        if self.kept is None:
            return
        with contextlib.suppress(OSError):
            for path in self.kept.iterdir():
                path.replace(self.path / path.name)
            self.kept.rmdir()
            observer.notice(f"the former campaign is back in {self.path}")


def open_folder(settings: Settings, environment: Environment, observer: Observer) -> Folder:
    """Begin the campaign's journal, or go on with it.

    Raises:
        RequestError: the folder cannot be written, or its journal is of another campaign.
    """
    path = settings.folder / JOURNAL_NAME
    identity = settings.as_document()
    if settings.resume and path.exists():
        return _go_on(path, identity, environment, observer)
    if settings.resume:
        observer.notice(f"nothing to resume in {settings.folder}: the campaign begins")
    refuse_if_held(path)
    kept = _keep_former(settings.folder)
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    opened = Opened(created=created, identity=identity, environment=environment)
    return Folder(path=settings.folder, journal=Journal.create(path, opened), created=created, kept=kept)


def _go_on(path: Path, identity: dict[str, Any], environment: Environment, observer: Observer) -> Folder:
    journal, events = Journal.reopen(path)
    try:
        created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        for event in events:
            if isinstance(event, Opened):
                _refuse_other_campaign(path, event, identity, environment)
                created = event.created
                if event.environment.commit != environment.commit:
                    then = event.environment.commit or "no commit"
                    observer.notice(f"the cells measured before ran on another commit: {then}")
    except BaseException:
        journal.close()
        raise
    return Folder(path=path.parent, journal=journal, created=created, events=tuple(events))


def _refuse_other_campaign(
    path: Path, opened: Opened, identity: dict[str, Any], environment: Environment
) -> None:
    changed = [
        f"{name}: {opened.identity.get(name)!r} then, {identity.get(name)!r} now"
        for name in sorted({*identity, *opened.identity})
        if identity.get(name) != opened.identity.get(name)
    ]
    changed += differences(opened.environment, environment)
    changed += [
        f"{name}: {opened.environment.libraries.get(name)} then, {environment.libraries.get(name)} now"
        for name in sorted({*opened.environment.libraries, *environment.libraries})
        if opened.environment.libraries.get(name) != environment.libraries.get(name)
    ]
    if changed:
        raise RequestError(
            f"{path} is of another campaign ({'; '.join(changed)}). Ask for the same settings on the same "
            "machine and software, or leave --llm-energy-resume out: the former campaign is then kept "
            "beside the new one."
        )


def _keep_former(folder: Path) -> Path | None:
    """Move a former campaign's files into a numbered folder beside the new ones; None if there were none."""
    former = [folder / name for name in FILES if (folder / name).exists()]
    if not former:
        return None
    number = 1
    while (kept := folder / f"former-{number}").exists():
        number += 1
    try:
        kept.mkdir()
        for path in former:
            path.rename(kept / path.name)
    except OSError as error:
        raise RequestError(
            f"cannot keep the former campaign of {folder} ({error.strerror}). "
            "Choose another folder with --llm-energy-results DIR."
        ) from error
    return kept
