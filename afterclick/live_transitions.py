"""The transition graph with the events that a model has not learned, kept up to date by them.

The counts are those of training (training/models/transition_graph.py), with two differences: a
pair counts 2^(−age / HALF_LIFE), and lags reach MAX_LAG items instead of 50. For each item with new
events they hold the MAX_LIVE neighbours with the highest counts; a further one replaces the lowest.
The row of such an item is made again from the model's row and these counts.

New accounts: where it is known how many of all votes established users cast, the pairs of new
accounts on two items count no more than `QuarantineLimits.max_ratio` times what those of
established users stand for, plus ALLOWANCE (as in `afterclick.quarantine` for items).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.compiled import compiled
from afterclick.model import Model
from afterclick.quarantine import QuarantineLimits
from afterclick.transitions import TransitionGraph
from afterclick.trends import DAY_MS

MAX_EVENTS = 131_072
"""Newest events that are kept, of all users."""
MAX_LAG = 16
"""Items of a user before an event that form pairs with it."""
MAX_LIVE = 32
"""Neighbours of an item with live counts."""
WIDTH = 50
"""Neighbours of an item in the graph."""
HALF_LIFE_MS = 365 * DAY_MS
"""On Electronics 30 and 90 days are worse, most of all without a model."""
LAG_POWER, USER_POWER, SOURCE_POWER, BACK = 0.5, 0.15, 0.3, 0.4
"""As `training.config.TransitionConfig`."""
ALLOWANCE = 3.0
"""Weight of pairs on two items that new accounts may add without established users."""
_CHUNK = 4096
_MAX_SCALE = 40.0
"""Half-lives after which the counts are rescaled: float32 reaches 127."""
_NONE = np.int32(-1)
_NO_EVENT = -1


class EventArrays(NamedTuple):
    """First positive events of users on items, in the order of arrival, in a ring.

    Event number e is in slot e modulo the number of slots.
    """

    previous: Int64Array
    """(s,) number of the user's event before; -1: none is known"""
    time_ms: Float64Array
    """(s,) event time"""
    established: BoolArray
    """(s,) of an established user"""
    alive: BoolArray
    """(s,) not undone, and its user not forgotten"""


class NewAccountLimits(NamedTuple):
    """Limits on pairs of new accounts."""

    established_share: float = 0.0
    """Usual share of established users in all votes; 0: unknown, no limits."""
    limits: QuarantineLimits = QuarantineLimits()


class _Counts(NamedTuple):
    """Live counts of items, scaled by 2^(−(event time − landmark) / HALF_LIFE)."""

    row_of: IntArray
    """(m,) row of an item; -1: none"""
    item_of: IntArray
    """(r,) item of a row"""
    others: IntArray
    """(r, MAX_LIVE) neighbours; -1 pads"""
    amounts: FloatArray
    """(r, MAX_LIVE) of all users"""
    established: FloatArray
    """(r, MAX_LIVE) of established users"""
    seen: FloatArray
    """(r, 2) events of the item: of all users, and of established ones"""
    changed: BoolArray
    """(r,) since its row of the graph was made"""


class LiveTransitions:
    """The graph of one model, or of none. One thread at a time."""

    def __init__(self, model: Model | None) -> None:
        graph = model.transitions if model is not None else None
        if graph is None:
            n = 0 if model is None else len(model)
            nothing = np.full((n, 0), _NONE, np.int32), np.zeros((n, 0), np.float32)
            graph = TransitionGraph(*nothing)
        self._learned = graph
        popularity = np.zeros(0, np.float32) if model is None else model.popularity
        self._popularity = popularity[: len(graph.items)]
        self.clear()

    def clear(self) -> None:
        """Drop all live counts."""
        self._next, self._rows, self._landmark = 0, 0, 0.0
        self._items = np.empty(0, np.int32)
        self._counts = _no_counts(0)
        self._live_items = np.empty((0, WIDTH), np.int32)
        self._live_scores = np.empty((0, WIDTH), np.float32)

    def __len__(self) -> int:
        """Items with live counts."""
        return self._rows

    @property
    def pairs(self) -> int:
        """Neighbours of items with live counts."""
        return int((self._counts.others[: self._rows] >= 0).sum())

    def add(
        self,
        events: EventArrays,
        end: int,
        find: Callable[[range], NDArray[np.integer]],
        learned: Callable[[range], BoolArray],
    ) -> None:
        """Count the events up to number `end` that were not counted before.

        `find`: item indices of a range of events, -1 for unknown ones; `learned`: which of them the
        model has learned: these only come before others.
        """
        slots = len(events.time_ms)
        if len(self._items) != slots:
            self._items = np.full(slots, _NONE, np.int32)
        first = max(self._next, end - slots)
        while first < end:
            numbers = range(first, min(first + _CHUNK, end))
            at = np.arange(numbers.start, numbers.stop) % slots
            items = find(numbers).astype(np.int32)
            self._items[at] = items
            self._rescale(float(events.time_ms[at].max()))
            self._make_room(int(items.max()) + 1, 0)
            counted = learned(numbers)
            done = numbers.start
            while done < numbers.stop:
                oldest = max(0, end - slots)
                done, self._rows = _count(
                    (self._items, events),
                    (counted, numbers.start, done, numbers.stop, oldest),
                    self._counts,
                    (self._rows, self._landmark),
                )
                if done < numbers.stop:
                    self._make_room(0, 2 * self._rows)
            first = numbers.stop
        self._next = end

    def graph(self, now_ms: float, new_accounts: NewAccountLimits) -> TransitionGraph:
        """The graph as of a moment. It changes with the next call: copy it to keep it."""
        share, limits = new_accounts
        learned = self._learned.items, self._learned.scores, self._popularity
        bounds = share, limits.max_ratio, limits.allowance
        decay = float(np.exp2((self._landmark - now_ms) / HALF_LIFE_MS))
        live = self._live_items, self._live_scores
        _make_rows(learned, self._counts, (self._rows, decay), bounds, live)
        rows = slice(self._rows)
        return TransitionGraph(
            self._learned.items,
            self._learned.scores,
            self._counts.row_of,
            self._live_items[rows],
            self._live_scores[rows],
        )

    def refresh(self) -> None:
        """Make all rows again with the next graph: they fade."""
        self._counts.changed[: self._rows] = True

    def _rescale(self, newest_ms: float) -> None:
        """Keep the scaled counts within float32."""
        if not self._rows:
            self._landmark = newest_ms
        elif newest_ms - self._landmark > _MAX_SCALE * HALF_LIFE_MS:
            factor = np.float32(np.exp2((self._landmark - newest_ms) / HALF_LIFE_MS))
            for array in (self._counts.amounts, self._counts.established, self._counts.seen):
                array *= factor
            self._landmark = newest_ms

    def _make_room(self, items: int, rows: int) -> None:
        """Arrays for at least so many items and rows."""
        counts = self._counts
        if items > len(counts.row_of):
            more = np.full(max(items, 2 * len(counts.row_of)), _NONE, np.int32)
            more[: len(counts.row_of)] = counts.row_of
            counts = counts._replace(row_of=more)
        if rows > len(counts.item_of) or not len(counts.item_of):
            size = max(rows, 2 * _CHUNK)
            grown = _no_counts(size)
            for old, new in zip(counts[1:], grown[1:], strict=True):
                new[: len(old)] = old
            counts = grown._replace(row_of=counts.row_of)
            live = np.full((size, WIDTH), _NONE, np.int32), np.zeros((size, WIDTH), np.float32)
            live[0][: len(self._live_items)] = self._live_items
            live[1][: len(self._live_scores)] = self._live_scores
            self._live_items, self._live_scores = live
        self._counts = counts


def _no_counts(rows: int) -> _Counts:
    return _Counts(
        np.empty(0, np.int32),
        np.full(rows, _NONE, np.int32),
        np.full((rows, MAX_LIVE), _NONE, np.int32),
        np.zeros((rows, MAX_LIVE), np.float32),
        np.zeros((rows, MAX_LIVE), np.float32),
        np.zeros((rows, 2), np.float32),
        np.zeros(rows, np.bool_),
    )


@compiled
def _count(
    ring: tuple[IntArray, EventArrays],
    block: tuple[BoolArray, int, int, int, int],
    counts: _Counts,
    state: tuple[int, float],
) -> tuple[int, int]:
    """Count the events from `done` to `stop`; returns the next event and the number of rows.

    Stops early where rows may run out. `block`: the learned events from `first` on, and the number
    of the oldest event of the ring.
    """
    items, events = ring
    learned, first, done, stop, oldest = block
    rows, landmark = state
    slots = len(items)
    past, same_time = np.empty(MAX_LAG, np.int32), np.empty(MAX_LAG, np.bool_)
    for number in range(done, stop):
        if rows + MAX_LAG + 1 > len(counts.item_of):
            return number, rows
        slot = number % slots
        item = items[slot]
        if item < 0 or not events.alive[slot]:
            continue
        n_past, again = 0, False
        before = events.previous[slot]
        while before >= oldest and n_past < MAX_LAG:
            other = before % slots
            if events.alive[other] and items[other] >= 0:
                if items[other] == item:
                    again = True
                    break
                past[n_past] = items[other]
                same_time[n_past] = events.time_ms[other] == events.time_ms[slot]
                n_past += 1
            before = events.previous[other]
        if again or learned[number - first]:
            continue
        scale = 2.0 ** ((events.time_ms[slot] - landmark) / HALF_LIFE_MS)
        row, rows = _row(counts, item, rows)
        counts.seen[row, 0] += np.float32(scale)
        if events.established[slot]:
            counts.seen[row, 1] += np.float32(scale)
        for rank in range(n_past):
            amount = scale * (rank + 1.0) ** -LAG_POWER * (n_past + 1.0) ** -USER_POWER
            there, back = amount, BACK * amount
            if same_time[rank]:  # without an order, both directions count half
                there = back = 0.5 * (1.0 + BACK) * amount
            row, rows = _row(counts, past[rank], rows)
            _add(counts, row, item, np.float32(there), events.established[slot])
            row, rows = _row(counts, item, rows)
            _add(counts, row, past[rank], np.float32(back), events.established[slot])
    return stop, rows


@compiled
def _row(counts: _Counts, item: int, rows: int) -> tuple[int, int]:
    """The row of an item, and the number of rows; a new item gets the next one."""
    row = counts.row_of[item]
    if row < 0:
        row = np.int32(rows)
        rows += 1
        counts.row_of[item] = row
        counts.item_of[row] = item
    counts.changed[row] = True
    return row, rows


@compiled
def _add(counts: _Counts, row: int, other: int, amount: np.float32, established: bool) -> None:
    """Add to a row's count of a neighbour, in place of the lowest where there is no room."""
    lowest = 0
    for column in range(MAX_LIVE):
        found = counts.others[row, column]
        if found == other or found < 0:
            lowest = column
            break
        if counts.amounts[row, column] < counts.amounts[row, lowest]:
            lowest = column
    if counts.others[row, lowest] != other:
        counts.others[row, lowest] = other
        counts.amounts[row, lowest] = counts.established[row, lowest] = np.float32(0.0)
    counts.amounts[row, lowest] += amount
    if established:
        counts.established[row, lowest] += amount


@compiled
def _limited(
    votes: float, established: float, allowance: float, bounds: tuple[float, float, float]
) -> float:
    """The votes, as far as those of established users support them."""
    share, max_ratio, _ = bounds
    if share == 0.0 or max_ratio == 0.0:
        return votes
    return min(votes, max_ratio * established / share + allowance)


@compiled
def _make_rows(
    learned: tuple[IntArray, FloatArray, FloatArray],
    counts: _Counts,
    state: tuple[int, float],
    bounds: tuple[float, float, float],
    live: tuple[IntArray, FloatArray],
) -> None:
    """Make the rows that have changed: learned and live counts, best neighbours first.

    `learned`: items, scores, popularity; `state`: rows, decay; `bounds`: share of established
    users, max_ratio and allowance.
    """
    learned_items, learned_scores, popularity = learned
    rows, decay = state
    out_items, out_scores = live
    width = out_items.shape[1]
    found_items = np.empty(learned_items.shape[1] + MAX_LIVE, np.int32)
    found = np.empty(len(found_items), np.float64)
    for row in range(rows):
        if not counts.changed[row]:
            continue
        counts.changed[row] = False
        item = counts.item_of[row]
        n, before = 0, 0.0
        if item < len(learned_items):
            before = np.float64(popularity[item])
            raw = max(before, 1.0) ** SOURCE_POWER
            for column in range(learned_items.shape[1]):
                if learned_items[item, column] < 0:
                    break
                found_items[n] = learned_items[item, column]
                found[n] = learned_scores[item, column] * raw
                n += 1
        n_learned = n
        for column in range(MAX_LIVE):
            other = counts.others[row, column]
            if other < 0:
                break
            votes = decay * counts.amounts[row, column]
            established = decay * counts.established[row, column]
            amount = _limited(votes, established, ALLOWANCE, bounds)
            position = 0
            while position < n_learned and found_items[position] != other:
                position += 1
            if position == n_learned:
                found_items[n], found[n] = other, amount
                n += 1
            else:
                found[position] += amount
        seen = decay * counts.seen[row, 0], decay * counts.seen[row, 1]
        total = before + _limited(seen[0], seen[1], bounds[2], bounds)
        scale = max(total, 1.0) ** -SOURCE_POWER
        order = np.argsort(-found[:n], kind="mergesort")
        for column in range(width):
            out_items[row, column] = found_items[order[column]] if column < n else _NONE
            out_scores[row, column] = found[order[column]] * scale if column < n else 0.0


def warm_up() -> None:
    """Compile what an update needs, or load its machine code."""
    live = LiveTransitions(None)
    ones = np.ones(2)
    events = EventArrays(np.array([-1, 0]), ones, ones > 0, ones > 0)
    live.add(
        events,
        2,
        lambda numbers: np.arange(len(numbers)),
        lambda numbers: np.zeros(len(numbers), bool),
    )
    live.graph(1.0, NewAccountLimits())
