"""Half a step of ALS without Spark: the factors of many users (or items), given those of the other side.

The same normal equations as afterclick.user_vectors.fold_in, (G + α Σ w y yᵀ + λ n I) x = Σ (1 + α w) y, but rows
with n interactions share the inverse of G + λ n I, and Woodbury's identity leaves an n×n solve for each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_CHUNK = 4096


def half_step(
    row: NDArray[np.int32],
    other: NDArray[np.int32],
    weight: NDArray[np.float32],
    factors: NDArray[np.float32],
    n_rows: int,
    alpha: float,
    reg: float,
) -> NDArray[np.float32]:
    """(n_rows, k) float32 from the interactions `row` × `other` and the other side's `factors` (m, k).

    Interactions with what has no factors (a row of zeros) do not count. A row without any gets zeros.
    """
    with threadpool_limits(1):  # many small solves: threads would wait for one another
        return _half_step(row, other, weight, factors, n_rows, alpha, reg)


def _half_step(
    row: NDArray[np.int32],
    other: NDArray[np.int32],
    weight: NDArray[np.float32],
    factors: NDArray[np.float32],
    n_rows: int,
    alpha: float,
    reg: float,
) -> NDArray[np.float32]:
    known = np.asarray(factors.any(axis=1))[other]
    order = np.argsort(row[known], kind="stable")
    row, other, weight = row[known][order], other[known][order], weight[known][order]
    wide = factors.astype(np.float64)
    gram = wide.T @ wide
    out = np.zeros((n_rows, factors.shape[1]), np.float32)
    count = np.bincount(row, minlength=n_rows)
    start = np.concatenate([[0], np.cumsum(count)])
    for n in np.unique(count[count > 0]).tolist():
        inverse = np.linalg.inv(gram + reg * n * np.eye(len(gram)))
        alike = np.flatnonzero(count == n)
        size = max(1, _CHUNK * 8 // n)
        for rows in np.array_split(alike, -(-len(alike) // size)):
            at = start[rows][:, None] + np.arange(n)
            out[rows] = _solve(inverse, wide[other[at]], alpha * weight[at].astype(np.float64))
    return out


def _solve(
    inverse: NDArray[np.float64], near: NDArray[np.float64], extra: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(b, k) solutions for `near` (b, n, k) with confidences 1 + `extra` (b, n); extra must be > 0."""
    _, n, k = near.shape
    right = np.einsum("bn,bnk->bk", 1.0 + extra, near)
    if n >= k:
        left = np.linalg.inv(inverse) + np.einsum(
            "bn,bni,bnj->bij", extra, near, near, optimize=True
        )
        return np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0])
    spread = near @ inverse
    small = np.einsum("bik,bjk->bij", spread, near, optimize=True)
    small[:, np.arange(n), np.arange(n)] += 1.0 / extra
    base = right @ inverse
    inner = np.linalg.solve(small, np.einsum("bnk,bk->bn", near, base)[:, :, None])[:, :, 0]
    return np.asarray(base - np.einsum("bn,bnk->bk", inner, spread))
