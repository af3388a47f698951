"""Search in a FAISS index over item vectors, ordered by the exact vectors.

IVF indexes keep 8 bits per number: a fourth of the memory, and faster to read. Three times as many
rows as wanted are found with them, then ordered by the exact vectors: recall stays the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from afterclick.arrays import FloatArray, IntArray

RESCORED = 3
"""Rows of an 8-bit index that are compared exactly, per row to return."""
WIDTH_STEP = 8
"""8-bit vectors are compared 8 numbers at a time; others take four times as long."""


def padded(vectors: FloatArray) -> FloatArray:
    """(n, d) vectors as an 8-bit index holds them, with zeros up to a multiple of `WIDTH_STEP`."""
    n, width = vectors.shape
    missing = -width % WIDTH_STEP
    if not missing:
        return vectors
    wider = np.zeros((n, width + missing), np.float32)
    wider[:, :width] = vectors
    return wider


def nearest(index: Any, vectors: FloatArray, query: FloatArray, count: int) -> IntArray:
    """Up to `count` rows of `vectors` (n, d) of the highest inner product with a query (d,)."""
    import faiss

    query = np.ascontiguousarray(query, np.float32)
    if not isinstance(index, faiss.IndexIVFScalarQuantizer):
        found = index.search(query[None], count)[1][0].astype(np.int32)
        return np.asarray(found[found >= 0])
    found = index.search(padded(query[None]), RESCORED * count)[1][0].astype(np.int32)
    found = found[found >= 0]
    scores = vectors[found] @ query
    return np.asarray(found[np.argsort(-scores, kind="stable")[:count]])
