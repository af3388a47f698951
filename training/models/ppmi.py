"""Item vectors from co-occurrence alone: the start of a neural item table.

Positive pointwise mutual information of two items in the histories of users, reduced by SVD (Levy
& Goldberg, NeurIPS 2014). A table that starts here needs a quarter of the epochs, and ends better.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from afterclick.arrays import FloatArray, IndexArray, IntArray

NEWEST = 50
"""Items of each user that form pairs."""


def ppmi(user: IntArray, item: IntArray, n_items: int) -> sparse.csr_matrix:
    """(n_items, n_items) max(0, log(C · ΣC / (c cᵀ))) of the counts C of users with both items.

    `user` and `item` (m,) are rows in order of users, then of time; c are the sums of C's rows.
    """
    newest = _newest(user)
    ones = np.ones(len(newest), np.float32)
    shape = (int(user.max(initial=-1)) + 1, n_items)
    owned = sparse.csr_matrix((ones, (user[newest], item[newest])), shape=shape)
    owned.data[:] = 1.0
    counts = (owned.T @ owned).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    sums = np.maximum(np.asarray(counts.sum(axis=1), np.float64).ravel(), 1e-12)
    row = np.repeat(np.arange(n_items), np.diff(counts.indptr))
    information = np.log(counts.data * sums.sum() / (sums[row] * sums[counts.indices]))
    counts.data = np.maximum(information, 0.0).astype(np.float32)
    counts.eliminate_zeros()
    return counts


def item_vectors(user: IntArray, item: IntArray, n_items: int, dim: int, seed: int) -> FloatArray:
    """(n_items, dim) U √S of the SVD of `ppmi`, with a mean square of 1 / dim in rows that are not
    zero; columns beyond the matrix's rank are zero."""
    from sklearn.utils.extmath import randomized_svd

    matrix = ppmi(user, item, n_items)
    vectors = np.zeros((n_items, dim), np.float32)
    components = min(dim, n_items - 1)
    if components < 1 or not matrix.nnz:
        return vectors
    left, values, _ = randomized_svd(matrix, components, n_iter=4, random_state=seed)
    vectors[:, :components] = left * np.sqrt(values)
    active = vectors.any(axis=1)
    return vectors / max(float(np.sqrt(np.square(vectors[active]).sum(1).mean())), 1e-12)


def _newest(user: IntArray) -> IndexArray:
    """The rows of each user's newest items."""
    end = np.searchsorted(user, user, side="right")
    return np.flatnonzero(end - np.arange(len(user)) <= NEWEST)
