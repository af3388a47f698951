"""Candidate retrieval: a few hundred items to rank for a user at a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, FloatArray, IndexArray, IntArray
from afterclick.kernels import SOURCE_BITS, as_items, no_rows, union, unlisted
from afterclick.model import ItemContent, Model
from afterclick.user_vectors import UserVectors

SOURCES = ("same_day", "neighbours", "als", "tower", "ncf", "content", "transitions", "trending")
"""Names of the candidate sources, as responses and impressions carry them."""
Search = Callable[[FloatArray, int], IntArray]
"""(query vector (k,), count) → item indices, nearest first; -1 pads. FAISS, or `exact_search`."""


@dataclass(frozen=True)
class CandidateLimits:
    """Candidates per source. More do not improve lists on Electronics."""

    recent: int = 5
    """Items of the history whose neighbours are retrieved."""
    per_item: int = 40
    """Neighbours of one item, of each kind."""
    als: int = 30
    """Items nearest to the user's ALS factors."""
    tower: int = 30
    """Items nearest to the output of the user tower."""
    ncf: int = 30
    """Items nearest to the user's vector of NCF's product."""
    content: int = 20
    """Items with content like that of the newest item."""
    transitions: int = 20
    """Items that users took after a recent item, of each."""
    trending: int = 200
    """Trending items, over all half-lives."""


REDUCED_LIMITS = CandidateLimits(
    per_item=30, als=0, tower=0, ncf=0, content=0, transitions=15, trending=100
)
"""Candidate limits under load shedding: no ANN search, and about two thirds of the candidates."""


@dataclass(frozen=True, eq=False)
class Searches:
    """Nearest-neighbour searches over a model's item vectors; None disables a source."""

    als: Search | None = None
    tower: Search | None = None
    content: Search | None = None
    item_content: ItemContent | None = None
    """Content vectors that include new items; default: the model's."""
    ncf: Search | None = None

    @classmethod
    def exact(cls, model: Model, allowed: BoolArray | None = None) -> Searches:
        """Exact searches over the model's items, or over those `allowed` (m,), m ≥ n."""
        mask = None if allowed is None else allowed[: len(model)]

        def search(vectors: FloatArray | None) -> Search | None:
            return None if vectors is None else exact_search(vectors, mask)

        towers = model.towers.targets if model.towers is not None else None
        ncf = model.ncf.targets if model.ncf is not None else None
        als, content = search(model.factors), search(model.content)
        return cls(als, search(towers), content, ncf=search(ncf))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items to rank and the first source that retrieved each."""

    items: IntArray
    """(c,) item indices in ascending order, without repeats."""
    sources: NDArray[np.int8]
    """(c,) index in SOURCES."""

    def __len__(self) -> int:
        return len(self.items)

    def where(self, keep: BoolArray) -> Candidates:
        """Those that the mask (c,) selects."""
        return Candidates(self.items[keep], self.sources[keep])

    def without(self, items: IntArray) -> Candidates:
        """Those that are not among `items`."""
        return self.where(not_in(self.items, items)) if len(items) else self


def candidate_items(
    model: Model,
    user: UserVectors,
    trending: IntArray,
    searches: Searches,
    limits: CandidateLimits | None = None,
) -> Candidates:
    """The union of all sources, without the items the user has seen.

    `trending` are trending items, best first (`TrendView.top`).
    """
    limits = limits or CandidateLimits()
    recent = user.state.items[: limits.recent]
    content = _newest_content(model, searches.item_content or model.item_content, recent)
    walks, ncf = model.random_walk_items, None
    if model.ncf is not None and user.ncf is not None:
        ncf = model.ncf.query(user.ncf)
    neighbours = (
        model.co_purchase_items,
        model.neighbour_items,
        no_rows(len(model)) if walks is None else walks,
    )
    others = (
        _search(searches.als, user.factors, limits.als),
        _search(searches.tower, user.tower, limits.tower),
        _search(searches.ncf, ncf, limits.ncf),
        _search(searches.content, content, limits.content),
        as_items(user.transitions.items[:, : limits.transitions].ravel()),
        as_items(trending[: limits.trending]),
    )
    recent, seen = as_items(recent[recent < len(model)]), as_items(user.state.seen)
    keys = union(neighbours, recent, limits.per_item, others, seen)
    keys.sort()
    items = (keys >> SOURCE_BITS).astype(np.int32)
    return Candidates(items, (keys & (2**SOURCE_BITS - 1)).astype(np.int8))


def _search(search: Search | None, query: FloatArray | None, count: int) -> IntArray:
    if search is None or query is None or not count:
        return np.empty(0, np.int32)
    return as_items(search(query, count))


def _newest_content(
    model: Model, content: ItemContent | None, recent: IntArray
) -> FloatArray | None:
    """Content of the newest item, skipping new items without any."""
    if content is None:
        return None
    for item in recent.tolist():
        vector = content.row(item)
        if vector is not None or item < len(model):
            return vector
    return None


def exact_search(vectors: FloatArray, allowed: BoolArray | None = None) -> Search:
    """Search by inner product over all rows, as an index's reference."""

    def search(query: FloatArray, count: int) -> IntArray:
        scores = vectors @ query
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        return top_k(scores, count).astype(np.int32)

    return search


def top_k(scores: NDArray[np.floating], k: int, above: float | None = None) -> IndexArray:
    """Indices of the `k` highest scores (n,), best first; of equal scores the lower index first.

    With `above` only scores greater than it. Fewer than `k` where there are fewer. No NaN.
    """
    k = min(k, len(scores))
    if k <= 0:
        return np.empty(0, np.intp)
    if len(scores) > 4 * k:
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        among = np.flatnonzero(scores >= bound)
        top = among[np.argsort(-scores[among], kind="stable")[:k]]
    else:
        top = np.argsort(-scores, kind="stable")[:k]
    return top if above is None else top[scores[top] > above]


def top_k_rows(scores: NDArray[np.floating], k: int) -> IndexArray:
    """`top_k` of each row: (q, min(k, n)) column numbers for scores (q, n).

    Of equal scores the lower column first, but at rank k any of them may be chosen.
    """
    k = min(k, scores.shape[1])
    if not k:
        return np.empty((len(scores), 0), np.intp)
    part = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def not_in(items: IntArray, excluded: IntArray) -> BoolArray:
    """(len(items),) True for items ≥ 0 not in `excluded`."""
    return unlisted(as_items(items), as_items(excluded))


def is_in(items: IntArray, ascending: IntArray) -> BoolArray:
    """(len(items),) True for items in an ascending array."""
    if not len(ascending):
        return np.zeros(len(items), bool)
    rows = np.minimum(ascending.searchsorted(items), len(ascending) - 1)
    return np.asarray(ascending[rows] == items)
