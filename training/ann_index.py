"""A FAISS index over item embeddings by inner product, and how much of the exact answer it finds.

writes  artifact  index.faiss (ALS factors), towers.faiss (targets of the two towers), content.faiss (content
                  of described items, where they are many)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

FILE = "index.faiss"
TOWERS = "towers.faiss"
CONTENT = "content.faiss"
FLAT_BELOW = 50_000


@dataclass(frozen=True)
class IndexReport:
    """What was built. `recall` is of the exact nearest 100, measured on real queries."""

    kind: str
    items: int
    recall: float
    build_seconds: float

    def facts(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "recall@100": self.recall,
            "build_seconds": round(self.build_seconds, 3),
        }


def kind_of(items: int) -> str:
    """The kind of index that suits a catalogue's size: exact, or IVF.

    HNSW is built on request only: at 60,000 items it takes longer to build and to search, and twice the
    memory, for no more of the exact nearest hundred (`afterclick bench index`).
    """
    return "flat" if items < FLAT_BELOW else "ivf"


def build(vectors: NDArray[np.float32], kind: str | None = None, seed: int = 42) -> tuple[Any, str]:
    """An index over `vectors` (n, d), of a kind chosen by n unless given: flat, hnsw or ivf."""
    n, dim = vectors.shape
    kind = kind or kind_of(n)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if kind == "flat":
        index: Any = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 128, 256
    elif kind == "ivf":
        index = _ivf(vectors, seed)
    else:
        raise ValueError(f"index kind {kind!r}: flat, hnsw or ivf")
    index.add(vectors)
    return index, kind


def of_content(content: NDArray[np.float32]) -> Any:
    """An index over the described rows of `content` (n, d); None where exact search is as fast."""
    described = content[content.any(axis=1)]
    return None if kind_of(len(described)) == "flat" else build(described)[0]


def _ivf(vectors: NDArray[np.float32], seed: int) -> Any:
    cells = max(1, min(int(4 * np.sqrt(len(vectors))), len(vectors) // 39 or 1))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed, index.cp.max_points_per_centroid, index.cp.niter = seed, 64, 10
    index.nprobe = max(1, cells // 16)
    index.train(vectors)
    return index


def make(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], kind: str | None = None
) -> tuple[Any, IndexReport]:
    """Build an index and measure it on `queries` (q, d)."""
    start = time.perf_counter()
    index, kind = build(vectors, kind)
    seconds = time.perf_counter() - start
    return index, IndexReport(kind, len(vectors), recall(index, vectors, queries), seconds)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same rows with length 1, or 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)


def write(index: Any, folder: Path, name: str = FILE) -> None:
    """Write an index into an artifact's folder."""
    faiss.write_index(index, str(folder / name))


def recall(
    index: Any, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int = 100
) -> float:
    """Share of the exact `k` nearest (by score, so that ties are no misses) that the index finds."""
    k = min(k, len(vectors))
    if not len(queries) or not k:
        return 1.0
    queries = np.ascontiguousarray(queries, np.float32)
    exact = queries @ vectors.T
    bound = np.partition(exact, -k, axis=1)[:, -k]
    _, found = index.search(queries, k)
    scores = np.take_along_axis(exact, np.maximum(found, 0), axis=1)
    good = (found >= 0) & (scores >= (bound - 1e-5 * np.abs(bound) - 1e-7)[:, None])
    return float(good.mean())
