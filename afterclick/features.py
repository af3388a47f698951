"""Features of candidates from a model, a user's vectors and live trends. NumPy only.

Training, evaluation and the request path share this code, so that a ranker scores the features it
was trained on. `FEATURES` lists each column and the group of contributions it belongs to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IndexArray, IntArray
from afterclick.model import ItemContent, Model
from afterclick.retrieval import top_k
from afterclick.trends import DAY_MS, HALF_LIVES_MS, TREND_MIX
from afterclick.user_vectors import UserState, UserVectors, tower_user

PARTS = ("model", "history", "trend", "content")
"""Groups of contributions to a score."""
RECENT = 10
"""Newest items of a history that each candidate is compared with."""
PRIOR_WEIGHT = 100.0
"""Weight of the interactions that a half-life borrows from the next longer one.

With 100 a single click in an otherwise quiet hour is a share of 1 %, as the items with the highest
trends have in ordinary hours; a decayed total of 1,000 keeps 91 % of its own shares."""
_FLOOR = -200.0
"""log2 of the share of an item without interactions."""

FEATURES: tuple[tuple[str, str], ...] = (
    ("als", "model"),
    ("tower", "model"),
    ("popularity", "model"),
    ("cosine_last", "history"),
    ("cosine_max", "history"),
    ("cosine_sum", "history"),
    ("same_day_last", "history"),
    ("same_day_sum", "history"),
    ("reach_last", "history"),
    ("reach_max", "history"),
    ("reach_sum", "history"),
    ("als_last", "history"),
    ("tower_last", "history"),
    ("history_length", "history"),
    ("last_age_days", "history"),
    ("last_popularity", "history"),
    ("age_gap_days", "history"),
    ("second_age_gap_days", "history"),
    ("last_item_age_days", "history"),
    ("last_trend", "history"),
    ("session_length", "history"),
    ("taste_popularity", "history"),
    ("taste_age_days", "history"),
    *((f"trend_{name}", "trend") for name in HALF_LIVES_MS),
    ("rise", "trend"),
    ("rise_days", "trend"),
    ("arrival_rate", "trend"),
    ("item_age_days", "trend"),
    ("content_last", "content"),
    ("content_mean", "content"),
)
_THREE_DAYS, _WEEK, _MONTH, _QUARTER = map(
    list(HALF_LIVES_MS).index, ("three_days", "week", "month", "quarter")
)
FEATURE_NAMES: tuple[str, ...] = tuple(name for name, _ in FEATURES)
_COLUMN = {name: number for number, name in enumerate(FEATURE_NAMES)}
_TRENDS = _COLUMN["trend_" + next(iter(HALF_LIVES_MS))]


@dataclass(frozen=True)
class TrendView:
    """Trends of the whole catalogue as of a moment, for lookups; rebuilt every second."""

    log_share: FloatArray
    """(m, H) log2 of an item's share of all decayed interactions, per half-life; m ≥ n.

    Shares of a half-life with few interactions shrink towards those of the next longer one."""
    first_seen_ms: Float64Array
    """(m,) event time of the first interaction; NaN where unknown. Features use the model's."""
    trend_score: Float64Array
    """(m,) weighted sum of the decayed interactions: an item's trend as one number."""
    top: IntArray
    """Trending items without repeats: the best of each half-life, alternating."""

    @classmethod
    def of(
        cls,
        values: Float64Array,
        first_seen_ms: Float64Array,
        top: int = 60,
        weights: Float64Array = TREND_MIX,
    ) -> TrendView:
        """From decayed sums (m, H) as of now, in the order of HALF_LIVES_MS.

        `top` items of each half-life; `weights` (H,) of the half-lives in `trend_score`.
        """
        values = np.maximum(values, 0.0)
        log_share = np.log2(np.maximum(_shares(values), 2.0**_FLOOR)).astype(np.float32)
        return cls(log_share, first_seen_ms, values @ weights, _top_of_each(values, top))


def _shares(values: Float64Array) -> Float64Array:
    """(m, H) shares of decayed sums (m, H): (sum + k · prior) / (total + k), k = PRIOR_WEIGHT.

    The prior is the share of the next longer half-life; the longest one has none. That is the mean
    of a Dirichlet posterior: a quiet hour has the shares of the day.
    """
    totals = values.sum(axis=0)
    shares = values / np.where(totals > 0, totals, 1.0)
    for column in reversed(range(values.shape[1] - 1)):
        own = totals[column] / (totals[column] + PRIOR_WEIGHT)
        shares[:, column] *= own
        shares[:, column] += (1.0 - own) * shares[:, column + 1]
    return shares


def _top_of_each(values: Float64Array, k: int) -> IntArray:
    """The `k` highest positive values of each column (m, H), alternating, without repeats."""
    columns = [top_k(column, k, above=0.0) for column in values.T]
    ranked = np.full((min(k, len(values)), values.shape[1]), -1)
    for number, items in enumerate(columns):
        ranked[: len(items), number] = items
    flat = ranked[ranked >= 0]
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)].astype(np.int32)


@dataclass
class _Table:
    """The feature table in progress, transposed: the values of a feature are contiguous."""

    candidates: IntArray
    model: Model
    """Candidates ≥ len(model) came after it."""
    known: BoolArray = field(init=False)
    """(c,) candidates that the model knows"""
    rows: IndexArray = field(init=False)
    """(c,) row of each candidate in the model's arrays; 0 for the unknown"""

    def __post_init__(self) -> None:
        self.values = np.full((len(FEATURES), len(self.candidates)), np.nan, np.float32)
        self.known = self.candidates < len(self.model)
        self.complete = bool(self.known.all())
        rows = self.candidates if self.complete else np.where(self.known, self.candidates, 0)
        self.rows = rows.astype(np.intp)

    def __getitem__(self, name: str) -> FloatArray:
        column: FloatArray = self.values[_COLUMN[name]]
        return column

    def mask_unknown(self, names: Sequence[str]) -> None:
        """Set these features of candidates unknown to the model to NaN."""
        if not self.complete:
            for name in names:
                self[name][~self.known] = np.nan


def features(
    model: Model,
    user: UserVectors,
    trends: TrendView,
    candidates: IntArray,
    content: ItemContent | None = None,
) -> FloatArray:
    """(len(candidates), len(FEATURES)) float32; NaN where a model knows no such item or user.

    Popularity and ages are unknown for items without interactions in training, and short trends for
    models of data with a coarser resolution. `content`: default the model's own; give the
    snapshot's to include new items.
    """
    table, state = _Table(candidates, model), user.state
    table["popularity"][:] = model.log_popularity[table.rows]
    table.mask_unknown(["popularity"])
    first_seen = model.first_seen_of(candidates)
    _trend_columns(table, state, trends, first_seen)
    table["history_length"][:] = len(state.items)
    if len(state.items):
        recent = state.items[:RECENT]
        recent_known = np.where(recent < len(model), recent, -1)
        _history_columns(table, model, state, trends, first_seen)
        _neighbour_columns(table, model, recent_known)
        _factor_columns(table, model, user.factors, int(recent_known[0]))
        _tower_columns(table, model, user)
        _content_columns(table, content or model.item_content, recent)
        table.mask_unknown(["als", "als_last", "tower", "tower_last"])
    return np.ascontiguousarray(table.values.T)


def _trend_columns(
    table: _Table, state: UserState, trends: TrendView, first_seen: Float64Array
) -> None:
    """Trend and age of the candidates. `first_seen` (c,) ms."""
    share = trends.log_share[table.candidates].T
    shortest = bisect_left(list(HALF_LIVES_MS.values()), table.model.resolution_ms)
    table.values[_TRENDS + shortest : _TRENDS + len(HALF_LIVES_MS)] = share[shortest:]
    np.subtract(share[_WEEK], share[_QUARTER], out=table["rise"])
    np.subtract(share[_THREE_DAYS], share[_MONTH], out=table["rise_days"])
    age = (state.now_ms - first_seen) / DAY_MS
    table["item_age_days"][:] = age
    table["arrival_rate"][:] = table["popularity"] - np.log2(30.0 + np.maximum(age, 0.0))


def _history_columns(
    table: _Table, model: Model, state: UserState, trends: TrendView, first_seen: Float64Array
) -> None:
    """The user's newest items, their popularity and their age when chosen."""
    items, times = state.items[:RECENT], state.times_ms[:RECENT]
    item_seen = model.first_seen_of(items)
    popularity = np.where(items < len(model), model.log_popularity[items % len(model)], np.nan)
    table["last_age_days"][:] = (state.now_ms - times[0]) / DAY_MS
    table["last_popularity"][:] = popularity[0]
    table["last_item_age_days"][:] = (state.now_ms - item_seen[0]) / DAY_MS
    table["last_trend"][:] = trends.log_share[items[0], _MONTH]
    table["age_gap_days"][:] = (first_seen - item_seen[0]) / DAY_MS
    if len(items) > 1:
        table["second_age_gap_days"][:] = (first_seen - item_seen[1]) / DAY_MS
    table["session_length"][:] = np.count_nonzero(state.now_ms - state.times_ms < DAY_MS)
    table["taste_popularity"][:] = _mean_of_known(popularity)
    table["taste_age_days"][:] = _mean_of_known((times - item_seen) / DAY_MS)


def _mean_of_known(values: NDArray[np.floating]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


class _Positions:
    """Finds items among the candidates, which have no repeats."""

    def __init__(self, candidates: IntArray) -> None:
        self._order: IndexArray | None = None
        self._sorted = candidates
        if (candidates[1:] < candidates[:-1]).any():
            self._order = candidates.argsort()
            self._sorted = candidates[self._order]
        self.count = len(candidates)

    def find(self, items: IntArray) -> tuple[IndexArray, BoolArray]:
        """The position of each item among the candidates, and whether it is one."""
        position = self._sorted.searchsorted(items)
        position[position == self.count] = 0
        found = self._sorted[position] == items
        return (position if self._order is None else self._order[position]), found


def _neighbour_columns(table: _Table, model: Model, recent: IntArray) -> None:
    """Similarity to the recent items by each kind of neighbour list; −1: unknown item."""
    positions = _Positions(table.candidates)
    lists = [
        ("cosine", model.neighbour_items, model.neighbour_scores),
        ("same_day", model.co_purchase_items, model.co_purchase_scores),
        ("reach", model.random_walk_items, model.random_walk_scores),
    ]
    for name, items, scores in lists:
        if items is not None and scores is not None:
            known = np.flatnonzero(recent >= 0)
            _similarity_columns(
                table, name, positions, known, (items[recent[known]], scores[recent[known]])
            )


def _similarity_columns(
    table: _Table,
    name: str,
    positions: _Positions,
    age_ranks: IndexArray,
    neighbours: tuple[IntArray, FloatArray],
) -> None:
    """Similarity to the newest item, the highest, and the sum with weights 1, 1/2, 1/3, … by age
    rank.

    `neighbours`: items (h, K) and scores (h, K) of history items with these ranks (h,).
    """
    last, total = table[f"{name}_last"], table[f"{name}_sum"]
    highest = table[f"{name}_max"] if f"{name}_max" in _COLUMN else None
    last[:] = 0.0
    total[:] = 0.0
    if highest is not None:
        highest[:] = 0.0
    if not len(age_ranks) or not positions.count:
        return
    items, scores = neighbours
    position, found = positions.find(items)
    position, scores = position[found], scores[found]
    rank = np.broadcast_to(age_ranks[:, None], items.shape)[found]
    if age_ranks[0] == 0:
        last[position[rank == 0]] = scores[rank == 0]
    total[:] = np.bincount(position, scores / (rank + 1), positions.count)
    if highest is not None:
        np.maximum.at(highest, position, scores)


def _factor_columns(table: _Table, model: Model, user: FloatArray | None, last: int) -> None:
    """ALS scores for the user, and cosine to the newest item (−1: unknown)."""
    if model.factors is None or model.norms is None:
        return
    factors, norms = model.factors[table.rows], model.norms[table.rows]
    unrated = norms <= 0
    if user is not None:
        np.matmul(factors, user, out=table["als"])
        table["als"][unrated] = np.nan
    if last >= 0 and model.norms[last] > 0:
        lengths = norms * model.norms[last]
        lengths[unrated] = np.nan
        np.divide(factors @ model.factors[last], lengths, out=table["als_last"])


def _tower_columns(table: _Table, model: Model, user: UserVectors) -> None:
    """Logits of the two towers for the whole history and for its newest item alone."""
    if model.towers is None:
        return
    newest = tower_user(model, user.state.newest())
    vectors = {"tower": user.tower, "tower_last": newest}
    known = {name: vector for name, vector in vectors.items() if vector is not None}
    if known:
        logits = model.towers.logits(np.stack(list(known.values()), axis=1), table.rows)
        for number, name in enumerate(known):
            table[name][:] = logits[:, number]


def _content_columns(table: _Table, content: ItemContent | None, recent: IntArray) -> None:
    """Cosine of content to the newest item, and its mean over the recent ones with content."""
    if content is None:
        return
    past = recent[content.has(recent)]
    if not len(past):
        return
    described = np.flatnonzero(content.has(table.candidates))
    similar = content.rows(table.candidates[described]) @ content.rows(past).T
    table["content_mean"][described] = similar.mean(axis=1)
    if recent[0] == past[0]:
        table["content_last"][described] = similar[:, 0]
