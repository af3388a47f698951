"""Popularity and item-item for published splits: no gradient, one pass over the data or one
solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

PLAIN_FROM = 300.0
"""From this ridge on a large catalogue skips the solve: the solution is nearly the Gram matrix
itself."""
_EXACT = 6000
"""Catalogues up to this size are solved in double precision."""
_STRIPE = 1024
_MORE, _ITERATIONS = 10, 4
"""Of the singular vectors: additional ones that are computed, and passes."""


@dataclass
class Popularity:
    """The same list for every user."""

    def fit(self, train: Any, seed: int) -> None:
        self._count = np.asarray(train.sum(axis=0), np.float32).ravel()

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.tile(self._count, (len(users), 1))


@dataclass
class ItemItem:
    """A linear model from a user's items to all items, with degrees taken out.

    The ridge regression of EASE (Steck, WWW 2019) on X = Du^-user R Di^-item; with a large `ridge`
    it becomes the plain normalised co-occurrence of GF-CF (Shen et al., CIKM 2021), whose low-pass
    filter may be mixed in. Large catalogues solve the regression among each item's nearest
    neighbours only, and take the plain co-occurrence beyond them.
    """

    ridge: float = 20.0
    """In units of the mean diagonal of XᵀX."""
    user_power: float = 0.25
    """How much the interactions of an active user are discounted."""
    item_power: float = 0.25
    """Exponent of the item's degree that X is divided by."""
    before: float = 0.25
    """Exponent of the item's degree that the user's items are divided by."""
    after: float = 0.0
    """Exponent of the item's degree that the scores are multiplied by."""
    low_pass: float = 0.0
    """Weight of the filter on the first `components` singular vectors, of the scale of the rest."""
    components: int = 32
    neighbours: int = 100
    """Neighbours of the sparse solve."""
    dense_up_to: int = 20_000
    """Catalogues up to this size get the dense solve (1.6 GB); larger ones solve among each
    item's neighbours."""

    def fit(self, train: Any, seed: int) -> None:
        self._train = train.tocsr()
        users = np.maximum(np.asarray(train.sum(axis=1)).ravel(), 1.0)
        items = np.maximum(np.asarray(train.sum(axis=0)).ravel(), 1.0)
        scaled = (
            sparse.diags(users**-self.user_power) @ train @ sparse.diags(items**-self.item_power)
        ).tocsr()
        gram = (scaled.T @ scaled).tocsr()
        diagonal = gram.diagonal()
        ridge = self.ridge * float(diagonal[diagonal > 0].mean()) if diagonal.any() else 1.0
        before, after = items**-self.before, items**self.after
        plain = self.ridge >= PLAIN_FROM
        if train.shape[1] <= min(self.dense_up_to, _EXACT if plain else self.dense_up_to):
            weights = _ease(gram, ridge)
            weights *= before[:, None].astype(weights.dtype)
            weights *= after[None, :].astype(weights.dtype)
            self._weights: Any = weights.astype(np.float32, copy=False)
        else:
            weights = _others(gram) if plain else _local(gram, ridge, self.neighbours)
            self._weights = (
                (sparse.diags(before) @ weights @ sparse.diags(after)).astype(np.float32).tocsr()
            )
        self._filter = (
            _low_pass(train, users, items, self.components, seed) if self.low_pass else None
        )
        self._share = self._scale(seed) if self._filter is not None else 0.0

    def observe(self, train: Any) -> None:
        """Replace the users' items; the weights stay."""
        self._train = train.tocsr()

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        found = self._linear(users)
        if self._filter is not None:
            found = found + self._share * self._smooth(users)
        return np.asarray(found, np.float32)

    def _linear(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        found = self._train[users] @ self._weights
        return np.asarray(found.toarray() if sparse.issparse(found) else found, np.float32)

    def _smooth(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        assert self._filter is not None
        into, out = self._filter
        return np.asarray((self._train[users] @ into) @ out, np.float32)

    def _scale(self, seed: int) -> float:
        """The weight that gives the filter `low_pass` times the spread of the linear scores."""
        users = np.random.default_rng(seed).integers(0, self._train.shape[0], 200)
        smooth = float(self._smooth(users).std())
        return self.low_pass * float(self._linear(users).std()) / smooth if smooth > 0 else 0.0


def _ease(gram: Any, ridge: float) -> NDArray[np.floating]:
    """(n, n) weights with a zero diagonal, times `ridge`, so that a large one tends to the Gram
    matrix.

    By Cholesky in place; beyond _EXACT items in single precision.
    """
    exact = gram.shape[0] <= _EXACT
    full = (gram / ridge).astype(np.float64 if exact else np.float32).toarray().T
    full[np.diag_indices_from(full)] += 1.0
    factorise, invert = (lapack.dpotrf, lapack.dpotri) if exact else (lapack.spotrf, lapack.spotri)
    factor, failed = factorise(full, lower=1, overwrite_a=1)
    inverse, failed = (factor, failed) if failed else invert(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the Gram matrix with its ridge is not positive definite")
    for start in range(0, len(inverse), _STRIPE):  # the upper half is that of the factor
        end = min(start + _STRIPE, len(inverse))
        block = np.tril(inverse[start:end, start:end])
        inverse[start:end, start:end] = block + np.tril(block, -1).T
        inverse[start:end, end:] = inverse[end:, start:end].T
    weights = inverse.T  # the same, in the order that products of rows need
    weights *= np.asarray(-ridge / np.diag(weights), weights.dtype)
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights)


def _local(gram: Any, ridge: float, count: int) -> Any:
    """CSC (n, n): the ridge regression of each item on its `count` strongest neighbours, times
    `ridge`.

    Items beyond them keep their unsolved weight.
    """
    diagonal, off = gram.diagonal(), _others(gram)
    column_of = np.full(gram.shape[0], -1, np.int32)
    weights = off.data.astype(np.float64)
    for item in range(gram.shape[0]):
        bounds = slice(off.indptr[item], off.indptr[item + 1])
        near, strength = off.indices[bounds], off.data[bounds]
        if not len(near):
            continue
        best: Any = slice(None)
        if len(near) > count:
            # by cosine, which does not favour items with many interactions
            best = np.argpartition(-strength / np.sqrt(diagonal[near] + ridge), count)[:count]
            near, strength = near[best], strength[best]
        among = _among(off, near, column_of) / ridge
        among[np.diag_indices_from(among)] = diagonal[near] / ridge + 1.0
        weights[bounds][best] = np.linalg.solve(among, strength.astype(np.float64))
    # the Gram matrix is symmetric: its rows are its columns
    return sparse.csc_matrix((weights, off.indices, off.indptr), gram.shape)


def _others(gram: Any) -> Any:
    """CSR (n, n): the Gram matrix without its diagonal."""
    off = (gram - sparse.diags(gram.diagonal())).tocsr()
    off.eliminate_zeros()
    return off


def _among(
    matrix: Any, near: NDArray[np.int32], column_of: NDArray[np.int32]
) -> NDArray[np.float64]:
    """The dense part of a CSR among a few of its items: cheaper than slicing it twice.

    `column_of` (n,) is all -1, before and after.
    """
    start, length = matrix.indptr[near], matrix.indptr[near + 1] - matrix.indptr[near]
    row = np.repeat(np.arange(len(near)), length)
    at = np.arange(len(row)) + np.repeat(start - np.cumsum(length) + length, length)
    column_of[near] = np.arange(len(near))
    column = column_of[matrix.indices[at]]
    column_of[near] = -1
    there = column >= 0
    found = np.zeros((len(near), len(near)))
    found[row[there], column[there]] = matrix.data[at[there]]
    return found


def _low_pass(
    train: Any, users: NDArray[Any], items: NDArray[Any], components: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n, k) and (k, n): GF-CF's ideal low-pass filter, Di^-½ V and Vᵀ Di^½."""
    scaled = (sparse.diags(users**-0.5) @ train @ sparse.diags(items**-0.5)).astype(np.float32)
    k = max(1, min(components, min(scaled.shape) - 1))
    vectors = _right_vectors(scaled, k, seed).T
    into = (items**-0.5)[:, None] * vectors.T
    return into.astype(np.float32), (vectors * (items**0.5)[None, :]).astype(np.float32)


def _right_vectors(matrix: Any, count: int, seed: int) -> NDArray[np.float32]:
    """(n, count) about the first right singular vectors of a CSR of float32, the largest first.

    Subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011); products and small eigenvalue
    problems only, because a dense SVD of the projected matrix takes longer than everything else.
    """
    width = min(count + _MORE, min(matrix.shape))
    basis = np.random.default_rng(seed).normal(size=(matrix.shape[1], width)).astype(np.float32)
    other = matrix.T.tocsr()
    for _ in range(_ITERATIONS):
        basis = other @ (matrix @ _orthonormal(basis))
    basis = _orthonormal(basis)
    image = matrix @ basis
    _, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
    return np.asarray(basis @ rotation[:, ::-1][:, :count].astype(np.float32))


def _orthonormal(basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, k) another basis of the same space."""
    values, rotation = np.linalg.eigh((basis.T @ basis).astype(np.float64))
    scale = 1.0 / np.sqrt(np.maximum(values, values[-1] * 1e-7))
    return np.asarray(basis @ (rotation * scale).astype(np.float32))
