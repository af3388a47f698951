"""A user's vectors from the live history: folded into ALS, and out of the user tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from afterclick.model import Model

if TYPE_CHECKING:
    from afterclick.features import UserState

_FEW = 16
"""Items of a history up to which fold-in is cheaper by Woodbury's identity."""


def fold_in(model: Model, state: UserState) -> FloatArray | None:
    """The user's factors (k,) from the live history, by one k×k solve; None where ALS knows no item of it.

    Hu, Koren, Volinsky (ICDM 2008), eq. 4, as Spark's ALS solves it: confidence 1 + α·r with r the action's
    weight, λ = regParam times the number of the user's interactions.
    """
    if model.factors is None or model.gram is None or model.norms is None:
        return None
    known = state.items < len(model)
    items, weights = state.items[known], state.weights[known]
    rated = model.norms[items] > 0
    factors = model.factors[items[rated]].astype(np.float64)
    extra = model.als_alpha * weights[rated].astype(np.float64)
    if not len(factors):
        return None
    ridge = model.als_reg * len(factors)
    if len(factors) <= _FEW and model.spectrum is not None:
        return _fold_in_few(model.spectrum, factors, extra, ridge)
    left = model.gram + (factors * extra[:, None]).T @ factors
    left.flat[:: len(left) + 1] += ridge
    return np.linalg.solve(left, factors.T @ (1.0 + extra)).astype(np.float32)


def _fold_in_few(
    spectrum: tuple[NDArray[np.float64], NDArray[np.float64]],
    factors: NDArray[np.float64],
    extra: NDArray[np.float64],
    ridge: float,
) -> FloatArray:
    """The same solution by Woodbury's identity over the eigenvectors of the gram matrix: an h×h solve."""
    values, vectors = spectrum
    inverse = 1.0 / (values + ridge)
    rotated = factors @ vectors
    scaled = rotated * inverse
    right = (1.0 + extra) @ rotated
    small = scaled @ rotated.T
    small.flat[:: len(small) + 1] += 1.0 / extra
    solved = inverse * right - scaled.T @ np.linalg.solve(small, scaled @ right)
    return np.asarray(vectors @ solved, np.float32)


def tower_user(model: Model, state: UserState) -> FloatArray | None:
    """The user's vector (d + 1,) of the two towers; None where there are none, or none knows the history."""
    if model.towers is None:
        return None
    return model.towers.user(state.items, state.weights, state.times_ms, state.now_ms)
