"""FAISS indexes over item vectors by inner product, with their measured recall.

writes  artifact  index.faiss (ALS factors), towers.faiss (item tower), ncf.faiss (items of
                  NCF's product), content.faiss (content vectors, for large catalogues)

An IVF index holds only the items that can be found: those that ALS, the towers or NCF know, or that
have content. It names them by item index.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from afterclick.ann import nearest, padded
from afterclick.arrays import BoolArray

FILE = "index.faiss"
TOWERS = "towers.faiss"
NCF = "ncf.faiss"
CONTENT = "content.faiss"
FLAT_BELOW = 10_000
"""Smaller catalogues are searched exactly."""
PER_CELL = 250
"""Items per cell of an IVF index, on average."""
MIN_PROBES = 24
"""Cells that a search scans: at least these, else a sixteenth of all."""
SEED = 42


@dataclass(frozen=True)
class IndexReport:
    """How an index was built; `recall` is the share of the exact top 100 that it returns."""

    kind: str
    items: int
    recall: float
    build_seconds: float

    def facts(self) -> dict[str, Any]:
        """The report as it stands in an artifact's manifest."""
        return {
            "kind": self.kind,
            "recall@100": self.recall,
            "build_seconds": round(self.build_seconds, 3),
        }


def kind_of(items: int) -> str:
    """The index kind for a catalogue size: `flat` (exact) or `ivf`.

    `hnsw` is built on request only: at 60,000 items it is slower to build and to search than IVF
    and takes four times the memory (`afterclick bench index`).
    """
    return "flat" if items < FLAT_BELOW else "ivf"


def build(
    vectors: NDArray[np.float32], known: BoolArray | None = None, kind: str | None = None
) -> tuple[Any, str]:
    """An index over `vectors` (n, d) and its kind: flat, hnsw or ivf; by default chosen by n.

    `known` (n,): the rows that an IVF index holds; by default all.
    """
    n, dim = vectors.shape
    kind = kind or kind_of(n)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if kind == "ivf":
        rows = np.arange(n) if known is None else np.flatnonzero(known)
        return _ivf(padded(vectors[rows]), rows), kind
    if kind == "flat":
        index: Any = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 128, 256
    else:
        raise ValueError(f"index kind {kind!r}: flat, hnsw or ivf")
    index.add(vectors)
    return index, kind


def of_content(content: NDArray[np.float32]) -> Any:
    """An index over the non-zero rows of `content` (n, d); None where exact search is as fast."""
    described = np.asarray(content.any(axis=1))
    few = kind_of(int(described.sum())) == "flat"
    return None if few else build(content, described, "ivf")[0]


def _ivf(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> Any:
    """An index of 16-bit vectors (k, d) that are named by `rows` (k,)."""
    n, dim = vectors.shape
    cells = max(1, n // PER_CELL)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim),
        dim,
        cells,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    index.cp.seed, index.cp.max_points_per_centroid, index.cp.niter = SEED, 64, 10
    index.nprobe = max(MIN_PROBES, cells // 16)
    index.train(vectors)
    index.add_with_ids(vectors, rows)
    return index


def make(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    known: BoolArray | None = None,
    kind: str | None = None,
) -> tuple[Any, IndexReport]:
    """Build an index over `vectors` (n, d) and measure its recall on `queries` (q, d)."""
    start = time.perf_counter()
    index, kind = build(vectors, known, kind)
    seconds = time.perf_counter() - start
    return index, IndexReport(kind, len(vectors), recall(index, vectors, queries), seconds)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows scaled to length 1; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)


def write(index: Any, folder: Path, name: str = FILE) -> None:
    """Write an index into an artifact's folder."""
    faiss.write_index(index, str(folder / name))


def recall(
    index: Any, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int = 100
) -> float:
    """Share of the exact top `k` that a search returns; any item of an equal score counts."""
    k = min(k, len(vectors))
    if not len(queries) or not k:
        return 1.0
    found = 0
    for query in np.ascontiguousarray(queries, np.float32):
        scores = vectors @ query
        kth_score = np.partition(scores, -k)[-k]
        bound = kth_score - 1e-5 * np.abs(kth_score) - 1e-7
        found += int((scores[nearest(index, query, k)] >= bound).sum())
    return float(found / (k * len(queries)))
