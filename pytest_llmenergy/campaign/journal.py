"""What has been measured, on disk as soon as it is there: one JSON line an event, fsynced.

A kill loses at most the line being written. The results document is made from the runner's memory at the
end of the session; the journal is what `--llm-energy-resume` reads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import msgspec

from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.records import CellRecord, Environment, ModelRecord, Trial, WindowRecord

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_SCHEMA = "llmenergy.journal/1"
JOURNAL_NAME = "journal.jsonl"
# Some file systems of clusters (Lustre mounted without flock) have no locks: nothing is refused there.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="opened"):
    """The first line: which campaign this is."""

    schema: str = JOURNAL_SCHEMA
    created: str
    identity: dict[str, Any]  # the settings that a resumed campaign must share
    environment: Environment


class ModelLoaded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="model"):
    """A model was loaded."""

    record: ModelRecord


class IdleDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="idle"):
    """The power of a loaded model at rest."""

    model: str
    idle: dict[str, Any]


class TrialDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="trial"):
    """One trial of the cell of that label."""

    cell: str
    trial: Trial


class CellDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="cell"):
    """A cell has stopped."""

    record: CellRecord


class WindowDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="window"):
    """A window outside any cell has closed."""

    record: WindowRecord


Event = Opened | ModelLoaded | IdleDone | TrialDone | CellDone | WindowDone


class Journal:
    """An open journal."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        _hold(path, file)

    @classmethod
    def create(cls, path: Path, opened: Opened) -> Self:
        """Begin a journal; a former campaign in the same folder is kept under another name.

        Raises:
            RequestError: the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, path.open("xb"))
        except OSError as error:
            raise _unwritable(path, error) from error
        journal.append(opened)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> tuple[Self, list[Event]]:
        """Go on with a journal: its events, a torn last line cut off.

        Raises:
            DocumentError: a line is damaged, or it is no journal of this version.
            RequestError: it cannot be read or written.
        """
        try:
            journal = cls(path, path.open("r+b"))
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            # Held by now: what looks torn may be the line that another run is writing.
            events, whole_b = read_journal(path)
            journal._file.truncate(whole_b)
            journal._file.seek(whole_b)
        except OSError as error:
            journal.close()
            raise _unwritable(path, error) from error
        except BaseException:
            journal.close()
            raise
        return journal, events

    def append(self, event: Event) -> None:
        """Write an event and wait until the disk has it."""
        self._file.write(msgspec.json.encode(event) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _hold(path: Path, file: BinaryIO) -> None:
    """Lock the journal for as long as the file is open; two campaigns in one folder would mix."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RequestError(
            f"another run is measuring into {path.parent}. Wait for it, or choose another folder with "
            "--llm-energy-results DIR."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise


def refuse_if_held(path: Path) -> None:
    """Refuse a folder that another run is measuring into, before its files are moved.

    Raises:
        RequestError: it is held.
    """
    if path.exists():
        with contextlib.suppress(PermissionError), path.open("ab") as file:
            _hold(path, file)


def read_journal(path: Path) -> tuple[list[Event], int]:
    """The events, and the length in bytes of the whole lines.

    Raises:
        DocumentError: a line other than a torn last one is damaged, or it is no journal of this version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror}).") from error
    whole, _, _torn = content.rpartition(b"\n")
    events: list[Event] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            event = msgspec.json.decode(line, type=Event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == 1:
                raise DocumentError(
                    path,
                    f"line 1, which says what campaign this is, is damaged ({error}).",
                    "Leave --llm-energy-resume out: the damaged journal is then kept beside a new one.",
                ) from error
            raise DocumentError(
                path,
                f"line {number} is damaged ({error}).",
                "Delete that line to go on without it (what it held is measured again), or leave "
                "--llm-energy-resume out: the damaged journal is then kept beside a new one.",
            ) from error
        if number == 1 and not (isinstance(event, Opened) and event.schema == JOURNAL_SCHEMA):
            raise DocumentError(
                path,
                f"is not a journal of schema {JOURNAL_SCHEMA!r}.",
                "Leave --llm-energy-resume out to begin anew: it is then kept beside the new one.",
            )
        events.append(event)
    if not events:
        raise DocumentError(path, "is empty.", "Leave --llm-energy-resume out to begin.")
    return events, len(whole) + 1


def _unwritable(path: Path, error: OSError) -> RequestError:
    return RequestError(
        f"cannot write {path} ({error.strerror}). Choose another folder with --llm-energy-results DIR."
    )
