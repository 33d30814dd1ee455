"""The results document: its codec and its schema.

History of the format:
  llmenergy.results/1  the first.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pytest_llmenergy.campaign.summary import with_summary
from pytest_llmenergy.errors import DocumentError, RequestError, unreadable
from pytest_llmenergy.records import RESULTS_SCHEMA, Campaign

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
RESULTS_NAME = "results.json"
_BUFFER = 1 << 20  # bytes: a million trials come in pieces of a cell
_BYTE = re.compile(r"\(byte (?P<byte>\d+)\)")


def encode(campaign: Campaign) -> bytes:
    """The document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(campaign), indent=1) + b"\n"


def read_results(path: Path) -> Campaign:
    """Read a results document.

    Raises:
        DocumentError: it is missing, no JSON, of another schema or version, or does not fit the schema.
    """
    path, text = read_document(path)
    campaign = decode(path, text, Campaign)
    return msgspec.structs.replace(campaign, cells=tuple(with_summary(cell) for cell in campaign.cells))


def read_document(path: Path) -> tuple[Path, bytes]:
    """The file of a results document, or of the one in a folder, and its content.

    Raises:
        DocumentError: it cannot be read.
    """
    try:
        return path, path.read_bytes()
    except IsADirectoryError:
        return read_document(path / RESULTS_NAME)
    except OSError as error:
        raise unreadable(path, error) from error


def decode(path: Path, text: bytes, kind: type[T]) -> T:
    """Decode a results document into its records, or into a struct of those fields a reader needs.

    Raises:
        DocumentError: it is no JSON, of another schema or version, or does not fit the schema.
    """
    try:
        document = msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_other_schema(path, text)
        if not text.strip():
            remedy = "Measure again, or go on with --llm-energy-resume."
            raise DocumentError(path, "is empty.", remedy) from error
        place, remedy = _place(text, str(error))
        if path.suffix == ".csv":
            remedy = "Make one of a table with `llmenergy-report import`."
        raise DocumentError(path, f"{place}is not a results document: {error}.", remedy) from error
    _refuse_other_schema(path, text)
    return document


def _place(text: bytes, problem: str) -> tuple[str, str]:
    """The line of what is no JSON, and what to do of the one mistake that JSON libraries make."""
    found = _BYTE.search(problem)
    if found is None:
        return "", ""
    at = int(found["byte"])
    remedy = "NaN and infinity are no JSON: write null where a figure is unknown."
    is_not_a_number = text[at:].lstrip(b"-+").startswith((b"NaN", b"nan", b"Infinity", b"inf"))
    line = text.count(b"\n", 0, at) + 1
    return f"line {line}: ", remedy if is_not_a_number else ""


class _SchemaOnly(msgspec.Struct):
    schema: str | None = None


def _refuse_other_schema(path: Path, text: bytes) -> None:
    try:
        schema = msgspec.json.decode(text, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # no JSON object at all: the caller's message says where
    if schema != RESULTS_SCHEMA:
        name = RESULTS_SCHEMA.partition("/")[0]
        other = (schema or "").startswith("llmenergy.") and not (schema or "").startswith(f"{name}/")
        raise DocumentError(
            path,
            f"has schema {schema!r}; this version reads {RESULTS_SCHEMA!r}.",
            "It is another document of ours: give the results it was made from."
            if other
            else "Use the pytest-llmenergy that wrote it, or a newer one.",
        )


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all; a large one may come in pieces.

    Raises:
        RequestError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb", buffering=_BUFFER) as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RequestError(
            f"cannot write {path} ({error.strerror}). Choose another place, or mend its permissions."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_results(path: Path, campaign: Campaign) -> None:
    """Write a results document whole or not at all."""
    write_atomically(path, encode(campaign))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a results document, made from the records themselves."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": RESULTS_SCHEMA}
    document: dict[str, Any] = json.loads(msgspec.json.encode(schema | msgspec.json.schema(Campaign)))
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write any JSON document of ours, whole or not at all; NaN is refused, unknown is null."""
    write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
