"""Two revisions of a project side by side: git worktrees, with environments of their own where needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmenergy.errors import RequestError

ENVIRONMENT = ".llmenergy-venv"
_DONE = ".llmenergy-setup-done"
# What says which packages a checkout needs; pyproject.toml is compared by its tables.
_REQUIREMENTS = ("requirements*.txt", "constraints*.txt", "*.lock", "setup.py", "setup.cfg")
_SOURCES = ("*.py", "*.toml", "*.cfg", "*.ini")  # not what a test run leaves behind
_TABLES = ("build-system", "dependency-groups")
_FIELDS = ("dependencies", "optional-dependencies", "requires-python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """Where an arm's tests run, and with which interpreter."""

    root: Path
    folder: Path  # the folder within, as the command was given in
    python: Path


class Repository:
    """The git repository that a folder is in."""

    def __init__(self, folder: Path) -> None:
        """Find it.

        Raises:
            RequestError: there is none.
        """
        self.folder = folder
        try:
            self.root = Path(_git(folder, "rev-parse", "--show-toplevel"))
        except RequestError as error:
            raise RequestError(
                f"{folder} is in no git repository, so there are no revisions to compare. Leave out --base "
                "and --head, and give two settings of this checkout: --base-args, --head-args."
            ) from error

    def commit(self, revision: str) -> str:
        """The commit of a revision.

        Raises:
            RequestError: there is no such revision.
        """
        try:
            return _git(self.root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
        except RequestError as error:
            raise RequestError(
                f"git knows no revision {revision!r}. In CI, fetch it first (fetch-depth: 0)."
            ) from error

    def working_tree(self) -> str:
        """The working tree's name: its commit, and a hash of what is not committed."""
        head = _git(self.root, "rev-parse", "HEAD")
        changes = _git(self.root, "diff", "HEAD").encode()
        new = _git(self.root, "ls-files", "--others", "--exclude-standard", "--", *_SOURCES)
        for name in new.splitlines():
            changes += name.encode() + (self.root / name).read_bytes()
        if not changes:
            return head
        return f"{head}+{hashlib.sha256(changes).hexdigest()[:12]}"

    def needs_differ(self, one: str, other: str) -> bool:
        """Whether two commits ask for different packages."""
        named = _git(self.root, "diff", "--name-only", one, other, "--", *_REQUIREMENTS)
        return bool(named) or self._needs(one) != self._needs(other)

    def _needs(self, commit: str) -> dict[str, Any]:
        try:
            document = tomllib.loads(_git(self.root, "show", f"{commit}:pyproject.toml"))
        except (RequestError, tomllib.TOMLDecodeError):
            return {}
        project = document.get("project", {})
        return {name: document.get(name) for name in _TABLES} | {name: project.get(name) for name in _FIELDS}

    def add_worktree(self, path: Path, commit: str) -> Path:
        """Check a commit out beside the working tree; one that is there already is used again."""
        if path.exists():
            try:
                if _git(path, "rev-parse", "HEAD") == commit:
                    return path
            except RequestError:
                pass
            self.remove_worktree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _git(self.root, "worktree", "prune")
        _git(self.root, "worktree", "add", "--detach", "--force", str(path), commit)
        return path

    def remove_worktree(self, path: Path) -> None:
        """Take a worktree away."""
        shutil.rmtree(path, ignore_errors=True)
        _git(self.root, "worktree", "prune")

    def checkout(self, path: Path, commit: str, *, setup: str | None, python: Path, own: bool) -> Checkout:
        """A worktree ready to run tests in.

        Args:
            path: where it goes.
            commit: what it holds.
            setup: a shell command that prepares it, run once in its root.
            python: the interpreter; a relative one is looked for in the worktree.
            own: give it an environment of its own where `setup` does not.

        Raises:
            RequestError: git, or the set-up, fails.
        """
        root = self.add_worktree(path, commit)
        done = root / _DONE
        if not done.exists():
            if setup is not None:
                _run(setup, root, "the set-up command")
            elif own:
                make_environment(root)
            done.touch()
        interpreter = root / ENVIRONMENT / "bin" / "python" if own and setup is None else python
        if not interpreter.is_absolute():
            interpreter = root / interpreter
        if not interpreter.exists():
            raise RequestError(
                f"there is no {interpreter}; let --setup make it, or name another with --python."
            )
        return Checkout(
            root=root,
            folder=root / self.folder.resolve().relative_to(self.root.resolve()),
            python=interpreter,
        )


def make_environment(root: Path) -> None:
    """An environment for one checkout: its own requirements first, everything else from ours.

    Raises:
        RequestError: it cannot be made, or its requirements cannot be installed.
    """
    folder = root / ENVIRONMENT
    _run([sys.executable, "-m", "venv", str(folder)], root, "python -m venv")
    python = str(folder / "bin" / "python")
    lib = Path(
        _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], root, python).strip()
    )
    # The plugin, pytest and whatever else no requirement overrides come from where this runs; addsitedir, so
    # that an editable install there is found as well.
    ours = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in ours)
    (lib / "zz-llmenergy-outer.pth").write_text(lines, encoding="utf-8")
    wanted = [part for path in sorted(root.glob("requirements*.txt")) for part in ("-r", str(path))]
    if (root / "pyproject.toml").exists() and "project" in _document(root / "pyproject.toml"):
        wanted += ["-e", str(root)]
    if wanted:
        _run([python, "-m", "pip", "install", "--quiet", *wanted], root, "pip install")


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{path} is no TOML: {error}.") from error


def _git(folder: Path, *arguments: str) -> str:
    return _run(["git", "-C", str(folder), *arguments], folder, f"git {arguments[0]}").strip()


def _run(command: str | list[str], folder: Path, name: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, shell=isinstance(command, str), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise RequestError(f"{name} cannot be run ({error.strerror}).") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RequestError(f"{name} failed in {folder} (status {done.returncode}):\n{said}")
    return done.stdout
