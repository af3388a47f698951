"""Features of candidates from a model, a user's vectors and live trends.

Training, evaluation and the request path share this code, so that a ranker scores the features it
was trained on. `FEATURES` lists each column and the group of contributions it belongs to.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick import kernels, ncf, sequence_encoder, transitions
from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.compiled import compiled
from afterclick.dislikes import dislike_share
from afterclick.kernels import as_items, positions_of, products, similarities
from afterclick.model import ItemContent, Model
from afterclick.retrieval import top_k
from afterclick.transitions import TransitionRows, transition_rows
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
    ("ncf_score", "model"),
    ("popularity", "model"),
    ("cosine_last", "history"),
    ("cosine_max", "history"),
    ("cosine_sum", "history"),
    ("same_day_last", "history"),
    ("same_day_sum", "history"),
    ("reach_last", "history"),
    ("reach_max", "history"),
    ("reach_sum", "history"),
    ("transition_score", "history"),
    ("transition_last", "history"),
    ("transition_share", "history"),
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
    ("disliked_share", "history"),
    ("disliked_content_max", "history"),
    ("disliked_cosine_max", "history"),
    ("disliked_cosine_sum", "history"),
    ("disliked_count", "history"),
    ("disliked_age_days", "history"),
    ("days_since_purchase", "history"),
    ("shown_today", "history"),
    ("page", "history"),
    ("device", "history"),
)
_THREE_DAYS, _WEEK, _MONTH, _QUARTER = map(
    list(HALF_LIVES_MS).index, ("three_days", "week", "month", "quarter")
)
FEATURE_NAMES: tuple[str, ...] = tuple(name for name, _ in FEATURES)
_HALF_LIVES_MS = list(HALF_LIVES_MS.values())
_COLUMN = {name: number for number, name in enumerate(FEATURE_NAMES)}
_TRANSITIONS = _COLUMN["transition_score"]
_TRENDS = _COLUMN["trend_" + next(iter(HALF_LIVES_MS))]
_POPULARITY, _RISE, _RISE_DAYS, _ARRIVAL_RATE, _ITEM_AGE, _AGE_GAP, _SECOND_AGE_GAP = (
    _COLUMN[name]
    for name in (
        "popularity",
        "rise",
        "rise_days",
        "arrival_rate",
        "item_age_days",
        "age_gap_days",
        "second_age_gap_days",
    )
)
_HISTORY_LENGTH, _SESSION_LENGTH, _TASTE_POPULARITY, _TASTE_AGE = (
    _COLUMN[name]
    for name in ("history_length", "session_length", "taste_popularity", "taste_age_days")
)
_LAST_AGE, _LAST_POPULARITY, _LAST_ITEM_AGE, _LAST_TREND = (
    _COLUMN[name]
    for name in ("last_age_days", "last_popularity", "last_item_age_days", "last_trend")
)
_FACTOR_ROWS, _TOWER_ROWS, _CONTENT_ROWS = (
    np.array([_COLUMN[name] for name in names], np.int32)
    for names in (("als", "als_last"), ("tower", "tower_last"), ("content_last", "content_mean"))
)


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
    state, candidates = user.state, as_items(candidates)
    table = np.full((len(FEATURES), len(candidates)), np.nan, np.float32)
    past = as_items(state.items), state.times_ms, state.now_ms
    context_rows(
        table,
        candidates,
        (model.log_popularity, model.first_seen_rounded_ms),
        trends.log_share,
        past,
    )
    table[_TRENDS : _TRENDS + bisect_left(_HALF_LIVES_MS, model.resolution_ms)] = np.nan
    if len(state.items):
        recent = past[0][:RECENT]
        known = np.where(recent < len(model), recent, np.int32(-1))
        _neighbour_rows(table, model, known, candidates)
        _transition_rows(table, user.transitions, candidates)
        _factor_rows(table, model, user.factors, int(known[0]), candidates)
        _tower_rows(table, model, user, candidates)
        if model.ncf is not None and user.ncf is not None:
            model.ncf.write_scores(user.ncf, candidates, table[_COLUMN["ncf_score"]])
        _content_rows(table, content or model.item_content, recent, candidates)
    if len(state.disliked):
        _disliked_rows(table, model, state, content or model.item_content, candidates)
    if len(state.purchased):
        _purchase_row(table, state, candidates)
    table[_COLUMN["shown_today"]] = 0.0
    if len(state.shown):
        again, at = _found_in(state.shown, candidates)
        table[_COLUMN["shown_today"], again] = state.shown_counts[at]
    table[_COLUMN["page"]], table[_COLUMN["device"]] = state.context
    return table.T


@compiled
def context_rows(
    table: FloatArray,
    candidates: IntArray,
    of_items: tuple[FloatArray, Float64Array],
    log_share: FloatArray,
    past: tuple[IntArray, Float64Array, float],
) -> None:
    """Write popularity, trends and ages of candidates (c,), and facts of the history, into rows.

    `of_items`: log popularity and first interaction (ms) of the model's items (n,); `log_share`
    (m, H); `past`: items (h,), newest first, their times in ms, and now.
    """
    log_popularity, first_seen = of_items
    items, times, now = past
    n = len(log_popularity)
    newest = first_seen[items[0]] if len(items) and items[0] < n else np.nan
    second = first_seen[items[1]] if len(items) > 1 and items[1] < n else np.nan
    for position in range(len(candidates)):
        item = candidates[position]
        popularity, seen = np.float32(np.nan), np.nan
        if item < n:
            popularity, seen = log_popularity[item], first_seen[item]
        table[_POPULARITY, position] = popularity
        for half_life in range(log_share.shape[1]):
            table[_TRENDS + half_life, position] = log_share[item, half_life]
        table[_RISE, position] = log_share[item, _WEEK] - log_share[item, _QUARTER]
        table[_RISE_DAYS, position] = log_share[item, _THREE_DAYS] - log_share[item, _MONTH]
        age = (now - seen) / DAY_MS
        table[_ITEM_AGE, position] = age
        table[_ARRIVAL_RATE, position] = popularity - np.log2(np.maximum(age, 0.0) + 30.0)
        table[_AGE_GAP, position] = (seen - newest) / DAY_MS
        table[_SECOND_AGE_GAP, position] = (seen - second) / DAY_MS
    table[_HISTORY_LENGTH] = len(items)
    if not len(items):
        return
    known, taste, ages, dated = 0, 0.0, 0.0, 0
    for rank in range(min(len(items), RECENT)):
        item = items[rank]
        if item >= n:
            continue
        if not np.isnan(log_popularity[item]):
            taste += log_popularity[item]
            known += 1
        if not np.isnan(first_seen[item]):
            ages += (times[rank] - first_seen[item]) / DAY_MS
            dated += 1
    session = 0
    for time in times:
        session += now - time < DAY_MS
    table[_LAST_AGE] = (now - times[0]) / DAY_MS
    table[_LAST_POPULARITY] = log_popularity[items[0]] if items[0] < n else np.float32(np.nan)
    table[_LAST_ITEM_AGE] = (now - newest) / DAY_MS
    table[_LAST_TREND] = log_share[items[0], _MONTH]
    table[_SESSION_LENGTH] = session
    table[_TASTE_POPULARITY] = taste / known if known else np.nan
    table[_TASTE_AGE] = ages / dated if dated else np.nan


def _neighbour_rows(
    table: FloatArray, model: Model, recent: IntArray, candidates: IntArray
) -> None:
    """Similarity to the recent items by each kind of neighbour list; −1: unknown item."""
    positions = positions_of(candidates), candidates
    unused = np.empty(len(candidates), np.float32)
    lists = [
        ("cosine", model.neighbour_items, model.neighbour_scores),
        ("same_day", model.co_purchase_items, model.co_purchase_scores),
        ("reach", model.random_walk_items, model.random_walk_scores),
    ]
    for name, items, scores in lists:
        if items is not None and scores is not None:
            highest = _COLUMN.get(f"{name}_max")
            out = (
                table[_COLUMN[f"{name}_last"]],
                unused if highest is None else table[highest],
                table[_COLUMN[f"{name}_sum"]],
            )
            similarities(items, scores, recent, positions, out)


def _transition_rows(table: FloatArray, rows: TransitionRows, candidates: IntArray) -> None:
    """What users took after the recent items; NaN without a graph."""
    if rows.items.shape[1]:
        out = table[_TRANSITIONS], table[_TRANSITIONS + 1], table[_TRANSITIONS + 2]
        transition_rows(rows, (positions_of(candidates), candidates), out)


def _factor_rows(
    table: FloatArray, model: Model, user: FloatArray | None, last: int, candidates: IntArray
) -> None:
    """ALS scores for the user, and cosine to the newest item (−1: unknown)."""
    if model.factors is None or model.norms is None or model.rated is None:
        return
    newest = model.factors[last] if last >= 0 and model.rated[last] else None
    queries = _queries(model.factors.shape[1], user, newest)
    vectors = model.factors, model.factors[:0]
    products(vectors, model.rated, candidates, queries, (table, _FACTOR_ROWS))
    if newest is not None:
        lengths = model.norms.take(candidates, mode="clip")
        lengths *= model.norms[last]
        table[_FACTOR_ROWS[1]] /= lengths


def _tower_rows(table: FloatArray, model: Model, user: UserVectors, candidates: IntArray) -> None:
    """Logits of the two towers for the whole history and for its newest item alone."""
    towers = model.towers
    if towers is None:
        return
    newest = tower_user(model, user.state.newest())
    queries = _queries(towers.targets.shape[1], user.tower, newest)
    vectors = towers.targets, towers.targets[:0]
    products(vectors, towers.known, candidates, queries, (table, _TOWER_ROWS))


def _content_rows(
    table: FloatArray, content: ItemContent | None, recent: IntArray, candidates: IntArray
) -> None:
    """Cosine of content to the newest item, and its mean over the recent ones with content."""
    if content is None:
        return
    past = recent[content.has(recent)]
    if not len(past):
        return
    vectors = content.rows(past)
    newest = vectors[0] if recent[0] == past[0] else None
    mean = np.add.reduce(vectors) / np.float32(len(past))
    queries = _queries(vectors.shape[1], newest, mean)
    every = content.vectors, content.new
    products(every, content.known, candidates, queries, (table, _CONTENT_ROWS))


def _disliked_rows(
    table: FloatArray,
    model: Model,
    state: UserState,
    content: ItemContent | None,
    candidates: IntArray,
) -> None:
    """How similar the candidates are to what the user disliked lately, and how long ago it was."""
    disliked = as_items(state.disliked)
    table[_COLUMN["disliked_count"]] = len(disliked)
    table[_COLUMN["disliked_age_days"]] = (state.now_ms - state.disliked_ms[0]) / DAY_MS
    known = np.where(disliked < len(model), disliked, np.int32(-1))
    positions, unused = (positions_of(candidates), candidates), np.empty(len(candidates), "f")
    rows = (table[_COLUMN[f"disliked_cosine_{name}"]] for name in ("max", "sum"))
    out = (unused, *rows)
    similarities(model.neighbour_items, model.neighbour_scores, known, positions, out)
    if content is None:
        return
    past = content.rows(np.concatenate([disliked, as_items(state.items[:RECENT])]))
    against, liked = np.split(past, [len(disliked)])
    similar = past @ content.rows(candidates).T
    similar[:, ~content.has(candidates)] = np.nan
    similar[: len(disliked)].max(axis=0, out=table[_COLUMN["disliked_content_max"]])
    table[_COLUMN["disliked_share"]] = dislike_share(
        similar, (against, state.disliked_ms), (liked, state.times_ms[:RECENT]), state.now_ms
    )


def _purchase_row(table: FloatArray, state: UserState, candidates: IntArray) -> None:
    """Days since the user bought a candidate; seen items are candidates only where a category
    allows repeat purchases."""
    order = np.argsort(state.purchased)
    again, at = _found_in(state.purchased[order], candidates)
    days = (state.now_ms - state.purchased_ms[order][at]) / DAY_MS
    table[_COLUMN["days_since_purchase"], again] = days


def _found_in(items: IntArray, candidates: IntArray) -> tuple[BoolArray, NDArray[np.intp]]:
    """(c,) which candidates are among the items (s,), ascending, and their places in these."""
    at = np.minimum(np.searchsorted(items, candidates), len(items) - 1)
    found = items[at] == candidates
    return found, at[found]


def _queries(width: int, *vectors: FloatArray | None) -> FloatArray:
    """(q, width) the vectors as rows; NaN for None, so that its products are unknown."""
    queries = np.full((len(vectors), width), np.nan, np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            queries[row] = vector
    return queries


def warm_up() -> None:
    """Compile what a list of features takes, or load its machine code (`kernels.warm_up`)."""
    items, ones = np.zeros(1, np.int32), np.ones(1)
    table = np.zeros((len(FEATURES), 1), np.float32)
    log_share = np.zeros((1, len(HALF_LIVES_MS)), np.float32)
    context_rows(table, items, (table[0], ones), log_share, (items, ones, 1.0))
    kernels.warm_up()
    ncf.warm_up()
    transitions.warm_up()
    sequence_encoder.warm_up()
