"""Search in a FAISS index over item vectors.

IVF indexes keep 16 bits per number: the memory that a search reads decides how long it takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from afterclick.arrays import FloatArray, IntArray

WIDTH_STEP = 8
"""16-bit vectors are compared 8 numbers at a time; other widths take ten times as long."""


def padded(vectors: FloatArray) -> FloatArray:
    """(n, d) vectors as an IVF index holds them, with zeros up to a multiple of `WIDTH_STEP`."""
    n, width = vectors.shape
    missing = -width % WIDTH_STEP
    if not missing:
        return vectors
    wider = np.zeros((n, width + missing), np.float32)
    wider[:, :width] = vectors
    return wider


def nearest(index: Any, query: FloatArray, count: int) -> IntArray:
    """Up to `count` items of the highest inner product with a query (d,), best first."""
    query = np.ascontiguousarray(query, np.float32)[None]
    if index.d != query.shape[1]:
        query = padded(query)
    found = index.search(query, count)[1][0]
    return np.asarray(found[found >= 0], np.int32)
