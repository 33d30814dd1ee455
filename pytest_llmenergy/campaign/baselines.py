"""Stored baselines: `.llmenergy/<machine>/NNNN_<name>.json`, as pytest-benchmark keeps its own.

A file is a results document as it was written; its number says the order. Files of other machines lie in
other folders and are never looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.campaign.results import RESULTS_NAME, encode
from pytest_llmenergy.environment import fingerprint, system_name
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from pytest_llmenergy.records import Campaign, Environment

STORE = Path(".llmenergy")
_STORED = re.compile(r"(?P<number>\d{4,})_(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def machine_folder(environment: Environment) -> str:
    """A folder name that is equal for campaigns whose joules may be compared, and that a person can read."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", system_name(environment)).strip("-").lower()
    return f"{words[:40].strip('-')}-{(environment.fingerprint or fingerprint(environment))[:8]}"


def check_name(name: str) -> str:
    """A name a baseline may be saved under.

    Raises:
        RequestError: it could not be a file's name everywhere, or would read as a number.
    """
    if not _NAME.fullmatch(name) or name.isdigit():
        raise RequestError(
            f"{name!r} cannot name a baseline: use letters, digits, '.', '_' and '-', and not digits alone."
        )
    return name


def save_baseline(campaign: Campaign, name: str, store: Path = STORE) -> Path:
    """Store a campaign under the next number; returns its file.

    Raises:
        RequestError: the name cannot be used, or the folder cannot be written.
    """
    check_name(name)
    folder = store / machine_folder(campaign.environment)
    content = encode(campaign)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path) for path in stored(folder)), default=0)
        while True:
            path = folder / f"{number:04d}_{name}.json"
            taken = any(_number(other) == number for other in stored(folder))
            if not taken and _create(path, content):
                return path
            number += 1
    except OSError as error:
        raise RequestError(
            f"cannot write the baseline to {folder} ({error.strerror}). Choose another store, or mend its "
            "permissions."
        ) from error


def _create(path: Path, content: bytes) -> bool:
    """Write a file that must not be there yet; two runs that end together get two numbers."""
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_bytes(content)
    try:
        path.hardlink_to(whole)
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    return True


def stored(folder: Path) -> list[Path]:
    """The baselines of one machine's folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _STORED.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    found = _STORED.fullmatch(path.name)
    return 0 if found is None else int(found["number"])


def _name(path: Path) -> str:
    found = _STORED.fullmatch(path.name)
    return "" if found is None else found["name"]


def find_baselines(wanted: str, environment: Environment, store: Path = STORE) -> list[Path]:
    """The documents that a name means, oldest first.

    Args:
        wanted: a results document; a folder that holds one, or that holds stored baselines; else the name
            of stored baselines of this machine (all of them), or the number of one.
        environment: of the run to be judged.
        store: where baselines are kept.

    Raises:
        RequestError: there is none; the message says where it looked and what is there.
    """
    path = Path(wanted)
    if path.is_dir():
        within = stored(path)
        if within or (path / RESULTS_NAME).exists():
            return within or [path / RESULTS_NAME]
        raise RequestError(f"the folder {path} holds neither {RESULTS_NAME} nor stored baselines.")
    if path.exists() or path.suffix == ".json":
        return [path]
    folder = store / machine_folder(environment)
    there = stored(folder)
    number = int(wanted) if wanted.isdigit() else None
    found = [p for p in there if wanted in {_name(p), p.stem} or _number(p) == number]
    if not found:
        names = ", ".join(dict.fromkeys(_name(p) for p in there)) or "none"
        others = sorted(
            p.parent.name for p in store.glob("*/*.json") if p.parent != folder and _name(p) == wanted
        )
        elsewhere = f" Other machines have it ({', '.join(dict.fromkeys(others))})." if others else ""
        raise RequestError(
            f"no baseline {wanted!r} in {folder} (there: {names}).{elsewhere} "
            f"Save one on this machine with --llm-energy-save {wanted}, or name a results document."
        )
    return found
