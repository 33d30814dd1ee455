"""Huber's loss of relative errors, minimised: free, non-negative, and with each row left out in turn.

The loss is piecewise quadratic, so Newton's method ends exactly, and after few steps; many fits take them at
once. Where it does not end, iterated reweighting does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]

_NEWTON_STEPS = 25
_REWEIGHTINGS = 500
_CHANGES = 12  # of the set of columns off the bound
_BATCH = 1_000_000  # left-out fits times cells solved at once
_FLAT = 1e-9  # a gradient, of columns of length 1
_SETTLED = 1e-10


class Huber:
    """Huber fits of rows b = 1 with a given cut."""

    def __init__(self, rows: Floats, cut: float) -> None:
        self.rows = rows
        self.cut = cut

    def fit(self, start: Floats) -> Floats:
        """Free of bounds, from a start nearby: (k,)."""
        found, done = self._newton(self.rows, start[None, :])
        return found[0] if done[0] else self._reweighted(nonnegative=False)

    def fit_nonnegative(self, free: Floats) -> Floats:
        """With no coefficient below zero: (k,); an active-set method on Newton's, from the free solution."""
        active = free > 0
        used = self.rows[:, active]
        bound = np.zeros_like(free)
        try:
            bound[active] = np.linalg.solve(used.T @ used, used.sum(axis=0))
        except np.linalg.LinAlgError:  # without a cell the columns may say the same thing
            return self._reweighted(nonnegative=True)
        for _ in range(_CHANGES):
            found, done = self._newton(self.rows[:, active], bound[None, active])
            bound = np.zeros_like(bound)
            bound[active] = found[0]
            if not done[0]:
                break
            pull = self._pull(1 - self.rows @ bound) @ self.rows
            pull[active] = 0
            if bound.min() < 0:
                active[bound.argmin()] = False
            elif pull.max() > _FLAT:
                active[pull.argmax()] = True
            else:
                return bound
        return self._reweighted(nonnegative=True)

    def leave_one_out(self, bound: Floats) -> Floats:
        """Each row's prediction by the fit to all the others, relative to its y: (n,)."""
        n = len(self.rows)
        step = max(1, _BATCH // n)
        parts = [self._without(np.arange(i, min(i + step, n)), bound) for i in range(0, n, step)]
        result: Floats = np.einsum("ij,ij->i", np.concatenate(parts), self.rows)
        return result

    def _without(self, which: NDArray[np.intp], bound: Floats) -> Floats:
        """The coefficients of the fits without a row each, (fits, k).

        Newton's method on the columns off the bound; where that is no minimum, on one more or one fewer.

        Its first step is algebra: it is the answer wherever no other residual changes its piece of the loss.
        What is left is a fit of its own.
        """
        active = bound > 0
        used = self.rows[:, active]
        residual = 1 - used @ bound[active]
        inside = np.abs(residual) <= self.cut
        solved = np.linalg.solve(used[inside].T @ used[inside], used[which].T).T
        rest = 1 - np.where(inside[which], np.einsum("ij,ij->i", solved, used[which]), 0.0)
        step = self._pull(residual[which]) / np.maximum(rest, np.finfo(float).eps)
        start = bound[active] - solved * step[:, None]
        side = np.where(inside, 0, np.sign(residual)).astype(np.int8)
        found, done, change = self._settled(which, active, start, side)
        for column in set(change[~done].tolist()):
            again = np.flatnonzero(~done & (change == column))
            others = active.copy()
            others[column] = not active[column]
            if others.any():
                found[again], done[again], _ = self._settled(which[again], others, found[again][:, others])
        for i in np.flatnonzero(~done):
            found[i] = Huber(np.delete(self.rows, which[i], axis=0), self.cut).fit_nonnegative(bound)
        return found

    def _settled(
        self,
        which: NDArray[np.intp],
        active: NDArray[np.bool_],
        start: Floats,
        piece: NDArray[np.int8] | None = None,
    ) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]:
        """Fits without a row each, of the columns that are off the bound.

        Returns:
            The coefficients of all columns, (fits, k); which fits are the minimum (Karush, Kuhn, Tucker); and
            for those that are not, the column that wants to leave its side of the bound most.
        """
        used = self.rows[:, active]
        some, done = self._newton(used, start, left_out=which, piece=piece)
        found: Floats = np.zeros((len(which), len(active)))
        found[:, active] = some
        change = found.argmin(axis=1)
        done &= (some >= 0).all(axis=1)
        if not active.all():
            pull = self._pull(1 - some @ used.T)
            pull[np.arange(len(which)), which] = 0
            wants = np.where(active, -np.inf, pull @ self.rows)
            change = np.where((some < 0).any(axis=1), change, wants.argmax(axis=1))
            done &= wants.max(axis=1) <= _FLAT
        return found, done, change

    def _pull(self, residual: Floats) -> Floats:
        """The derivative of the loss."""
        result: Floats = np.clip(residual, -self.cut, self.cut)
        return result

    def _newton(
        self,
        used: Floats,
        start: Floats,
        *,
        left_out: NDArray[np.intp] | None = None,
        piece: NDArray[np.int8] | None = None,
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Minimise many times at once: coefficients (fits, p), and which fits got there.

        The loss is piecewise quadratic, so a step that leaves every residual in its piece is the last.

        Args:
            used: the rows' columns to fit, (n, p).
            start: (fits, p).
            left_out: the row that each fit does without.
            piece: the piece of each residual, (n,), for which every start is exact.
        """
        n, p = used.shape
        products = (used[:, :, None] * used[:, None, :]).reshape(n, p * p)
        found: Floats = np.array(start)
        done = np.zeros(len(found), dtype=bool)
        going = np.arange(len(found))
        pieces = None if piece is None else np.broadcast_to(piece, (len(found), n))
        for _ in range(_NEWTON_STEPS):
            residual = 1 - found[going] @ used.T
            side = (residual > self.cut).astype(np.int8) - (residual < -self.cut)
            if pieces is not None:
                moved = side != pieces
                if left_out is not None:
                    moved[np.arange(len(going)), left_out[going]] = False
                still = moved.any(axis=1)
                done[going[~still]] = True
                going, side = going[still], side[still]
            if not going.size:
                break
            pieces = side
            inside = (side == 0).astype(float)
            pull = side * (self.cut if np.isfinite(self.cut) else 0.0)
            if left_out is not None:
                own = (np.arange(len(going)), left_out[going])
                inside[own] = pull[own] = 0
            try:
                found[going] = np.linalg.solve(
                    (inside @ products).reshape(-1, p, p), ((inside + pull) @ used)[..., None]
                )[..., 0]
            except np.linalg.LinAlgError:
                break
        return found, done

    def _reweighted(self, *, nonnegative: bool) -> Floats:
        """Iterated reweighted least squares: slower, and it always gets there."""
        rows = self.rows
        weight = np.ones(len(rows))
        found: Floats = np.zeros(rows.shape[1])
        for _ in range(_REWEIGHTINGS):
            before = found
            found = _least_squares(rows * weight[:, None], weight, nonnegative=nonnegative)
            if np.abs(found - before).max() <= _SETTLED * np.abs(found).max():
                break
            size = np.abs(1 - rows @ found)
            weight = np.sqrt(np.minimum(1.0, self.cut / np.maximum(size, np.finfo(float).tiny)))
        return found


def _least_squares(rows: Floats, target: Floats, *, nonnegative: bool) -> Floats:
    from scipy.optimize import nnls

    result: Floats = (nnls(rows, target) if nonnegative else np.linalg.lstsq(rows, target, rcond=None))[0]
    return result
