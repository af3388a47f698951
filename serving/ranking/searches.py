"""Nearest items to a vector: FAISS for ALS factors and towers, exact and remembered for content.

reads   artifact  index.faiss (inner product over als_item_factors), towers.faiss (over tower_targets)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from afterclick.candidates import Search, exact_search
from afterclick.model import FloatArray, IntArray

HNSW_BREADTH = 128
"""How widely an HNSW index is searched: finds 95 % of the exact nearest 100."""


def index_search(path: Path, vectors: FloatArray) -> Search:
    """The FAISS index in `path` where it is there and over the same rows, else exact."""
    if not path.is_file():
        return exact_search(vectors)
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(path))
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = HNSW_BREADTH
    if (index.ntotal, index.d) != vectors.shape:
        return exact_search(vectors)

    def search(query: FloatArray, count: int) -> IntArray:
        _, found = index.search(query[None], count)
        return np.asarray(found[0], np.int32)

    return search


def remembered(
    search: Callable[[bytes, int], IntArray], size: int = 4096
) -> Callable[[bytes, int], IntArray]:
    """A search whose last answers are kept: the same newest item asks the same question again."""
    return lru_cache(maxsize=size)(search)


def content_search(vectors: FloatArray) -> Search:
    """Items with content near a vector: over the described items only, answers remembered."""
    described = np.flatnonzero(vectors.any(axis=1)).astype(np.int32)
    dense = np.ascontiguousarray(vectors[described])

    def exact(raw: bytes, count: int) -> IntArray:
        scores = dense @ np.frombuffer(raw, np.float32)
        count = min(count, len(scores))
        top = np.argpartition(-scores, count - 1)[:count]
        return described[top[np.argsort(-scores[top])]]

    kept = remembered(exact)

    def search(query: FloatArray, count: int) -> IntArray:
        if not len(described):
            return np.empty(0, np.int32)
        return kept(np.ascontiguousarray(query, np.float32).tobytes(), count)

    return search
