"""Features of candidates from a model, a user's vectors and live trends.

Training, evaluation and the request path share this code, so that a ranker scores the features it
was trained on. `FEATURES` lists each column and the group of contributions it belongs to.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.kernels import as_items, gather, positions_of, products, similarities
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
_HALF_LIVES_MS = list(HALF_LIVES_MS.values())
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
    rows: IntArray = field(init=False)
    """(c,) row of each candidate in the model's arrays; 0 for the unknown"""

    def __post_init__(self) -> None:
        self.values = np.full((len(FEATURES), len(self.candidates)), np.nan, np.float32)
        self.known = self.candidates < len(self.model)
        self.complete = bool(self.known.all())
        self.rows = self.candidates if self.complete else as_items(self.candidates * self.known)

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
    table, state = _Table(as_items(candidates), model), user.state
    table["popularity"][:] = model.log_popularity[table.rows]
    table.mask_unknown(["popularity"])
    first_seen = model.first_seen_of(table.candidates)
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
    return table.values.T


def _trend_columns(
    table: _Table, state: UserState, trends: TrendView, first_seen: Float64Array
) -> None:
    """Trend and age of the candidates. `first_seen` (c,) ms."""
    share = table.values[_TRENDS : _TRENDS + len(HALF_LIVES_MS)]
    gather(trends.log_share, table.candidates, share)
    np.subtract(share[_WEEK], share[_QUARTER], out=table["rise"])
    np.subtract(share[_THREE_DAYS], share[_MONTH], out=table["rise_days"])
    share[: bisect_left(_HALF_LIVES_MS, table.model.resolution_ms)] = np.nan
    age = (state.now_ms - first_seen) / DAY_MS
    table["item_age_days"][:] = age
    observed = np.log2(np.maximum(age, 0.0) + 30.0)
    np.subtract(table["popularity"], observed, out=table["arrival_rate"], casting="same_kind")


def _history_columns(
    table: _Table, model: Model, state: UserState, trends: TrendView, first_seen: Float64Array
) -> None:
    """The user's newest items, their popularity and their age when chosen."""
    items, times = state.items[:RECENT], state.times_ms[:RECENT]
    item_seen = model.first_seen_of(items)
    popularity = model.log_popularity.take(items, mode="clip")
    popularity[items >= len(model)] = np.nan
    table["last_age_days"][:] = (state.now_ms - times[0]) / DAY_MS
    table["last_popularity"][:] = popularity[0]
    table["last_item_age_days"][:] = (state.now_ms - item_seen[0]) / DAY_MS
    table["last_trend"][:] = trends.log_share[items[0], _MONTH]
    np.divide(first_seen - item_seen[0], DAY_MS, out=table["age_gap_days"], casting="same_kind")
    if len(items) > 1:
        gap = first_seen - item_seen[1]
        np.divide(gap, DAY_MS, out=table["second_age_gap_days"], casting="same_kind")
    table["session_length"][:] = np.count_nonzero(state.now_ms - state.times_ms < DAY_MS)
    table["taste_popularity"][:] = _mean_of_known(popularity.tolist())
    table["taste_age_days"][:] = _mean_of_known(((times - item_seen) / DAY_MS).tolist())


def _mean_of_known(values: list[float]) -> float:
    """Of the values that are not NaN; plain Python, as ten values are few."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def _neighbour_columns(table: _Table, model: Model, recent: IntArray) -> None:
    """Similarity to the recent items by each kind of neighbour list; −1: unknown item."""
    candidates = (positions_of(table.candidates), table.candidates)
    unused = np.empty(len(table.candidates), np.float32)
    lists = [
        ("cosine", model.neighbour_items, model.neighbour_scores),
        ("same_day", model.co_purchase_items, model.co_purchase_scores),
        ("reach", model.random_walk_items, model.random_walk_scores),
    ]
    for name, items, scores in lists:
        if items is not None and scores is not None:
            highest = table[f"{name}_max"] if f"{name}_max" in _COLUMN else unused
            out = (table[f"{name}_last"], highest, table[f"{name}_sum"])
            similarities(items, scores, recent, candidates, out)


def _factor_columns(table: _Table, model: Model, user: FloatArray | None, last: int) -> None:
    """ALS scores for the user, and cosine to the newest item (−1: unknown)."""
    if model.factors is None or model.norms is None or model.rated is None:
        return
    newest = last >= 0 and bool(model.rated[last])
    queries = {"als": user, "als_last": model.factors[last] if newest else None}
    known = {name: vector for name, vector in queries.items() if vector is not None}
    if not known:
        return
    found = products(model.factors, model.rated, table.rows, np.array([*known.values()]))
    for name, row in zip(known, found, strict=True):
        table[name][:] = row
    if newest:
        lengths = model.norms[table.rows] * model.norms[last]
        np.divide(table["als_last"], lengths, out=table["als_last"])


def _tower_columns(table: _Table, model: Model, user: UserVectors) -> None:
    """Logits of the two towers for the whole history and for its newest item alone."""
    if model.towers is None:
        return
    queries = {"tower": user.tower, "tower_last": tower_user(model, user.state.newest())}
    known = {name: vector for name, vector in queries.items() if vector is not None}
    if known:
        logits = model.towers.logits(np.array([*known.values()]), table.rows)
        for name, row in zip(known, logits, strict=True):
            table[name][:] = row


def _content_columns(table: _Table, content: ItemContent | None, recent: IntArray) -> None:
    """Cosine of content to the newest item, and its mean over the recent ones with content."""
    if content is None:
        return
    past = recent[content.has(recent)]
    if not len(past):
        return
    vectors = content.rows(past)
    queries = np.stack([np.add.reduce(vectors) / np.float32(len(past)), vectors[0]])
    table["content_mean"][:], newest = content.products(table.candidates, queries)
    if recent[0] == past[0]:
        table["content_last"][:] = newest
