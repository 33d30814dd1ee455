"""The contract with pytest-benchmark, against its versions: tests/plugin/test_benchmark.py on each.

python benchmarks/pytest_benchmark_versions.py [VERSION ...]     # needs a package index
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Up to 5.2, pytest-benchmark itself does not run on pytest 9.1 and newer (it reads `node._nodeid`).
PAIRS = (("5.1.0", "8.4.2"), ("5.2.3", "8.4.2"), ("5.3.1", "8.4.2"), ("5.3.1", None))


def main() -> None:
    """Install each version beside the environment and run the contract test on it."""
    failed = []
    for version, pytest_version in PAIRS:
        wanted = [f"pytest-benchmark=={version}", *([f"pytest=={pytest_version}"] if pytest_version else [])]
        with tempfile.TemporaryDirectory() as target:
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
            subprocess.run([*install, *wanted], check=True)
            paths = os.pathsep.join((target, str(ROOT), os.environ.get("PYTHONPATH", "")))
            run = [sys.executable, "-m", "pytest", "-q", "tests/plugin/test_benchmark.py"]
            done = subprocess.run(run, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": paths})
        print(f"{' '.join(wanted)}: {'passes' if done.returncode == 0 else 'FAILS'}", flush=True)
        failed += [wanted] if done.returncode else []
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
