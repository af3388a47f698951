"""Features of candidates from a model, a user's live history and live trends. NumPy only.

The same code runs in training, in evaluation and on the request path, so what a ranker learned is what it
is asked. `FEATURES` names each column and the part of the receipt it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.content import ItemContent
from afterclick.events import Action
from afterclick.model import Model
from afterclick.neighbour_columns import Order, neighbour_columns
from afterclick.state import HistoryEntry, effective
from afterclick.trends import DAY_MS, HALF_LIVES_MS, TREND_MIX
from afterclick.user_vectors import fold_in, tower_user

PARTS = ("model", "history", "trend", "content")
RECENT = 10
"""How many of the newest items of a history are compared with each candidate."""
_FLOOR = -200.0

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
_COLUMN = {name: at for at, name in enumerate(FEATURE_NAMES)}
_TRENDS = _COLUMN["trend_" + next(iter(HALF_LIVES_MS))]


@dataclass(frozen=True)
class UserState:
    """What is known of a user at a moment, from the live history."""

    items: IntArray
    """(h,) item indices of positive actions, newest first, each item once."""
    weights: FloatArray
    """(h,) the action's weight."""
    times_ms: NDArray[np.float64]
    """(h,) event times."""
    seen: IntArray
    """Item indices never to show: every item of the history, skipped ones too, undone ones not."""
    now_ms: float

    @classmethod
    def of(
        cls,
        history: Iterable[HistoryEntry],
        index: Callable[[str], int | None],
        weights: Mapping[Action, float],
        now_ms: float,
    ) -> UserState:
        """The state from a history, newest entry first. `index` gives an item's row, None if it has none."""
        liked: dict[int, tuple[float, float]] = {}
        seen: dict[int, None] = {}
        for entry in effective(history):
            item = index(entry.item_id)
            if item is None:
                continue
            seen[item] = None
            weight = weights[entry.action]
            if weight > 0 and item not in liked:
                liked[item] = (weight, float(entry.time_ms))
        return cls(
            np.fromiter(liked, np.int32, len(liked)),
            np.array([w for w, _ in liked.values()], np.float32),
            np.array([t for _, t in liked.values()], np.float64),
            np.fromiter(seen, np.int32, len(seen)),
            now_ms,
        )

    def newest(self) -> UserState:
        """As if the newest item were the whole history."""
        return UserState(
            self.items[:1], self.weights[:1], self.times_ms[:1], self.seen, self.now_ms
        )


@dataclass(frozen=True)
class TrendView:
    """The trends of the whole catalogue as of a moment, ready to be looked up. Rebuild it every second."""

    log_share: FloatArray
    """(m, H) log2 of an item's share of all decayed interactions, one column per half-life; m ≥ n."""
    first_seen_ms: NDArray[np.float64]
    """(m,) event time of the first interaction; NaN where unknown."""
    heat: NDArray[np.float64]
    """(m,) the decayed sums mixed: the trend of an item in one number, what users without history get."""
    top: IntArray
    """Trending items: the best of each half-life in turn, each once."""

    @classmethod
    def of(
        cls,
        values: NDArray[np.float64],
        first_seen_ms: NDArray[np.float64],
        top: int = 60,
        weights: NDArray[np.float64] = TREND_MIX,
    ) -> TrendView:
        """From the decayed sums (m, H) as of now, in the order of HALF_LIVES_MS; `top` items of each.

        `weights` (H,) is what each half-life counts for in an item's heat.
        """
        values = np.maximum(values, 0.0)
        totals = values.sum(axis=0)
        share = np.full(values.shape, _FLOOR)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log2(values / np.where(totals > 0, totals, 1.0), out=share, where=values > 0)
        share = np.maximum(share, _FLOOR).astype(np.float32)
        return cls(share, first_seen_ms, values @ weights, _best_of_each(values, top))


def _best_of_each(values: NDArray[np.float64], top: int) -> IntArray:
    top = min(top, len(values))
    if not top:
        return np.empty(0, np.int32)
    part = np.argpartition(-values, top - 1, axis=0)[:top]
    order = np.argsort(-np.take_along_axis(values, part, axis=0), axis=0, kind="stable")
    ranked = np.take_along_axis(part, order, axis=0)
    ranked = np.where(np.take_along_axis(values, ranked, axis=0) > 0, ranked, -1).ravel()
    ranked = ranked[ranked >= 0]
    _, first = np.unique(ranked, return_index=True)
    return ranked[np.sort(first)].astype(np.int32)


def features(
    model: Model,
    state: UserState,
    trends: TrendView,
    candidates: IntArray,
    user_factors: FloatArray | None = None,
    user_towers: FloatArray | None = None,
    content: ItemContent | None = None,
) -> FloatArray:
    """(len(candidates), len(FEATURES)) float32. NaN where a model does not know the item or the user.

    `user_factors` and `user_towers` save what the caller has done already: fold_in and tower_user. `content`
    is the model's own unless that of items which came after it is given, too.
    """
    out = np.full(
        (len(FEATURES), len(candidates)), np.nan, np.float32
    )  # a feature's values side by side
    column = dict(zip(FEATURE_NAMES, out, strict=True))
    n = len(model)
    known = candidates < n
    every = bool(known.all())
    rows = (candidates if every else np.where(known, candidates, 0)).astype(np.intp)
    column["popularity"][:] = model.log_popularity[rows]
    if not every:
        column["popularity"][~known] = 0.0
    born = trends.first_seen_ms[candidates]
    _trend_columns(state, trends, candidates, born, out)
    column["history_length"][:] = len(state.items)
    if not len(state.items):
        return np.ascontiguousarray(out.T)
    _user_columns(model, state, trends, born, column)
    recent = state.items[:RECENT]
    recent = np.where(recent < n, recent, -1)
    order = Order(candidates)
    neighbour_columns(
        model.neighbour_items, model.neighbour_scores, recent, order, column, "cosine"
    )
    neighbour_columns(
        model.same_day_items, model.same_day_scores, recent, order, column, "same_day"
    )
    if model.reach_items is not None and model.reach_scores is not None:
        neighbour_columns(model.reach_items, model.reach_scores, recent, order, column, "reach")
    _factor_columns(model, state, recent, rows, column, user_factors)
    _tower_columns(model, state, rows, column, user_towers)
    _content_columns(content or model.item_content, state.items[:RECENT], candidates, column)
    if not every:
        for name in ("als", "als_last", "tower", "tower_last"):
            column[name][~known] = np.nan
    return np.ascontiguousarray(out.T)


def _trend_columns(
    state: UserState,
    trends: TrendView,
    candidates: IntArray,
    born: NDArray[np.float64],
    out: FloatArray,
) -> None:
    """What the candidates are worth to everyone, now. `born` (c,) is when each was first seen."""
    share = trends.log_share[candidates].T
    out[_TRENDS : _TRENDS + len(HALF_LIVES_MS)] = share
    np.subtract(share[_WEEK], share[_QUARTER], out=out[_COLUMN["rise"]])
    np.subtract(share[_THREE_DAYS], share[_MONTH], out=out[_COLUMN["rise_days"]])
    age = (state.now_ms - born) / DAY_MS
    out[_COLUMN["item_age_days"]] = age
    arrived = np.log2(30.0 + np.fmax(age, 0.0))  # of an item of unknown age as of a new one
    out[_COLUMN["arrival_rate"]] = out[_COLUMN["popularity"]] - arrived


def _user_columns(
    model: Model,
    state: UserState,
    trends: TrendView,
    candidates_born: NDArray[np.float64],
    column: dict[str, FloatArray],
) -> None:
    """What the user is like: the newest items, and how popular and how new what they choose is."""
    items, times = state.items[:RECENT], state.times_ms[:RECENT]
    born = trends.first_seen_ms[items]
    popularity = np.where(items < len(model), model.log_popularity[items % len(model)], 0.0)
    column["last_age_days"][:] = (state.now_ms - times[0]) / DAY_MS
    column["last_popularity"][:] = popularity[0]
    column["last_item_age_days"][:] = (state.now_ms - born[0]) / DAY_MS
    column["last_trend"][:] = trends.log_share[items[0], _MONTH]
    column["age_gap_days"][:] = (candidates_born - born[0]) / DAY_MS
    if len(items) > 1:
        column["second_age_gap_days"][:] = (candidates_born - born[1]) / DAY_MS
    column["session_length"][:] = np.count_nonzero(state.now_ms - state.times_ms < DAY_MS)
    column["taste_popularity"][:] = popularity.mean()
    chosen_at = (times - born) / DAY_MS
    known = np.isfinite(chosen_at)
    if known.any():
        column["taste_age_days"][:] = chosen_at[known].mean()


def _factor_columns(
    model: Model,
    state: UserState,
    recent: IntArray,
    rows: NDArray[np.intp],
    column: dict[str, FloatArray],
    user_factors: FloatArray | None,
) -> None:
    """What ALS thinks of each candidate for the user, and how near it is to the newest item."""
    if model.factors is None or model.norms is None:
        return
    user = fold_in(model, state) if user_factors is None else user_factors
    near, norms = model.factors[rows], model.norms[rows]
    unrated = norms <= 0
    if user is not None:
        np.matmul(near, user, out=column["als"])
        column["als"][unrated] = np.nan
    if recent[0] >= 0 and model.norms[recent[0]] > 0:
        lengths = norms * model.norms[recent[0]]
        lengths[unrated] = np.nan
        np.divide(near @ model.factors[recent[0]], lengths, out=column["als_last"])


def _tower_columns(
    model: Model,
    state: UserState,
    rows: NDArray[np.intp],
    column: dict[str, FloatArray],
    user: FloatArray | None,
) -> None:
    """The logits of the whole history and of its newest item alone."""
    if model.towers is None:
        return
    user = tower_user(model, state) if user is None else user
    last = tower_user(model, state.newest())
    given = {name: v for name, v in (("tower", user), ("tower_last", last)) if v is not None}
    if given:
        logits = model.towers.logits(np.stack(list(given.values()), axis=1), rows)
        for at, name in enumerate(given):
            column[name][:] = logits[:, at]


def _content_columns(
    content: ItemContent | None,
    recent: IntArray,
    candidates: IntArray,
    column: dict[str, FloatArray],
) -> None:
    """How alike each candidate and the newest items are described."""
    if content is None:
        return
    past = recent[content.has(recent)]
    if not len(past):
        return
    described = np.flatnonzero(content.has(candidates))
    similar = content.rows(candidates[described]) @ content.rows(past).T
    column["content_mean"][described] = similar.mean(axis=1)
    if recent[0] == past[0]:
        column["content_last"][described] = similar[:, 0]


def group_contributions(contributions: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Part → (n,), and `base`, from LightGBM's pred_contrib (n, F + 1); they add up to the score."""
    if contributions.shape[1] != len(FEATURES) + 1:
        raise ValueError(f"{contributions.shape[1]} columns, expected {len(FEATURES) + 1}")
    parts = np.array([part for _, part in FEATURES])
    receipt = {part: contributions[:, :-1][:, parts == part].sum(axis=1) for part in PARTS}
    return {**receipt, "base": contributions[:, -1]}
