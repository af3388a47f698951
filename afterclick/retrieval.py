"""Candidate sources: which few hundred items of the catalogue are worth ranking for a user, now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.content import ItemContent
from afterclick.features import TrendView, UserState
from afterclick.model import Model

SOURCES = ("same_day", "neighbours", "als", "tower", "content", "trending")
Search = Callable[[FloatArray, int], IntArray]
"""(query vector (k,), how many) → item indices, nearest first; -1 pads. FAISS, or `exact_search`."""


@dataclass(frozen=True)
class CandidateLimits:
    """How many candidates each source may bring.

    On Electronics as good, within noise, as 50 neighbours of an item, 100 by each model and 50 by content
    (docs/results.md), in five sixths of the time: what else is near is among the neighbours already.
    """

    recent: int = 5
    """Items of the history whose neighbours are fetched."""
    per_item: int = 40
    """Neighbours of one item, of each kind."""
    als: int = 30
    """Items nearest to the user's ALS vector."""
    tower: int = 30
    """Items nearest to the user's vector of the two towers."""
    content: int = 20
    """Items with content like the newest one."""
    trending: int = 200
    """Trending items, whatever the half-life."""


REDUCED_LIMITS = CandidateLimits(per_item=30, als=0, tower=0, content=0, trending=100)
"""For a moment when there is no time: no search of an index, two thirds of the items to rank."""


@dataclass(frozen=True)
class Candidates:
    """Items to rank and where each came from first."""

    items: IntArray
    """(c,) item indices, each once, none seen."""
    sources: NDArray[np.int8]
    """(c,) index in SOURCES."""


def candidate_items(
    model: Model,
    state: UserState,
    trends: TrendView,
    *,
    user_factors: FloatArray | None = None,
    user_towers: FloatArray | None = None,
    als_search: Search | None = None,
    tower_search: Search | None = None,
    content_search: Search | None = None,
    content: ItemContent | None = None,
    limits: CandidateLimits | None = None,
    exclude: IntArray | None = None,
) -> Candidates:
    """The union of all sources, without what the user has seen and what is in `exclude`.

    Give `user_factors` (from fold_in) with `als_search`, and `user_towers` (from tower_user) with
    `tower_search`. `content` is the model's own unless that of items which came after it is given, too. A
    source without its search or input brings nothing.
    """
    limits = limits or CandidateLimits()
    recent = state.items[: limits.recent]
    like = _newest_content(model, content or model.item_content, recent)
    recent = recent[recent < len(model)]
    found: list[IntArray] = [
        model.same_day_items[recent, : limits.per_item].ravel(),
        _neighbours(model, recent, limits.per_item),
        _search(als_search, user_factors, limits.als),
        _search(tower_search, user_towers, limits.tower),
        _search(content_search, like, limits.content),
        trends.top[: limits.trending],
    ]
    items = np.concatenate(found).astype(np.int32, copy=False)
    sources = np.repeat(np.arange(len(found), dtype=np.int8), [len(f) for f in found])
    keep = not_in(items, state.seen if exclude is None else np.concatenate([state.seen, exclude]))
    items, sources = items[keep], sources[keep]
    items, first = np.unique(items, return_index=True)
    return Candidates(items, sources[first])


def top_k(scores: NDArray[np.floating], k: int, above: float | None = None) -> NDArray[np.intp]:
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


def top_k_rows(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """`top_k` of each row: (q, min(k, n)) column numbers for scores (q, n).

    Of equal scores the lower column first, but at rank k any of them may be chosen.
    """
    k = min(k, scores.shape[1])
    if not k:
        return np.empty((len(scores), 0), np.intp)
    part = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def exact_search(vectors: FloatArray, allowed: NDArray[np.bool_] | None = None) -> Search:
    """A search by inner product over all rows: for small catalogues and for measuring an index against."""

    def search(query: FloatArray, count: int) -> IntArray:
        scores = vectors @ query
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        return top_k(scores, count).astype(np.int32)

    return search


def _neighbours(model: Model, recent: IntArray, count: int) -> IntArray:
    near = model.neighbour_items[recent, :count].ravel()
    if model.reach_items is None:
        return near
    return np.concatenate([near, model.reach_items[recent, :count].ravel()])


def _search(search: Search | None, query: FloatArray | None, count: int) -> IntArray:
    if search is None or query is None or not count:
        return np.empty(0, np.int32)
    return search(query, count)


def _newest_content(
    model: Model, content: ItemContent | None, recent: IntArray
) -> FloatArray | None:
    """Content of the newest item, passing over those that came after the model and say nothing."""
    if content is None:
        return None
    for item in recent.tolist():
        said = content.row(item)
        if said is not None or item < len(model):
            return said
    return None


def not_in(items: IntArray, banned: IntArray) -> NDArray[np.bool_]:
    """(len(items),) which are items, and not among the banned: np.isin in a fifth of the time."""
    wanted = items >= 0
    if len(banned):
        banned = np.sort(banned)
        wanted &= banned[np.minimum(banned.searchsorted(items), len(banned) - 1)] != items
    return wanted
