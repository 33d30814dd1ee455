"""What can go wrong, and what to do about it."""

from __future__ import annotations

import enum
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


class LLMEnergyError(Exception):
    """Every error of this package; its message names the remedy."""


class RequestError(LLMEnergyError):
    """The request or the input is wrong; the command line ends with status 2."""


class DocumentError(RequestError):
    """A file cannot be read as what it should be."""

    def __init__(self, path: Path | str, problem: str, remedy: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {problem}" + (f" {remedy}" if remedy else ""))


def unreadable(path: Path, error: OSError, remedy: str = "") -> DocumentError:
    """A file that cannot be read; of a missing one, the files whose names are near."""
    guess = "Check the path."
    if isinstance(error, FileNotFoundError):
        if not path.parent.exists():
            guess = f"There is no folder {path.parent}."
        elif near := _near(path):
            guess = f"Did you mean {' or '.join(near)}?"
    return DocumentError(path, f"cannot be read ({error.strerror}).", f"{guess} {remedy}".strip())


def _near(path: Path) -> list[str]:
    import difflib

    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, names, cutoff=0.7)]


class MissingExtraError(RequestError):
    """A stage was asked for whose packages are not installed."""

    def __init__(self, feature: str, extra: str, package: str) -> None:
        self.extra = extra
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed. "
            f"Run: pip install 'pytest-llmenergy[{extra}]'"
        )


class WrongWorkError(LLMEnergyError):
    """A trial did other work than the cell says (a wrong number of tokens, say)."""


class DoesNotFitError(LLMEnergyError):
    """A model, or a cell of it, needs more memory than the machine has; sizes are None where unknown."""

    def __init__(self, message: str, *, needed_b: int | None = None, available_b: int | None = None) -> None:
        self.needed_b = needed_b
        self.available_b = available_b
        super().__init__(message)


class EngineError(LLMEnergyError):
    """An engine of its own process failed while it served."""


class Unavailable(enum.StrEnum):
    """Why a meter gives no reading."""

    NOT_INSTALLED = "not-installed"
    NO_DEVICE = "no-device"
    NO_PERMISSION = "no-permission"
    NOT_SUPPORTED = "not-supported"
    READ_FAILED = "read-failed"


class MeterUnavailableError(LLMEnergyError):
    """A meter cannot be opened; callers branch on `reason`, people read the message."""

    def __init__(self, meter: str, reason: Unavailable, problem: str, remedy: str = "") -> None:
        self.meter = meter
        self.reason = reason
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{meter}: {problem}" + (f" {remedy}" if remedy else ""))


def require(module: str, *, feature: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, something it needs is not
        raise MissingExtraError(feature, extra, module.partition(".")[0]) from error
