"""Create .venv with what a command needs; quick when nothing has changed. Standard library only.

python3 bootstrap.py [EXTRA]      # bench: what `make bench` needs; dev (the default): everything
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINT = ROOT / "constraints" / "cpu.txt"
EXTRAS = {"bench": "models,benchmark,trace", "dev": "dev"}
OLDEST = (3, 11)


def has_nvidia_gpu() -> bool:
    """Whether the driver is there: then CUDA packages are wanted."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def has_own_torch() -> bool:
    """Whether this Python brings a torch: on a GPU machine it fits the driver, and is used."""
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def stamp_of(extra: str, *, gpu: bool) -> str:
    """Changes when the environment has to be made anew."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), CONSTRAINT.read_bytes()]
    parts += [f"{extra} {gpu} {sys.version} {ROOT}".encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def find_links() -> list[str]:
    """Where pip looks for wheels beside the index; uv does not read pip's settings by itself."""
    shown = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    values = [line.partition("=")[2].strip("'\" ") for line in shown.splitlines() if "find-links" in line]
    return sorted({link for value in values for link in value.replace("\\n", " ").split()})


def venv_python() -> str | None:
    """The full version of the Python that .venv was made with; None without one."""
    if not PYTHON.exists():
        return None
    shown = subprocess.run(
        [str(PYTHON), "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() if shown.returncode == 0 else ""


def refuse_cuda(index: list[str]) -> None:
    """Stop where the constraint would bring torch's CUDA build, several GB, to a machine without a GPU."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return  # elsewhere the plain build is the CPU's
    constraint = CONSTRAINT.read_text().strip()
    ask = [str(PYTHON), "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-"]
    asked = subprocess.run([*ask, *index, constraint], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        return  # the installation will say what is wrong
    urls = [found["download_info"]["url"] for found in json.loads(asked.stdout)["install"]]
    if urls and not any("+cpu" in url or "%2Bcpu" in url or "/cpu/" in url for url in urls):
        sys.exit(
            f"bootstrap.py: there is no NVIDIA GPU here, and pip would take {constraint} with CUDA (GBs). "
            "Name an index of torch's CPU builds (torch's own installation page shows one) and try again: "
            "LLMENERGY_TORCH_INDEX=URL make bench. Or take CUDA all the same: "
            "LLMENERGY_ALLOW_CUDA=1 make bench"
        )


def install(extra: str, *, gpu: bool) -> None:
    """Install this project in place; without a GPU, torch's CPU build where one is on offer."""
    what = ["-e", f"{ROOT}[{EXTRAS[extra]}]"]
    if not gpu:
        what += ["-c", str(CONSTRAINT)]
        # An index of CPU builds is the user's choice: one that cannot be reached costs a minute of retries.
        url = os.environ.get("LLMENERGY_TORCH_INDEX")
        index = ["--extra-index-url", url] if url else []
        if not os.environ.get("LLMENERGY_ALLOW_CUDA"):
            refuse_cuda(index)
        what += index
    uv = shutil.which("uv")
    if uv is not None and not os.environ.get("LLMENERGY_TORCH_INDEX"):
        links = [part for link in find_links() for part in ("--find-links", link)]
        command = [uv, "pip", "install", "--quiet", "--python", str(PYTHON), *links, *what]
    else:
        command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-compile"]
        command += ["--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


def main() -> None:
    """Make the environment, unless it is there."""
    extra = sys.argv[1] if len(sys.argv) > 1 else "dev"
    if extra not in EXTRAS:
        sys.exit(f"bootstrap.py: unknown set {extra!r}; choose {' or '.join(EXTRAS)}.")
    if sys.version_info < OLDEST:
        sys.exit(
            f"bootstrap.py: this is Python {sys.version.split()[0]}; 3.11 or newer is needed. "
            "Name one: make PYTHON=python3.12 ..."
        )
    gpu = has_nvidia_gpu()
    stamps = {name: VENV / f".stamp-{name}" for name in EXTRAS}
    for name in (extra, "dev"):  # dev holds all the others
        if stamps[name].exists() and stamps[name].read_text() == stamp_of(name, gpu=gpu):
            return
    print(f"Setting up {VENV.name} for {extra} (once; a minute or two) ...", flush=True)
    own = ["--system-site-packages"] if gpu and has_own_torch() else []
    made_with = venv_python()
    if made_with is not None and made_with != sys.version:
        print(f"{VENV.name} is of another Python and is made anew.", flush=True)
        shutil.rmtree(VENV)
    if not PYTHON.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", *own, str(VENV)], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("bootstrap.py: no venv could be made. On Debian: apt-get install python3-venv")
    try:
        install(extra, gpu=gpu)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"bootstrap.py: the installation failed with status {error.returncode}; its message is above."
        )
    stamps[extra].write_text(stamp_of(extra, gpu=gpu))


if __name__ == "__main__":
    main()
