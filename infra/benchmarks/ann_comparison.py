"""`afterclick bench index`: build time, memory, recall and query time of FAISS indexes by catalogue
size.

Item vectors are clustered and of uneven length, like ALS factors; a query is the sum of three
items, like a user's folded-in vector.
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

import numpy as np
import psutil

from afterclick.arrays import FloatArray
from afterclick.settings import Settings
from infra.benchmarks.harness import Benchmark, Figures, load_average
from serving.state.ann_search import index_search
from training import ann_index

K = 100
"""Neighbours per query: the candidates that the API takes from the index."""
PER_CLUSTER, SPREAD, LENGTHS = 200, 0.6, 0.4
_MIB = 2**20
_VECTORS = "vectors.npy"


@dataclass(frozen=True)
class AnnBenchmark(Benchmark):
    items: tuple[int, ...] = (60_000, 1_000_000)
    """Catalogue sizes."""
    dim: int = 64
    """The model's rank."""
    queries: int = 300
    seed: int = 42

    def run(self, settings: Settings) -> Figures:
        return {
            "dim": self.dim,
            "queries": self.queries,
            "asked": K,
            "rows": [row for items in self.items for row in self._compare(items)],
            "load_average": load_average(),
        }

    def _compare(self, items: int) -> Iterator[Figures]:
        """A row per kind, built in a process of its own so that its memory can be measured."""
        known, queries = vectors(items, self.queries, self.dim, self.seed)
        exact = np.stack([np.sort(known @ query)[::-1][[9, K - 1]] for query in queries])
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / _VECTORS, known)
            for kind in ("flat", "ivf", "hnsw"):
                with ProcessPoolExecutor(1, mp_context=spawn) as process:
                    built = process.submit(_build, folder, kind).result()
                searched = _search(folder / ann_index.FILE, known, queries, exact)
                chosen = ann_index.kind_of(items) == kind
                yield {"kind": kind, "items": items, "chosen": chosen, **built, **searched}


def vectors(items: int, queries: int, dim: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Clustered items (items, dim) and queries (queries, dim), float32."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, items // PER_CLUSTER), dim), np.float32)
    item_vectors = SPREAD * random.standard_normal((items, dim), np.float32)
    item_vectors += centres[random.integers(0, len(centres), items)]
    item_vectors *= np.exp(LENGTHS * random.standard_normal((items, 1), np.float32))
    return item_vectors, item_vectors[random.integers(0, items, (queries, 3))].sum(axis=1)


def _build(folder: Path, kind: str) -> dict[str, float]:
    """Build on all cores and write; `build_mib` is the peak growth of the process."""
    known = np.load(folder / _VECTORS)
    with _peak_mib() as peak:
        started = time.perf_counter()
        built, _ = ann_index.build(known, kind=kind)
        seconds = time.perf_counter() - started
    ann_index.write(built, folder)
    return {
        "build_s": round(seconds, 2),
        "build_mib": round(max(peak), 1),
        "index_mib": round((folder / ann_index.FILE).stat().st_size / _MIB, 1),
    }


@contextmanager
def _peak_mib(every_s: float = 0.01) -> Iterator[list[float]]:
    """A list of this process's memory growth, sampled during a `with` and at its end."""
    process, done = psutil.Process(), threading.Event()
    before, growth = process.memory_info().rss, []

    def sample() -> None:
        growth.append((process.memory_info().rss - before) / _MIB)

    def sample_repeatedly() -> None:
        while not done.wait(every_s):
            sample()

    sampler = threading.Thread(target=sample_repeatedly, daemon=True)
    sampler.start()
    try:
        yield growth
    finally:
        done.set()
        sampler.join()
        sample()


def _search(
    path: Path, known: FloatArray, queries: FloatArray, exact: FloatArray
) -> dict[str, float]:
    """Recall by score, so that ties count, and milliseconds of one query on one thread."""
    search = index_search(path, known)
    search(queries[0], K)  # the first one allocates
    times, recall_10, recall_k = [], [], []
    for query, (tenth, last) in zip(queries, exact, strict=True):
        started = time.perf_counter()
        found = search(query, K)
        times.append(1000 * (time.perf_counter() - started))
        scores = known[found[found >= 0]] @ query
        recall_10.append(np.count_nonzero(scores[:10] >= tenth - 1e-5 * abs(tenth)) / 10)
        recall_k.append(np.count_nonzero(scores >= last - 1e-5 * abs(last)) / K)
    return {
        "recall@10": round(float(np.mean(recall_10)), 4),
        f"recall@{K}": round(float(np.mean(recall_k)), 4),
        "query_ms_p50": round(float(np.median(times)), 3),
        "query_ms_p99": round(float(np.quantile(times, 0.99)), 3),
    }
