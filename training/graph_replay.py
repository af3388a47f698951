"""The live transition graph at past moments, as serving would have had it.

The same code as in serving (`afterclick.live_transitions`), without the limits on new accounts:
what training and evaluation replay is not under attack. An event counts until the end, although
its user may undo it later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray
from afterclick.live_transitions import EventArrays, LiveTransitions, NewAccountLimits
from afterclick.model import Model
from afterclick.transitions import TransitionGraph
from training.event_log import EventLog

_NO_EVENT = -1


class GraphReplay:
    """The graph of a model that has learned the events of a log before a cut."""

    def __init__(self, model: Model, log: EventLog, cut_ms: float) -> None:
        """`model` has the items of `log` (`query_replay.align`)."""
        self._cut_ms, self.n_items = cut_ms, len(model)
        self._rows = first_contacts(log)
        self._events, self._item = contact_events(log, self._rows), log.item[self._rows]
        self._last_ms = 0.0
        self._live = LiveTransitions(model)

    def at(self, now_ms: float) -> TransitionGraph:
        """The graph with the events before a moment. It changes with the next call. A moment before
        the last one takes as long as all events until it."""
        if now_ms < self._last_ms:
            self._live.clear()
        self._last_ms = now_ms
        end = int(np.searchsorted(self._events.time_ms, now_ms))
        self._live.add(self._events, end, self._items_of, self._is_learned)
        return self._live.graph(now_ms, NewAccountLimits())

    def _items_of(self, numbers: range) -> NDArray[np.int32]:
        return self._item[numbers.start : numbers.stop]

    def _is_learned(self, numbers: range) -> BoolArray:
        times = self._events.time_ms[numbers.start : numbers.stop]
        return np.asarray(times < self._cut_ms)


def first_contacts(log: EventLog) -> NDArray[np.intp]:
    """(c,) rows of the first positive event of each user and item, by time."""
    row = np.flatnonzero(log.weight > 0)
    pair = log.user[row].astype(np.int64) * len(log.item_ids) + log.item[row]
    first: NDArray[np.intp] = np.sort(np.unique(pair, return_index=True)[1])
    return row[first]


def contact_events(log: EventLog, rows: NDArray[np.intp]) -> EventArrays:
    """The contacts in these rows (c,) as a ring that holds all of them."""
    user = log.user[rows]
    order = np.argsort(user, kind="stable")
    previous = np.full(len(rows), _NO_EVENT, np.int64)
    same = user[order][1:] == user[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return EventArrays(
        previous,
        log.time_ms[rows].astype(np.float64),
        np.zeros(len(rows), np.bool_),
        np.ones(len(rows), np.bool_),
    )
