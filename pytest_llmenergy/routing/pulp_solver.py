"""PuLP, whichever is installed: 3.3 and 4 differ in what a solve returns, in rows, and in bundling CBC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.errors import RequestError, require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray

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
            bundled = getattr(getattr(package.apis, "coin_api", None), "pulp_cbc_path", None)
            path = bundled if bundled and Path(bundled).exists() else None
            solver = package.COIN_CMD(path=path, **options)
        if solver.available():
            return solver
    package_name = "highspy" if "highs" in names else "'pulp[cbc]'"
    raise RequestError(f"PuLP finds no solver ({' or '.join(names)}). Run: pip install {package_name}")


def solve(problem: Any, solver: Any) -> str:
    """Solve, and say how it ended: optimal (to the gap asked for), feasible, infeasible, time-limit ..."""
    package = pulp()
    result = problem.solve(solver)
    if isinstance(result, int):
        word = package.LpStatus[result]
        early = problem.sol_status == package.LpSolutionIntegerFeasible
    else:
        # CBC calls its optimum within a gap, even where the gap asked for is 0.
        word = "Optimal" if result.status.name == "GapLimit" else result.status.name
        early = result.has_solution and word != "Optimal"
    return "feasible" if early else re.sub(r"(?<=[a-z]) ?(?=[A-Z])", "-", word).lower()


def multipliers(problem: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """What one more unit on the right of each constraint adds to the objective, at the optimum."""
    known = problem.constraints
    find = known.__getitem__ if isinstance(known, dict) else problem.get_constraint_by_name
    return np.array([find(name).pi or 0.0 for name in names])
