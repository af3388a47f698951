"""What serving would have known at each query: user states and trends, rebuilt from the
interactions.

Everything is strictly before the query's moment, except the live event. The data has the resolution
of a day, so the events of that same day, the target among them, are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import AnyArray, IntArray
from afterclick.features import TrendView
from afterclick.model import UNKNOWN_BIAS, Model, TowerArrays
from afterclick.quarantine import QuarantineLimits
from afterclick.user_vectors import UserState
from training.interactions import Interactions
from training.models.popularity import trends_at
from training.protocols import Queries


@dataclass(frozen=True)
class Histories:
    """The rows of each user, newest last."""

    rows: Interactions
    order: NDArray[np.intp]
    start: NDArray[np.intp]
    """(n_users + 1,) bounds of each user in `order`."""
    live_weight: float
    """Weight of a live event: the median of all."""

    @classmethod
    def of(cls, rows: Interactions) -> Histories:
        order = np.argsort(rows.user, kind="stable")
        start = np.searchsorted(rows.user[order], np.arange(len(rows.user_ids) + 1))
        return cls(rows, order, start, float(np.median(rows.weight)) if len(rows) else 1.0)

    def state(self, user: int, now_ms: int, live_item: int, max_history: int) -> UserState:
        """The state from a user's rows before `now_ms`, preceded by the live item (−1: none)."""
        mine = self.order[self.start[user] : self.start[user + 1]]
        mine = mine[self.rows.time_ms[mine] < now_ms][::-1][:max_history]
        items, weights = self.rows.item[mine], self.rows.weight[mine]
        times = self.rows.time_ms[mine].astype(np.float64)
        if live_item >= 0:
            items = np.concatenate([[live_item], items]).astype(np.int32)
            weights = np.concatenate([[self.live_weight], weights]).astype(np.float32)
            times = np.concatenate([[float(now_ms)], times])
        return UserState(items, weights, times, items, float(now_ms))


@dataclass(frozen=True)
class ReplayedQuery:
    """One query as serving would see it."""

    row: int
    """Its row in the Queries."""
    user_index: int
    user: UserState
    trends: TrendView


def replay(
    rows: Interactions,
    queries: Queries,
    limits: QuarantineLimits | None = None,
    max_history: int = 200,
    n_trending: int = 60,
) -> Iterator[ReplayedQuery]:
    """Each query with the user's state and the trends of its moment, in order of time."""
    histories = Histories.of(rows)
    by_time = np.argsort(queries.now_ms, kind="stable")
    moments = queries.now_ms[by_time]
    for moment, limited, first_seen in trends_at(rows, np.unique(moments), limits):
        view = TrendView.of(limited.values, first_seen, n_trending, limited.weights)
        first, last = np.searchsorted(moments, moment), np.searchsorted(moments, moment, "right")
        for row in by_time[first:last].tolist():
            user, live_item = int(queries.user[row]), int(queries.live_item[row])
            state = histories.state(user, moment, live_item, max_history)
            yield ReplayedQuery(row, user, state, view)


def align(model: Model, item_ids: NDArray[np.str_]) -> Model:
    """The model with its rows in the order of `item_ids` (m,), so that both share item indices.

    Items that the model lacks get empty rows, which features treat as unknown; others are dropped.
    """
    if np.array_equal(model.item_ids, item_ids):
        return model
    source = np.fromiter((model.index.get(i, -1) for i in item_ids.tolist()), np.intp)
    there = source >= 0
    target = np.full(len(model) + 1, -1, np.int32)  # the last entry is for the padding, -1
    target[source[there]] = np.flatnonzero(there)

    def rows(array: AnyArray, fill: float) -> Any:
        out = np.full((len(item_ids), *array.shape[1:]), fill, array.dtype)
        out[there] = array[source[there]]
        return out

    def neighbours(items: IntArray) -> IntArray:
        return np.asarray(target[rows(items, -1)])

    def optional(array: AnyArray | None) -> Any:
        return None if array is None else rows(array, 0.0)

    towers, walk = model.towers, model.random_walk_items
    if towers is not None:
        targets = rows(towers.targets, 0.0)
        targets[~there, -1] = UNKNOWN_BIAS
        towers = TowerArrays(rows(towers.history, 0.0), targets, towers.ages)
    return replace(
        model,
        item_ids=item_ids,
        popularity=rows(model.popularity, 0.0),
        first_seen_ms=rows(model.first_seen_ms, np.nan),
        neighbour_items=neighbours(model.neighbour_items),
        neighbour_scores=rows(model.neighbour_scores, 0.0),
        co_purchase_items=neighbours(model.co_purchase_items),
        co_purchase_scores=rows(model.co_purchase_scores, 0.0),
        random_walk_items=None if walk is None else neighbours(walk),
        random_walk_scores=optional(model.random_walk_scores),
        factors=optional(model.factors),
        content=optional(model.content),
        towers=towers,
    )
