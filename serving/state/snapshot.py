"""What every request reads: one immutable view of model, trends, rules and catalogue, swapped
whole.

A request takes one snapshot and so answers from one model version and one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.api import Badge, HalfLife
from afterclick.arrays import BoolArray, Float64Array, Int64Array, IntArray
from afterclick.features import TrendView
from afterclick.model import ItemContent
from afterclick.ranking import CandidateGenerator
from afterclick.retrieval import Search, Searches, not_in, top_k
from afterclick.transitions import TransitionGraph
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from serving.state.item_catalogue import Catalogue
from serving.state.loaded_models import LoadedModel

MAX_LISTED = 1000
"""Length of the popular and trending lists."""
PRIOR_RATINGS = 10.0
"""Ratings that the catalogue's share of positive ones counts for in each item's."""
MAX_NEW = 30
"""New items that exploration may add."""
BADGE_MIN_COUNT = 2.0
"""Decayed interactions of the last hour from which an item may trend."""
BADGE_MIN_RATIO = 3.0
"""Rate of the hour over the rate of the month from which an item trends."""
MAX_BADGES = 12
"""Items that trend at the same time."""
NEW_ITEM_MS = 30 * DAY_MS
_HOUR, _MONTH = (list(HALF_LIVES_MS).index(name) for name in ("hour", "month"))


@dataclass(frozen=True, eq=False)
class Badges:
    """Which items trend and which are new."""

    trending: frozenset[int]
    """Indices of the items that trend; few."""
    first_seen_ms: Float64Array
    """(m,) time of the first interaction; NaN where unknown."""
    new_from_ms: float

    def of(self, item: int) -> tuple[Badge, ...]:
        """The badges of an item; most items have none."""
        trends = (Badge.TRENDING,) if item in self.trending else ()
        return (*trends, Badge.NEW) if self.first_seen_ms[item] >= self.new_from_ms else trends


@dataclass(frozen=True)
class Pin:
    """An item and its fixed rank, from 0."""

    rank: int
    item: int


@dataclass(frozen=True, eq=False)
class ActiveRules:
    """The business rules in force, in the item indices of one snapshot."""

    excluded: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """Items that no list shows."""
    boosted: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """(b,) items whose score changes, ascending, each once."""
    amounts: Float64Array = field(default_factory=lambda: np.empty(0))
    """(b,) the change: boosts less buries."""
    pins: tuple[Pin, ...] = ()
    """Each rank and each item once, by rank."""
    forced: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """Forced candidates: pinned items, and the highest-trending boosted ones."""

    def amount_of(self, items: IntArray) -> Float64Array:
        """(c,) what the rules add to the score of each item."""
        added = np.zeros(len(items))
        if len(self.boosted):
            rows = np.searchsorted(self.boosted, items)
            rows[rows == len(self.boosted)] = 0
            hit = self.boosted[rows] == items
            added[hit] = self.amounts[rows[hit]]
        return added


NO_RULES = ActiveRules()


@dataclass(frozen=True, eq=False)
class ItemLookup:
    """The item indices of one snapshot by item id and by catalogue number."""

    index: Callable[[str], int | None]
    """The index of an item id, or None; it may be newer than the snapshot."""
    catalogue_rows: IntArray
    """The index of each catalogue number; -1 for items removed before."""
    count: int
    """Items of the snapshot."""

    def find(self, item_id: str) -> int | None:
        """The index of an item, or None."""
        index = self.index(item_id)
        return index if index is not None and index < self.count else None

    def indices(self, item_ids: Iterable[str]) -> IntArray:
        """Indices of the items that the snapshot knows."""
        return np.array([i for i in map(self.find, item_ids) if i is not None], np.int32)

    def rows(self, numbers: IntArray) -> IntArray:
        """The index of each catalogue number; -1 for an item newer than the snapshot."""
        rows = np.full(len(numbers), -1, np.int32)
        known = numbers < len(self.catalogue_rows)
        rows[known] = self.catalogue_rows[numbers[known]]
        rows[rows >= self.count] = -1
        return rows

    def of_numbers(self, numbers: IntArray) -> IntArray:
        """Indices of the items with these catalogue numbers that the snapshot knows, ascending."""
        rows = self.rows(numbers)
        return np.sort(rows[rows >= 0])


@dataclass(frozen=True, eq=False)
class ServingSnapshot:
    """All that ranking needs besides the user. m items, in the order of `ids`."""

    loaded: LoadedModel
    catalogue: Catalogue
    """The live catalogue, for texts; it may be newer than the snapshot."""
    ids: list[str]
    view: TrendView
    decayed_counts: Float64Array
    """(m, H) interactions by half-life, after the limits on quarantined items."""
    counts: NDArray[np.int64]
    """(m,) interactions, all time."""
    stars: IntArray
    """(m, 4) counts of reviews with stars (`StarCounts`)."""
    trend_score: Float64Array
    """(m,) log2(1 + the mix of the decayed counts)."""
    popularity: Float64Array
    """(m,) positive interactions, reduced for quarantined items, times `rating_factor`."""
    popular: IntArray
    """The most popular items of all time, best first."""
    trending: IntArray
    """The items with the highest trend score, best first."""
    top_by_half_life: Mapping[str, IntArray]
    """The items with the highest decayed counts of each half-life."""
    newest_first: IntArray
    """All items to show: those newer than the model, then by their first interaction."""
    badges: Badges
    now_ms: float
    quarantined: IntArray
    """Items whose trends count established users only."""
    established_share: float
    """The usual share of established users in an item's votes; 0 if unknown."""
    new_account_weight: Float64Array
    """(H,) weight of a new account's vote by half-life: 1 while new accounts are no more than
    usual."""
    content: ItemContent | None
    """Content vectors of all items; None if the model has none."""
    content_search: Search | None
    rules: ActiveRules
    catalogue_version: int
    """`Catalogue.version` when the snapshot was built."""
    generation: int
    """Unique per process."""
    lookup: ItemLookup
    transitions: TransitionGraph | None = None
    """The transition graph with live events; None without any."""
    shown: BoolArray | None = None
    """(m,) items that lists may show: those of the catalogue. None: all."""

    @cached_property
    def generator(self) -> CandidateGenerator | None:
        """Candidates and features by this snapshot's model; None without a model."""
        loaded = self.loaded
        if loaded.model is None:
            return None
        searches = Searches(
            loaded.als_search,
            loaded.tower_search,
            self.content_search,
            self.content,
            loaded.ncf_search,
        )
        return CandidateGenerator(loaded.model, searches, transitions=self.transitions)

    @cached_property
    def new_items(self) -> IntArray:
        """The items added last, which may have no interaction yet."""
        items = np.arange(len(self.trend_score), dtype=np.int32)
        return self._shown_of(items)[-MAX_NEW:]

    @cached_property
    def n_shown(self) -> int:
        """Items that lists may show."""
        return len(self.trend_score) if self.shown is None else int(self.shown.sum())

    def latest(self, n: int, allowed: IntArray | None) -> IntArray:
        """The n newest items, of those `allowed`."""
        if allowed is None:
            return self.visible(self.newest_first[: n + len(self.rules.excluded)])[:n]
        member = np.zeros(len(self.trend_score), bool)
        member[self.visible(allowed)] = True
        return self.newest_first[member[self.newest_first]][:n]

    def most_popular(
        self, window: HalfLife | None, n: int, allowed: IntArray | None
    ) -> tuple[IntArray, Float64Array]:
        """The n most popular items, of those `allowed`, and their scores.

        Of all time, or with interactions within a half-life.
        """
        scores, order = self.popularity, self.popular
        if window is not None:
            scores = self.decayed_counts[:, list(HALF_LIVES_MS).index(window)]
            order = self.top_by_half_life[window]
        if allowed is not None:
            order = self.visible(allowed)
            order = order[top_k(scores[order], n, above=None if window is None else 0.0)]
        items = self.visible(order)[:n]
        return items, scores[items]

    def interactions_of(self, item: int) -> tuple[int, int]:
        """Interactions of an item, and the positive ones."""
        count = int(self.counts[item])
        return count, count - int(self.stars[item, 3])

    def ratings_of(self, item: int) -> dict[str, Any] | None:
        """Number and mean of an item's reviews with stars; None without any."""
        count, stars = self.stars[item, :2].tolist()
        return {"count": count, "mean": round(stars / count, 2)} if count else None

    def ratings_row(self, item: int) -> dict[str, Any]:
        """What a list says about an item's stars: nothing without any."""
        ratings = self.ratings_of(item)
        return {"ratings": ratings} if ratings else {}

    def visible(self, items: IntArray) -> IntArray:
        """`items` without hidden ones and those that rules exclude."""
        items, excluded = self._shown_of(items), self.rules.excluded
        return items[not_in(items, excluded)] if len(excluded) else items

    def _shown_of(self, items: IntArray) -> IntArray:
        return items if self.shown is None else items[self.shown[items]]

    def shows(self, item: int) -> bool:
        """Whether lists may show an item."""
        return self.shown is None or bool(self.shown[item])

    def find(self, item_id: str) -> int | None:
        """The index of an item in this snapshot's arrays, or None."""
        return self.lookup.find(item_id)

    def indices(self, item_ids: Iterable[str]) -> IntArray:
        """Indices of the items that this snapshot knows."""
        return self.lookup.indices(item_ids)

    def interactions(self, numbers: IntArray) -> Int64Array:
        """(n,) all-time interactions of items by catalogue number."""
        rows = self.lookup.rows(numbers)
        return (
            np.where(rows >= 0, self.counts[rows], 0)
            if len(self.counts)
            else np.zeros(len(rows), np.int64)
        )


def rating_factor(stars: IntArray) -> Float64Array:
    """(m,) each item's share of positive ratings over that of the catalogue; 1 without ratings.

    `stars` (m, 4) as in `StarCounts`. The share is a Bayesian mean, (positive + C · p) / (ratings +
    C): p is the share in the catalogue, and counts like C = 10 ratings of every item. It is the
    mean of a beta distribution (Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.4), so
    that few ratings say little.
    """
    ratings, positive = (stars[:, column].astype(np.float64) for column in (0, 2))
    total = ratings.sum()
    prior = positive.sum() / total if total else 0.0
    if not prior:
        return np.ones(len(stars))
    return np.asarray((positive / prior + PRIOR_RATINGS) / (ratings + PRIOR_RATINGS))


def best(scores: Float64Array, count: int) -> IntArray:
    """Indices of the highest positive scores, best first."""
    return top_k(scores, count, above=0.0).astype(np.int32)


def badges(
    decayed_counts: Float64Array, first_seen_ms: NDArray[np.float64], now_ms: float
) -> Badges:
    """Badges, from decayed counts (m, H) as of now and times of first interactions (m,).

    A steady rate r leaves a decayed count of r · half-life / ln 2, so counts over half-lives
    compare as rates.
    """
    hour, month = (
        decayed_counts[:, column] / HALF_LIVES_MS[name]
        for column, name in ((_HOUR, "hour"), (_MONTH, "month"))
    )
    hourly = decayed_counts[:, _HOUR]
    trends = np.flatnonzero((hourly >= BADGE_MIN_COUNT) & (hour >= BADGE_MIN_RATIO * month))
    trends = trends[np.argsort(-hourly[trends], kind="stable")][:MAX_BADGES]
    return Badges(frozenset(trends.tolist()), first_seen_ms, now_ms - NEW_ITEM_MS)
