"""What each kind of FAISS index costs and finds, by catalogue size, searched as the API searches it.

Item vectors are clustered and of uneven length, as ALS factors are; a query is the sum of three items, as
a user's fresh vector is of their history.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from serving.state.ann_search import index_search
from training import ann_index

ASKED = 100
"""Neighbours a search returns: how many candidates the API takes from the index."""
PER_CLUSTER, SPREAD, LENGTHS = 200, 0.6, 0.4
_MIB = 2**20
_VECTORS = "vectors.npy"


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    items: tuple[int, ...] = (60_000, 1_000_000)
    dim: int = 64
    """As the model's rank."""
    queries: int = 300
    seed: int = 42


def run(bench: Bench) -> dict[str, Any]:
    """Each kind at each size, one after another, each in a process of its own so that memory is its own."""
    return {
        "dim": bench.dim,
        "queries": bench.queries,
        "asked": ASKED,
        "rows": [row for items in bench.items for row in _of_size(bench, items)],
        "load_average": [round(value, 1) for value in psutil.getloadavg()],
    }


def vectors(items: int, queries: int, dim: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Clustered items (items, dim) and queries (queries, dim), float32."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, items // PER_CLUSTER), dim), np.float32)
    made = SPREAD * random.standard_normal((items, dim), np.float32)
    made += centres[random.integers(0, len(centres), items)]
    made *= np.exp(LENGTHS * random.standard_normal((items, 1), np.float32))
    return made, made[random.integers(0, items, (queries, 3))].sum(axis=1)


def _of_size(bench: Bench, items: int) -> Iterator[dict[str, Any]]:
    known, asked = vectors(items, bench.queries, bench.dim, bench.seed)
    exact = np.stack([np.sort(known @ query)[::-1][[9, ASKED - 1]] for query in asked])
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        np.save(folder / _VECTORS, known)
        for kind in ("flat", "ivf", "hnsw"):
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                built = fresh.submit(_build, folder, kind).result()
            found = _search(folder / ann_index.FILE, known, asked, exact)
            yield {
                "kind": kind,
                "items": items,
                "chosen": ann_index.kind_of(items) == kind,
                **built,
                **found,
            }


def _build(folder: Path, kind: str) -> dict[str, float]:
    """Build on all cores and write; `build_mib` is what the process grew by at its peak."""
    known = np.load(folder / _VECTORS)
    with _peak_mib() as peak:
        start = time.perf_counter()
        built, _ = ann_index.build(known, kind)
        seconds = time.perf_counter() - start
    ann_index.write(built, folder)
    return {
        "build_s": round(seconds, 2),
        "build_mib": round(max(peak), 1),
        "index_mib": round((folder / ann_index.FILE).stat().st_size / _MIB, 1),
    }


@contextmanager
def _peak_mib(every_s: float = 0.01) -> Iterator[list[float]]:
    """Fill a list with what this process has grown by, again and again during a `with` and at its end."""
    process, done = psutil.Process(), threading.Event()
    before, grown = process.memory_info().rss, []

    def look() -> None:
        grown.append((process.memory_info().rss - before) / _MIB)

    def watch() -> None:
        while not done.wait(every_s):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()
        look()


def _search(
    path: Path, known: FloatArray, asked: FloatArray, exact: NDArray[np.float32]
) -> dict[str, float]:
    """Recall by score, so that ties are no misses, and milliseconds of one query on one thread."""
    search = index_search(path, known)
    search(asked[0], ASKED)  # the first one allocates
    times, right10, right = [], [], []
    for query, (tenth, last) in zip(asked, exact, strict=True):
        start = time.perf_counter()
        found = search(query, ASKED)
        times.append(1000 * (time.perf_counter() - start))
        scores = known[found[found >= 0]] @ query
        right10.append(np.count_nonzero(scores[:10] >= tenth - 1e-5 * abs(tenth)) / 10)
        right.append(np.count_nonzero(scores >= last - 1e-5 * abs(last)) / ASKED)
    return {
        "recall@10": round(float(np.mean(right10)), 4),
        f"recall@{ASKED}": round(float(np.mean(right)), 4),
        "query_ms_p50": round(float(np.median(times)), 3),
        "query_ms_p99": round(float(np.quantile(times, 0.99)), 3),
    }
