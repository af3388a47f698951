"""The online store and the trends at past moments, and a check for leaks.

A list at a moment is made from

- the user's events before the moment, less the delay. Events of a user with equal times have no
  order: some are live events, known without a delay, and the others are what is asked about
- the trends of all events before the moment: events of other users at the same time are unknown
- a model of the events before its cut, which is not after the moment

The histories and trends are slices of the log that end there. `found_leaks` trusts none of this: it
examines what the recommender was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from afterclick.arrays import Int64Array, IntArray
from afterclick.events import Action
from afterclick.state import HistoryEntry
from afterclick.trends import HALF_LIVES_MS
from infra.prequential.past_models import TrainedModel
from serving.state.history import HistorySource, Rows, entries
from serving.state.live_transitions import Contact, RecentContacts
from serving.state.live_trends import TrendState
from training.config import ReplayConfig
from training.event_log import ACTIONS, CODES, EventLog
from training.graph_replay import first_contacts
from training.protocols import NOTHING
from training.query_replay import Histories

_HALF_LIVES = np.array(list(HALF_LIVES_MS.values()))
_NO_EVENTS = np.array([NOTHING], np.int32)


@dataclass(frozen=True)
class Moment:
    """The moment of a request, and the delay of the user's state."""

    now_ms: int
    live: IntArray
    """(e,) rows of the live events in the log, newest first, -1 pads."""
    delay_ms: int = 0

    @property
    def known_until_ms(self) -> int:
        """Events before it are known."""
        return self.now_ms - self.delay_ms

    @property
    def known_live(self) -> IntArray:
        """(e,) the live events that are known: with a delay none."""
        return _NO_EVENTS if self.delay_ms else self.live


class PastHistories(Protocol):
    """Histories as of a moment, in the form of the online store."""

    def rows_at(self, user_id: str, moment: Moment) -> Rows:
        """A user's history as stored."""
        ...


class LoggedHistories:
    """The histories of a log; the id of an event is its row in the log."""

    def __init__(self, log: EventLog, length: int) -> None:
        """`length`: events in a history."""
        self._log, self._histories = log, Histories.of(log, length)
        self._users = {user_id: index for index, user_id in enumerate(log.user_ids.tolist())}
        self._items = log.item_ids.tolist()

    def rows_at(self, user_id: str, moment: Moment) -> Rows:
        user = self._users.get(user_id)
        if user is None:
            return []
        log, rows = self._log, []
        for row in self._histories.rows(user, moment.known_until_ms, moment.known_live).tolist():
            time_ms, item_id = int(log.time_ms[row]), self._items[log.item[row]]
            action, rating = ACTIONS[log.action[row]], float(log.stars[row]) or None
            entry = HistoryEntry(str(row), item_id, action, rating, time_ms)
            rows += [entry.member(), str(time_ms).encode()]
        return rows


class RequestedHistories(HistorySource):
    """The store of a recommender: histories as of `moment`; keeps what it gave last."""

    def __init__(self, histories: PastHistories, moment: Moment) -> None:
        self._histories, self.moment = histories, moment
        self.given: list[HistoryEntry] = []

    async def rows(self, user_id: str) -> Rows:
        rows = self._histories.rows_at(user_id, self.moment)
        self.given = entries(rows)
        return rows


class PastTrends(TrendState):
    """The trends of a log, moved forward in time."""

    def __init__(self, log: EventLog, known: ReplayConfig) -> None:
        super().__init__()
        self.approved = frozenset(known.approved)
        self._ids = log.item_ids.tolist()
        self._votes = log.votes(known.established_days)
        self._totals = _TotalChanges.of(log)
        self._voted = self._counted = 0

    def advance(self, moment_ms: int) -> None:
        """Add the votes and interactions before a moment, which is not before the last one."""
        voted = int(np.searchsorted(self._votes.effective_ms, moment_ms))
        counted = int(np.searchsorted(self._totals.time_ms, moment_ms))
        votes = self._votes.where(slice(self._voted, voted))
        item, change = (
            a[self._counted : counted] for a in (self._totals.item, self._totals.change)
        )
        items = np.union1d(votes.item, item)
        number = np.searchsorted(items, votes.item)
        newest = np.zeros(len(items))
        np.maximum.at(newest, number, votes.time_ms)
        decay = np.exp2(-(newest[number] - votes.time_ms)[:, None] / _HALF_LIVES)
        by_all = votes.weight[:, None] * decay
        both = np.hstack([by_all, by_all * votes.established[:, None]])
        sums, totals = np.zeros((len(items), both.shape[1])), np.zeros((len(items), 5), np.int64)
        np.add.at(sums, number, both)
        np.add.at(totals, np.searchsorted(items, item), change)
        names = [self._ids[i] for i in items.tolist()]
        self.table.merge_many(names, newest, sums, totals[:, 0], totals[:, 1:].astype(np.int32))
        self._voted, self._counted = voted, counted


class PastContacts(RecentContacts):
    """The first contacts of users and items in a log, moved forward in time."""

    def __init__(self, log: EventLog, established_days: float) -> None:
        super().__init__()
        rows = first_contacts(log)
        self._times = log.time_ms[rows]
        self._columns = (
            log.user_ids[log.user[rows]],
            log.item_ids[log.item[rows]],
            log.established(established_days)[rows],
        )
        self._added = 0

    def advance(self, moment_ms: int) -> None:
        """Add the contacts before a moment, which is not before the last one."""
        end = int(np.searchsorted(self._times, moment_ms))
        new = slice(max(self._added, end - self.slots), end)
        for user_id, item_id, established, time_ms in zip(
            *(column[new].tolist() for column in (*self._columns, self._times)), strict=True
        ):
            self.add(Contact(user_id, item_id, float(time_ms), established))
        self._added = end


@dataclass(frozen=True)
class _TotalChanges:
    """Changes of the all-time counts, in order of time."""

    time_ms: Int64Array
    item: IntArray
    change: Int64Array
    """(c, 5) interactions, then the fields of `StarCounts`"""

    @classmethod
    def of(cls, log: EventLog) -> _TotalChanges:
        """Each event, and for a replaced review with stars its retraction, as in
        `TrendTable.apply`."""
        review = np.flatnonzero(log.action == CODES[Action.REVIEW])
        pair = log.user[review].astype(np.int64) * len(log.item_ids) + log.item[review]
        order = np.argsort(pair, kind="stable")  # within a pair by time
        again = np.flatnonzero(np.diff(pair[order]) == 0)
        older, newer = review[order][again], review[order][again + 1]
        older, newer = older[log.stars[older] > 0], newer[log.stars[older] > 0]
        stars, positive = log.stars.astype(np.int64), log.weight > 0
        rated = stars > 0
        added = [positive | rated, rated, stars, positive & rated, ~positive & rated]
        gone = [np.zeros(len(older), bool), rated[older], stars[older], positive[older]]
        change = np.concatenate(
            [np.column_stack(added), -np.column_stack([*gone, gone[0]]).astype(np.int64)]
        )
        time_ms = np.concatenate([log.time_ms, log.time_ms[newer]])
        by_time = np.argsort(time_ms, kind="stable")
        item = np.concatenate([log.item, log.item[older]])
        return cls(time_ms[by_time], item[by_time], change[by_time])


def found_leaks(
    given: Sequence[HistoryEntry], moment: Moment, trends: TrendState, model: TrainedModel
) -> bool:
    """Whether a list was made with knowledge from its future: in the history, trends or model.

    In a history, events at the moment itself are from the future, except the known live events.
    """
    live = {str(row) for row in moment.known_live.tolist()}
    late = (
        entry.time_ms > moment.now_ms or entry.event_id not in live
        for entry in given
        if entry.time_ms >= moment.known_until_ms
    )
    newest_ms = trends.table.newest_ms
    return any(late) or newest_ms >= moment.now_ms or model.end_ms > moment.now_ms
