"""What serving would have known at each question: user states and trends, rebuilt from the rows.

Everything is strictly before the question's moment, the live event excepted. The data has the resolution of a
day, so the events of that same day, the target among them, are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.features import TrendView
from afterclick.quarantine import QuarantineLimits
from afterclick.user_vectors import UserState
from training.baselines import trends_at
from training.evaluation.protocols import Queries
from training.interactions import Interactions


@dataclass(frozen=True)
class Histories:
    """The rows of each user, newest last."""

    rows: Interactions
    order: NDArray[np.intp]
    start: NDArray[np.intp]
    """(n_users + 1,) bounds of each user in `order`."""

    @classmethod
    def of(cls, rows: Interactions) -> Histories:
        order = np.argsort(rows.user, kind="stable")
        start = np.searchsorted(rows.user[order], np.arange(len(rows.user_ids) + 1))
        return cls(rows, order, start)

    def state(
        self, user: int, now_ms: int, live_item: int, live_weight: float, longest: int
    ) -> UserState:
        """The state of a user from the rows before `now_ms` and, newest, the live item (−1: none)."""
        mine = self.order[self.start[user] : self.start[user + 1]]
        mine = mine[self.rows.time_ms[mine] < now_ms][::-1][:longest]
        items, weights = self.rows.item[mine], self.rows.weight[mine]
        times = self.rows.time_ms[mine].astype(np.float64)
        if live_item >= 0:
            items = np.concatenate([[live_item], items]).astype(np.int32)
            weights = np.concatenate([[live_weight], weights]).astype(np.float32)
            times = np.concatenate([[float(now_ms)], times])
        return UserState(items, weights, times, items, float(now_ms))


@dataclass(frozen=True)
class Asked:
    """One question as serving would see it."""

    query: int
    """Its row in the Queries."""
    user: int
    """user_index"""
    state: UserState
    trends: TrendView


def replay(
    rows: Interactions,
    asked: Queries,
    *,
    longest: int = 200,
    top: int = 60,
    bounds: QuarantineLimits | None = None,
) -> Iterator[Asked]:
    """Each question with the user's state and the trends of its moment, in order of time."""
    histories = Histories.of(rows)
    weight = float(np.median(rows.weight)) if len(rows) else 1.0
    by_time = np.argsort(asked.now_ms, kind="stable")
    moments = asked.now_ms[by_time]
    for moment, guarded, first_seen in trends_at(rows, np.unique(moments), bounds):
        view = TrendView.of(guarded.values, first_seen, top, guarded.weights)
        for query in by_time[
            np.searchsorted(moments, moment) : np.searchsorted(moments, moment, "right")
        ]:
            user, live = int(asked.user[query]), int(asked.live_item[query])
            yield Asked(
                int(query), user, histories.state(user, moment, live, weight, longest), view
            )
