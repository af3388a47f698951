"""Features of candidates from a model, a user's live history and live trends. NumPy only.

The same code runs in training, in evaluation and on the request path, so what a ranker learned is what it
is asked. `FEATURES` names each column and the part of the receipt it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.events import Action
from afterclick.model import FloatArray, IntArray, Model
from afterclick.state import HistoryEntry, standing
from afterclick.trends import DAY_MS, HALF_LIVES_MS

PARTS = ("model", "history", "trend", "content")
RECENT = 10
"""How many of the newest items of a history are compared with each candidate."""
_FLOOR = -200.0
_FEW = 16
"""Items of a history up to which fold-in is cheaper by Woodbury's identity."""

FEATURES: tuple[tuple[str, str], ...] = (
    ("als", "model"),
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
    ("history_length", "history"),
    ("last_age_days", "history"),
    ("last_popularity", "history"),
    ("age_gap_days", "history"),
    *((f"trend_{name}", "trend") for name in HALF_LIVES_MS),
    ("rise", "trend"),
    ("item_age_days", "trend"),
    ("content_last", "content"),
    ("content_mean", "content"),
)
_WEEK, _QUARTER = list(HALF_LIVES_MS).index("week"), list(HALF_LIVES_MS).index("quarter")
FEATURE_NAMES: tuple[str, ...] = tuple(name for name, _ in FEATURES)


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
        for entry in standing(history):
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


@dataclass(frozen=True)
class TrendView:
    """The trends of the whole catalogue as of a moment, ready to be looked up. Rebuild it every second."""

    log_share: FloatArray
    """(m, H) log2 of an item's share of all decayed interactions, one column per half-life; m ≥ n."""
    first_seen_ms: NDArray[np.float64]
    """(m,) event time of the first interaction; NaN where unknown."""
    top: IntArray
    """Trending items: the best of each half-life in turn, each once."""

    @classmethod
    def of(cls, values: NDArray[np.float64], first_seen_ms: NDArray[np.float64], top: int = 60) -> TrendView:
        """From the decayed sums (m, H) as of now, in the order of HALF_LIVES_MS; `top` items of each."""
        values = np.maximum(values, 0.0)
        totals = values.sum(axis=0)
        share = np.full(values.shape, _FLOOR)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log2(values / np.where(totals > 0, totals, 1.0), out=share, where=values > 0)
        return cls(np.maximum(share, _FLOOR).astype(np.float32), first_seen_ms, _best_of_each(values, top))


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


def fold_in(model: Model, state: UserState) -> FloatArray | None:
    """The user's factors (k,) from the live history, by one k×k solve; None where ALS knows no item of it.

    Hu, Koren, Volinsky (ICDM 2008), eq. 4, as Spark's ALS solves it: confidence 1 + α·r with r the action's
    weight, λ = regParam times the number of the user's interactions.
    """
    if model.factors is None or model.gram is None or model.norms is None:
        return None
    known = state.items < len(model)
    items, weights = state.items[known], state.weights[known]
    rated = model.norms[items] > 0
    factors = model.factors[items[rated]].astype(np.float64)
    extra = model.als_alpha * weights[rated].astype(np.float64)
    if not len(factors):
        return None
    ridge = model.als_reg * len(factors)
    if len(factors) <= _FEW and model.spectrum is not None:
        return _fold_in_few(model.spectrum, factors, extra, ridge)
    left = model.gram + (factors * extra[:, None]).T @ factors
    left.flat[:: len(left) + 1] += ridge
    return np.linalg.solve(left, factors.T @ (1.0 + extra)).astype(np.float32)


def _fold_in_few(
    spectrum: tuple[NDArray[np.float64], NDArray[np.float64]],
    factors: NDArray[np.float64],
    extra: NDArray[np.float64],
    ridge: float,
) -> FloatArray:
    """The same solution by Woodbury's identity over the eigenvectors of the gram matrix: an h×h solve."""
    values, vectors = spectrum
    inverse = 1.0 / (values + ridge)
    rotated = factors @ vectors
    scaled = rotated * inverse
    right = (1.0 + extra) @ rotated
    small = scaled @ rotated.T
    small.flat[:: len(small) + 1] += 1.0 / extra
    solved = inverse * right - scaled.T @ np.linalg.solve(small, scaled @ right)
    return np.asarray(vectors @ solved, np.float32)


def features(
    model: Model,
    state: UserState,
    trends: TrendView,
    candidates: IntArray,
    user_factors: FloatArray | None = None,
) -> FloatArray:
    """(len(candidates), len(FEATURES)) float32. NaN where a model does not know the item or the user.

    `user_factors` saves the fold-in where the caller has done it already.
    """
    out = np.full((len(candidates), len(FEATURES)), np.nan, np.float32)
    column = {name: out[:, i] for i, name in enumerate(FEATURE_NAMES)}
    n = len(model)
    known = candidates < n
    rows = np.where(known, candidates, 0)
    column["popularity"][:] = np.where(known, np.log2(1.0 + model.popularity[rows]), 0.0)
    first = FEATURE_NAMES.index("trend_" + next(iter(HALF_LIVES_MS)))
    out[:, first : first + len(HALF_LIVES_MS)] = trends.log_share[candidates]
    column["rise"][:] = trends.log_share[candidates, _WEEK] - trends.log_share[candidates, _QUARTER]
    column["item_age_days"][:] = (state.now_ms - trends.first_seen_ms[candidates]) / DAY_MS
    column["history_length"][:] = len(state.items)
    if not len(state.items):
        return out
    column["last_age_days"][:] = (state.now_ms - state.times_ms[0]) / DAY_MS
    last = int(state.items[0])
    column["age_gap_days"][:] = (trends.first_seen_ms[candidates] - trends.first_seen_ms[last]) / DAY_MS
    column["last_popularity"][:] = np.log2(1.0 + model.popularity[last]) if last < n else 0.0
    recent = state.items[:RECENT]
    recent = np.where(recent < n, recent, -1)
    order = _Order(candidates)
    _neighbour_columns(model.neighbour_items, model.neighbour_scores, recent, order, column, "cosine")
    _neighbour_columns(model.same_day_items, model.same_day_scores, recent, order, column, "same_day")
    if model.reach_items is not None and model.reach_scores is not None:
        _neighbour_columns(model.reach_items, model.reach_scores, recent, order, column, "reach")
    _factor_columns(model, state, recent, rows, column, user_factors)
    _content_columns(model, recent, rows, column)
    if not known.all():
        for name in ("als", "als_last", "content_last", "content_mean"):
            column[name][~known] = np.nan
    return out


class _Order:
    """Finds items among the candidates, each of which is there once."""

    def __init__(self, candidates: IntArray) -> None:
        self._by: NDArray[np.intp] | None = None
        self._sorted = candidates
        if (candidates[1:] < candidates[:-1]).any():
            self._by = candidates.argsort()
            self._sorted = candidates[self._by]
        self.count = len(candidates)

    def find(self, items: IntArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each item stands among the candidates, and whether it is there at all."""
        at = self._sorted.searchsorted(items)
        at[at == self.count] = 0
        found = self._sorted[at] == items
        return (at if self._by is None else self._by[at]), found


def _neighbour_columns(
    items: IntArray,
    scores: FloatArray,
    recent: IntArray,
    order: _Order,
    column: dict[str, FloatArray],
    name: str,
) -> None:
    """Similarity to the newest item and to the recent ones, an older one worth less (1, 1/2, 1/3, …)."""
    last, total = column[f"{name}_last"], column[f"{name}_sum"]
    best = column.get(f"{name}_max")
    known = np.flatnonzero(recent >= 0)
    last[:] = 0.0
    total[:] = 0.0
    if best is not None:
        best[:] = 0.0
    if not len(known) or not order.count:
        return
    near, score = items[recent[known]], scores[recent[known]]
    at, found = order.find(near)
    at, score = at[found], score[found]
    step = np.broadcast_to(known[:, None], near.shape)[found]
    if known[0] == 0:
        last[at[step == 0]] = score[step == 0]
    total[:] = np.bincount(at, score / (step + 1), order.count)
    if best is not None:
        np.maximum.at(best, at, score)


def _factor_columns(
    model: Model,
    state: UserState,
    recent: IntArray,
    rows: NDArray[np.intp],
    column: dict[str, FloatArray],
    user_factors: FloatArray | None,
) -> None:
    if model.factors is None or model.norms is None:
        return
    user = fold_in(model, state) if user_factors is None else user_factors
    near, norms = model.factors[rows], model.norms[rows]
    rated = norms > 0
    if user is not None:
        column["als"][:] = np.where(rated, near @ user, np.nan)
    if recent[0] >= 0 and model.norms[recent[0]] > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = (near @ model.factors[recent[0]]) / (norms * model.norms[recent[0]])
        column["als_last"][:] = np.where(rated, cosine, np.nan)


def _content_columns(
    model: Model, recent: IntArray, rows: NDArray[np.intp], column: dict[str, FloatArray]
) -> None:
    if model.content is None or model.described is None:
        return
    newest, recent = recent[0], recent[recent >= 0]
    past = recent[model.described[recent]]
    if not len(past):
        return
    described = np.flatnonzero(model.described[rows])
    similar = model.content[rows[described]] @ model.content[past].T
    column["content_mean"][described] = similar.mean(axis=1)
    if newest == past[0]:
        column["content_last"][described] = similar[:, 0]


def group_contributions(contributions: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Part → (n,), and `base`, from LightGBM's pred_contrib (n, F + 1); they add up to the score."""
    if contributions.shape[1] != len(FEATURES) + 1:
        raise ValueError(f"{contributions.shape[1]} columns, expected {len(FEATURES) + 1}")
    parts = np.array([part for _, part in FEATURES])
    receipt = {part: contributions[:, :-1][:, parts == part].sum(axis=1) for part in PARTS}
    return {**receipt, "base": contributions[:, -1]}
