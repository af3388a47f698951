"""What serving would have known at each query: user states and trends, rebuilt from the log.

Everything is strictly before the query's moment, except the live events. In data with the
resolution of a day, the other events of that day, the targets among them, are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import AnyArray, IntArray
from afterclick.features import TrendView
from afterclick.model import UNKNOWN_BIAS, Model
from afterclick.signals import Signals
from afterclick.user_vectors import UserState
from training.config import ReplayConfig
from training.event_log import ACTIONS, EventLog, LoggedEvent
from training.models.popularity import trends_at
from training.protocols import Queries

N_TRENDING = 60


@dataclass(frozen=True)
class Histories:
    """The events of each user in order of time."""

    log: EventLog
    order: NDArray[np.intp]
    start: NDArray[np.intp]
    """(n_users + 1,) bounds of each user in `order`."""
    signals: Signals
    length: int

    @classmethod
    def of(cls, log: EventLog, length: int) -> Histories:
        order = np.argsort(log.user, kind="stable")
        start = np.searchsorted(log.user[order], np.arange(len(log.user_ids) + 1))
        return cls(log, order, start, log.signals(), length)

    def state(self, user: int, now_ms: int, live: IntArray) -> UserState:
        """The state of a user's events before `now_ms` and of the `live` events (rows; -1 pads).

        Live events happen at `now_ms`, the first of them last.
        """
        events = self._events(self.rows(user, now_ms, live))
        return UserState.of(events, _identity, self.signals, float(now_ms))

    def rows(self, user: int, now_ms: int, live: IntArray) -> NDArray[np.intp]:
        """(h,) rows of the events of that state in the log, newest first."""
        mine = self.order[self.start[user] : self.start[user + 1]]
        end = int(np.searchsorted(self.log.time_ms[mine], now_ms))
        newest = mine[max(end - self.length, 0) : end][::-1]
        return np.concatenate([live[live >= 0], newest])[: self.length]

    def _events(self, rows: NDArray[np.intp]) -> Iterator[LoggedEvent]:
        columns = (self.log.item, self.log.action, self.log.time_ms, self.log.stars)
        for item, action, time_ms, stars in zip(*(c[rows].tolist() for c in columns), strict=True):
            yield LoggedEvent(item, ACTIONS[action], time_ms, stars or None)


def _identity(item: int) -> int:
    return item


@dataclass(frozen=True)
class ReplayedQuery:
    """One query as serving would see it."""

    row: int
    """Its row in the Queries."""
    user_index: int
    user: UserState
    trends: TrendView


def replay(
    log: EventLog, queries: Queries, config: ReplayConfig | None = None
) -> Iterator[ReplayedQuery]:
    """Each query with the user's state and the trends of its moment, in order of time."""
    config = config or ReplayConfig()
    histories = Histories.of(log, config.history_length)
    first_seen = log.first_seen()
    by_time = np.argsort(queries.now_ms, kind="stable")
    moments = queries.now_ms[by_time]
    for moment, limited in trends_at(log, np.unique(moments), config):
        seen = np.where(first_seen < moment, first_seen, np.nan)
        view = TrendView.of(limited.values, seen, N_TRENDING, limited.weights)
        first, last = np.searchsorted(moments, moment), np.searchsorted(moments, moment, "right")
        for row in by_time[first:last].tolist():
            user = int(queries.user[row])
            state = histories.state(user, moment, queries.live[row])
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

    towers, walk, followers = model.towers, model.random_walk_items, model.transition_items
    if towers is not None:
        targets = rows(towers.targets, 0.0)
        targets[~there, -1] = UNKNOWN_BIAS
        towers = replace(towers, history=rows(towers.history, 0.0), targets=targets)
    ncf = model.ncf
    if ncf is not None:
        targets = rows(ncf.targets, 0.0)
        targets[~there, -1] = UNKNOWN_BIAS
        history, hidden = rows(ncf.history, 0.0), rows(ncf.hidden, 0.0)
        ncf = replace(ncf, history=history, targets=targets, hidden=hidden)
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
        transition_items=None if followers is None else neighbours(followers),
        transition_scores=optional(model.transition_scores),
        factors=optional(model.factors),
        content=optional(model.content),
        towers=towers,
        ncf=ncf,
    )
