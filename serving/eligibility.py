"""Which items may be in a list, applied to every tier at one place, and how a short list is
filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Self

import numpy as np
from cachetools import FIFOCache
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, IntArray
from afterclick.retrieval import SOURCES, Candidates, is_in, not_in, top_k
from serving.request import FIRST_PAGE, PLAIN, Options, Page, RecommendationRequest
from serving.state.catalogue_query import matching_items
from serving.state.snapshot import NO_RULES, ServingSnapshot

CANDIDATE_SOURCES = (*SOURCES, "interests", "popular")
"""The names of `Candidates.sources`, in serving."""
TRENDING, INTERESTS, POPULAR = map(CANDIDATE_SOURCES.index, ("trending", "interests", "popular"))
CATEGORY_CANDIDATES = 100
"""Trending items of the requested category that join the candidates of a personalised list."""
MAX_ORDERED = 10_000
"""Items of a category or filter that are ordered: more than a list, pages and exclusions."""
MAX_FILTER_BYTES = 64 * 2**20
_CONDITIONS_BYTES = 65_536
"""The size of a request's conditions: at most that of a body or a query string."""
MIN_POOL = 60
POOL_PER_RESULT = 3
EXPLORATION_POOL = 10
"""Items that one rank of a list may explore, at most."""


def no_items() -> IntArray:
    """(0,)"""
    return np.empty(0, np.int32)


class ForcedItems(Enum):
    """Where forced items stand among the candidates of a tier."""

    FIRST = auto()
    """Candidates like others, added before the list is filled up."""
    LAST = auto()
    """Added after the list is filled up, unless the tier retrieved them."""
    APART = auto()
    """Added after the list is filled up, even if the tier retrieved them."""


@dataclass(frozen=True)
class Fill:
    """How a tier's list is filled up to its pool size."""

    source: int = POPULAR
    """TRENDING or POPULAR items, in this order."""
    forced: ForcedItems = ForcedItems.LAST
    from_nothing: bool = False
    """Fill even if the tier retrieved no eligible item; otherwise the next tier is tried."""
    category: bool = False
    """Add the trending items of the requested category first."""
    exclude: IntArray = field(default_factory=no_items)


@dataclass(frozen=True)
class Eligibility:
    """The items one list may show, as item indices."""

    pool_size: int
    """Items to rank: more than the page where the list is reranked."""
    seen: IntArray = field(default_factory=no_items)
    excluded: IntArray = field(default_factory=no_items)
    """Excluded by the request or by rules, or shown on an earlier page."""
    allowed: IntArray | None = None
    """Items of the requested category and filters, ascending; None allows all."""
    shown: BoolArray | None = None
    """(m,) items of the catalogue; None: all."""
    forced: IntArray = field(default_factory=no_items)
    """Ranked even if no source retrieved them: pinned, boosted, and new items to explore."""
    is_continuation: bool = False
    """A later page: it may come to an end."""

    @classmethod
    def of(
        cls,
        snapshot: ServingSnapshot,
        request: RecommendationRequest,
        seen: IntArray,
        allowed: IntArray | None,
    ) -> Self:
        """The eligibility for one request. The plain case, without rules or options, is kept
        cheap."""
        rules, page, options = snapshot.rules, request.page, request.options
        excluded = snapshot.indices((*request.exclude, *page.shown))
        if rules is NO_RULES and options == PLAIN and page == FIRST_PAGE:
            return cls(request.n, seen, excluded, allowed, snapshot.shown)
        excluded = np.concatenate([excluded, rules.excluded])
        if allowed is not None:
            allowed = allowed[not_in(allowed, rules.excluded)]
        forced = np.union1d(rules.forced, snapshot.new_items) if options.explore else rules.forced
        size = pool_size(request.n, page, options)
        return cls(size, seen, excluded, allowed, snapshot.shown, forced, page.start > 0)

    def relaxed(self) -> Self:
        """The same with seen items allowed, for a first page that would otherwise be empty."""
        return self if self.is_continuation else replace(self, seen=no_items())

    def with_pool(self, size: int) -> Self:
        """The same with at least `size` items to rank."""
        return replace(self, pool_size=max(self.pool_size, size))

    @property
    def reach(self) -> int:
        """Items of an order that hold the pool, whichever may not be shown."""
        return self.pool_size + len(self.seen) + len(self.excluded)

    def eligible(self, items: IntArray, *excluded: IntArray) -> IntArray:
        """`items` in their order, without those that may not be shown and without `excluded`."""
        return items[self._mask(items, *excluded)]

    def filter(self, candidates: Candidates) -> Candidates:
        """The candidates that may be shown."""
        return candidates.where(self._mask(candidates.items))

    def fill(self, candidates: Candidates, snapshot: ServingSnapshot, fill: Fill) -> Candidates:
        """Filtered candidates, filled up to the pool size, with the eligible forced items.

        No candidates stay no candidates unless the fill is `from_nothing`.
        """
        forced = self.eligible(self.forced, fill.exclude) if len(self.forced) else self.forced
        if fill.forced is ForcedItems.APART and len(forced):
            candidates = candidates.without(forced)
        if not (len(candidates.items) or fill.from_nothing):
            return candidates
        if fill.forced is not ForcedItems.FIRST:
            n = self.pool_size
            candidates = Candidates(candidates.items[:n], candidates.sources[:n])
        if fill.category and self.allowed is not None:
            trending = self.eligible(by_trend(snapshot, self.allowed), candidates.items)
            candidates = _add(candidates, trending[:CATEGORY_CANDIDATES], POPULAR)
        if len(forced):
            forced = forced[not_in(forced, candidates.items)]
        if fill.forced is ForcedItems.FIRST:
            candidates, forced = _add(candidates, forced, POPULAR), forced[:0]
        room = self.pool_size - len(candidates.items)
        if room > 0:
            order = by_trend if fill.source == TRENDING else by_popularity
            more = order(snapshot, self.allowed)
            more = self.eligible(more, candidates.items, forced, fill.exclude)[:room]
            candidates = _add(candidates, more, fill.source)
        return _add(candidates, forced, fill.source)

    def _mask(self, items: IntArray, *excluded: IntArray) -> NDArray[np.bool_]:
        mask = not_in(items, np.concatenate([self.seen, self.excluded, *excluded]))
        if self.shown is not None:
            mask &= self.shown[items]
        return mask if self.allowed is None else mask & is_in(items, self.allowed)


def pool_size(n: int, page: Page, options: Options) -> int:
    """Items to rank for a page of n: those of the pages above, and those that may move up."""
    exploration = n * EXPLORATION_POOL if options.explore else 0
    return page.offset + n + max(MIN_POOL, (POOL_PER_RESULT - 1) * n, exploration)


def by_trend(snapshot: ServingSnapshot, allowed: IntArray | None) -> IntArray:
    """Trending items, highest first."""
    return snapshot.trending if allowed is None else _ordered(allowed, snapshot.trend_score)


def by_popularity(snapshot: ServingSnapshot, allowed: IntArray | None) -> IntArray:
    """Popular items, most popular first."""
    return snapshot.popular if allowed is None else _ordered(allowed, snapshot.popularity)


def candidates_from(items: IntArray, source: int) -> Candidates:
    """Candidates of one source."""
    return Candidates(items, np.full(len(items), source, np.int8))


class CatalogueFilters:
    """The items that meet catalogue conditions, cached until catalogue or model change.

    Bounded in bytes with the conditions. One thread only.
    """

    def __init__(self, max_bytes: int = MAX_FILTER_BYTES) -> None:
        self._items: FIFOCache[tuple[object, ...], IntArray] = FIFOCache(
            max_bytes, getsizeof=_entry_bytes
        )

    def allowed(
        self, snapshot: ServingSnapshot, category: str | None, conditions: Sequence[str]
    ) -> IntArray | None:
        """Items of a category that meet one condition of each field named, ascending; None if
        nothing is asked for."""
        if category is None and not conditions:
            return None
        key = (
            snapshot.catalogue.version,
            len(snapshot.trend_score),
            snapshot.loaded.version,
            category,
            frozenset(conditions),
        )
        items = self._items.get(key)
        if items is None:
            items = _allowed(snapshot, category, conditions)
            if _entry_bytes(items) <= self._items.maxsize:
                self._items[key] = items
        return items

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return int(self._items.currsize)


def _allowed(
    snapshot: ServingSnapshot, category: str | None, conditions: Sequence[str]
) -> IntArray:
    catalogue, lookup = snapshot.catalogue, snapshot.lookup
    if category is None:
        return matching_items(catalogue, conditions, lookup)
    items = lookup.of_numbers(catalogue.category(category))
    if conditions:
        items = items[is_in(items, matching_items(catalogue, conditions, lookup))]
    return items


def _entry_bytes(items: IntArray) -> int:
    return items.nbytes + _CONDITIONS_BYTES


def _ordered(items: IntArray, scores: NDArray[np.float64]) -> IntArray:
    return items[top_k(scores[items], MAX_ORDERED, above=0.0)]


def _add(candidates: Candidates, items: IntArray, source: int) -> Candidates:
    if not len(items):
        return candidates
    return Candidates(
        np.concatenate([candidates.items, items]),
        np.concatenate([candidates.sources, np.full(len(items), source, np.int8)]),
    )
