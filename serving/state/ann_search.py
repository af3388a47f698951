"""Nearest-neighbour search: FAISS, or exact without an index. Content search caches its results.

reads   artifact  index.faiss (over als_item_factors), towers.faiss (over tower_targets),
                  ncf.faiss (over ncf_targets), content.faiss (over content)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from afterclick.ann import nearest, padded
from afterclick.arrays import BoolArray, FloatArray, IntArray
from afterclick.model import Model, WordVectors, text_of
from afterclick.retrieval import Search, exact_search
from serving.state.item_catalogue import Catalogue

HNSW_EF_SEARCH = 128
"""`efSearch`: recall of 95 % of the exact nearest 100."""
MAX_NEW_PER_SEARCH = 20
"""Items newer than the model that one search adds, at most."""
CACHED_SEARCHES = 4096


def index_search(
    path: Path, vectors: FloatArray, known: BoolArray | None = None, *, mapped: bool = False
) -> Search:
    """The FAISS index in `path` if it exists and matches the vectors (n, d), else exact search.

    `known` (n,): the rows that an IVF index holds; by default all. `mapped`: such an index reads
    its vectors from pages of the file, which processes share.
    """
    if not path.is_file():
        return _exact(vectors, known)
    import faiss

    faiss.omp_set_num_threads(1)
    index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    held, width = vectors.shape
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = HNSW_EF_SEARCH
    if isinstance(index, faiss.IndexIVF):
        held, width = held if known is None else int(known.sum()), padded(vectors[:0]).shape[1]
    if mapped and isinstance(index, faiss.IndexIVF):
        # by default each search starts up to 32 threads that read ahead: ten times the CPU time
        lists: Any = index.invlists
        lists = faiss.downcast_InvertedLists(lists)
        lists.prefetch_nthread = 0
    if (index.ntotal, index.d) != (held, width):
        return _exact(vectors, known)
    return partial(nearest, index)


def _exact(vectors: FloatArray, known: BoolArray | None) -> Search:
    """Exact search over the rows that are `known` (n,)."""
    if known is None or known.all():
        return exact_search(vectors)
    rows = np.flatnonzero(known).astype(np.int32)
    search = exact_search(np.ascontiguousarray(vectors[rows]))
    return lambda query, count: rows[search(query, count)]


def content_search(
    vectors: FloatArray, path: Path | None = None, *, mapped: bool = False
) -> Search:
    """Search by content over the items that have any, with cached results.

    `path`: a FAISS index over `vectors` (n, d), for large catalogues.
    """
    described: BoolArray = np.asarray(vectors.any(axis=1))
    nearest_items = (
        _exact(vectors, described)
        if path is None
        else index_search(path, vectors, described, mapped=mapped)
    )

    @lru_cache(maxsize=CACHED_SEARCHES)
    def cached(raw: bytes, count: int) -> IntArray:
        return nearest_items(np.frombuffer(raw, np.float32), count)

    def search(query: FloatArray, count: int) -> IntArray:
        return cached(np.ascontiguousarray(query, np.float32).tobytes(), count)

    return search


def with_new_items(search: Search, new: FloatArray, first: int) -> Search:
    """`search`, with up to `MAX_NEW_PER_SEARCH` similar items newer than the model appended.

    `new` (m − n, d): content of the newer items, of length 1 or 0; the first has the index `first`.
    """
    if not new.any():
        return search
    nearest = content_search(new)

    def both(query: FloatArray, count: int) -> IntArray:
        rows = nearest(query, min(count, MAX_NEW_PER_SEARCH))
        rows = rows[new[rows] @ query > 0]
        return np.concatenate([search(query, count), rows + np.int32(first)])

    return both


class ColdStartContent:
    """Content of items newer than a model, from its word vectors. For the builder thread."""

    def __init__(self, model: Model | None, search: Search | None) -> None:
        self._model, self._model_search = model, search
        self._texts: list[str] = []
        self._vectors: FloatArray | None = None
        self._version: tuple[int, int] | None = None
        self.content = model.item_content if model else None
        self.search = search

    def update(self, ids: Sequence[str], catalogue: Catalogue) -> None:
        """Embed new and changed texts. `ids` are those of all items, the model's first."""
        model, search, version = self._model, self._model_search, (catalogue.version, len(ids))
        if model is None or model.words is None or model.item_content is None or search is None:
            return
        if version == self._version:
            return
        self._version = version
        items = (catalogue.get(item_id) for item_id in ids[len(model) :])
        texts = [text_of(item.title, item.categories) if item else "" for item in items]
        if texts != self._texts:
            new = self._embed(texts, model.words)
            self.content = model.item_content.with_new(new)
            self.search = with_new_items(search, new, len(model))

    def _embed(self, texts: list[str], words: WordVectors) -> FloatArray:
        """(len(texts), d), computing only the rows whose text changed."""
        vectors = np.zeros((len(texts), words.vectors.shape[1]), np.float32)
        if self._vectors is not None:
            vectors[: len(self._vectors)] = self._vectors
        for row, text in enumerate(texts):
            if row >= len(self._texts) or text != self._texts[row]:
                vectors[row] = words.vector(text)
        self._texts, self._vectors = texts, vectors
        return vectors
