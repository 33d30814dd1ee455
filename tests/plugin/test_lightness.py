"""What the plugin costs a pytest run that measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

HEAVY = ("torch", "transformers", "scipy", "pandas", "statsmodels", "numpy")
NOT_NEEDED = ("msgspec", "pynvml", "pyJoules", "rich", "psutil", "click")


def test_an_ordinary_run_imports_nothing_heavy_and_writes_nothing(pytester: pytest.Pytester) -> None:
    """No import beyond two small modules, no file, no subprocess."""
    pytester.makeconftest(
        f"""
        import subprocess, sys
        started = []
        original = subprocess.Popen.__init__
        def spy(self, *args, **kwargs):
            started.append(args)
            original(self, *args, **kwargs)
        subprocess.Popen.__init__ = spy
        def pytest_unconfigure(config):
            heavy = [name for name in {(*HEAVY, *NOT_NEEDED)!r} if name in sys.modules]
            ours = sorted(name for name in sys.modules if name.startswith("pytest_llmenergy"))
            print("HEAVY", heavy, "OURS", ours, "STARTED", started)
        """
    )
    pytester.makepyfile("def test_ordinary(): pass")
    ours = {"__pycache__", "runpytest-0", "runpytest-current", "stdout", "stderr"}  # pytester's
    before = {path.name for path in pytester.path.iterdir()} | ours
    others = ("benchmark", "codspeed", "hypothesispytest", "xdist", "anyio", "sybil", "randomly")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", *(part for name in others for part in ("-p", f"no:{name}"))
    )
    result.assert_outcomes(passed=1)
    ours = "'pytest_llmenergy', 'pytest_llmenergy.options', 'pytest_llmenergy.plugin'"
    result.stdout.fnmatch_lines([f"HEAVY [[]] OURS [[]{ours}[]] STARTED [[]]"])
    assert {path.name for path in pytester.path.iterdir()} <= before
