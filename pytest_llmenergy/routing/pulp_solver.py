"""PuLP, whichever version is installed: 3.3 and 4 differ in what a solve returns and in bundling CBC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.errors import RequestError, require

if TYPE_CHECKING:
    from types import ModuleType

# HiGHS spends minutes looking for dependent equations unless it has a limit, however large.
_ANY_LIMIT_S = 86_400.0


def pulp() -> ModuleType:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("pulp", feature="the reference solver", extra="routing")


def open_solver(*names: str, time_limit_s: float | None = None, gap_rel: float | None = None) -> Any:
    """The first of these solvers (cbc, highs) that is installed.

    Raises:
        RequestError: none is.
    """
    package = pulp()
    options = {"msg": False, "timeLimit": time_limit_s or _ANY_LIMIT_S, "gapRel": gap_rel or 0.0}
    for name in names:
        if name == "highs":
            solver = package.HiGHS(**options)
        else:
            # PuLP 3 carries a CBC of its own; PuLP 4 takes the one on PATH, or that of pulp[cbc].
            bundled = getattr(package.apis.coin_api, "pulp_cbc_path", None)
            path = bundled if bundled and Path(bundled).exists() else None
            solver = package.COIN_CMD(path=path, **options)
        if solver.available():
            return solver
    raise RequestError(f"PuLP finds no solver ({' or '.join(names)}). Run: pip install highspy")


def solve(problem: Any, solver: Any) -> str:
    """Solve, and say how it ended in the solver's own word: optimal, infeasible, not-solved ..."""
    result = problem.solve(solver)
    word = pulp().LpStatus[result] if isinstance(result, int) else result.status.name
    return str(word).lower().replace(" ", "-").replace("_", "-")
