"""Nearest items to a vector: FAISS, exact where there is no index; for content remembered, with late items.

reads   artifact  index.faiss (inner product over als_item_factors), towers.faiss (over tower_targets),
                  content.faiss (over the rows of content that are not zero)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from afterclick.arrays import FloatArray, IntArray
from afterclick.model import Model, WordVectors, text_of
from afterclick.retrieval import Search, exact_search
from serving.state.item_catalogue import Catalogue

HNSW_BREADTH = 128
"""How widely an HNSW index is searched: finds 95 % of the exact nearest 100."""
LATE = 20
"""Items that came after the model, beside those of the model, that one search brings at most."""


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


def content_search(vectors: FloatArray, path: Path | None = None) -> Search:
    """Items with content near a vector: over the described items only, answers remembered.

    `path`: a FAISS index over the described rows in their order, which large catalogues have.
    """
    described = np.flatnonzero(vectors.any(axis=1)).astype(np.int32)
    dense = np.ascontiguousarray(vectors[described])
    near = exact_search(dense) if path is None else index_search(path, dense)

    def found(raw: bytes, count: int) -> IntArray:
        rows = near(np.frombuffer(raw, np.float32), count)
        return described[rows[rows >= 0]]

    kept = remembered(found)

    def search(query: FloatArray, count: int) -> IntArray:
        if not len(described):
            return np.empty(0, np.int32)
        return kept(np.ascontiguousarray(query, np.float32).tobytes(), count)

    return search


def with_late(search: Search, late: FloatArray, first: int) -> Search:
    """What `search` finds, then up to `LATE` of the items that came after the model and are at all alike.

    `late` (m − n, d): their content, of length 1 or 0; the first of them has the index `first`.
    """
    if not late.any():
        return search
    near = content_search(late)

    def both(query: FloatArray, count: int) -> IntArray:
        rows = near(query, min(count, LATE))
        rows = rows[late[rows] @ query > 0]
        return np.concatenate([search(query, count), rows + np.int32(first)])

    return both


class ColdStartContent:
    """What all items say of themselves, as one model reads it. For the thread that builds snapshots."""

    def __init__(self, model: Model | None, search: Search | None) -> None:
        self._model, self._model_search = model, search
        self._texts: list[str] = []
        self._vectors: FloatArray | None = None
        self._seen = (-1, -1)
        self.content = model.item_content if model else None
        self.search = search

    def follow(self, ids: Sequence[str], catalogue: Catalogue) -> None:
        """Read the texts that are new or have changed. `ids` are those of all items, the model's first."""
        model, search = self._model, self._model_search
        seen = (catalogue.version, len(ids))
        if model is None or model.words is None or model.item_content is None or search is None:
            return
        if seen == self._seen:
            return
        self._seen = seen
        items = (catalogue.items.get(item_id) for item_id in ids[len(model) :])
        texts = [text_of(item.title, item.categories) if item else "" for item in items]
        if texts != self._texts:
            late = self._read(texts, model.words)
            self.content = model.item_content.with_new(late)
            self.search = with_late(search, late, len(model))

    def _read(self, texts: list[str], words: WordVectors) -> FloatArray:
        """(len(texts), d) anew, of which only the rows of other texts than before are computed."""
        late = np.zeros((len(texts), words.vectors.shape[1]), np.float32)
        if self._vectors is not None:
            late[: len(self._vectors)] = self._vectors
        for row, text in enumerate(texts):
            if row >= len(self._texts) or text != self._texts[row]:
                late[row] = words.vector(text)
        self._texts, self._vectors = texts, late
        return late
