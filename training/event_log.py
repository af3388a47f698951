"""The events of the log as arrays, and what they say as of a moment: pairs, votes and histories.

One meaning of feedback for training and serving, the meaning of the stream:
- an undo cancels the user's earlier events on the item (`afterclick.state.effective`)
- a user's action on an item is one vote in the trends; its newest event counts
- of a user's reviews of an item the newest counts, of several at one time the one with most stars;
  a negative one also outweighs the user's earlier events on the item
- a history lists each item once, by its newest event

`EventLog.before(moment)` knows nothing of later events, weights or undos. Events of one user with
equal times have no order: they are sorted by a hash of user and item, and queries treat them as a
set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.events import Action
from afterclick.quarantine import ESTABLISHED_DAYS
from afterclick.signals import STARS, Signals
from afterclick.trends import DAY_MS
from training import served_lists
from training.interactions import Interactions, extended, tie_hash
from training.served_lists import ServedLists

ACTIONS: tuple[Action, ...] = tuple(Action)
"""Action of each code."""
CODES: dict[Action, int] = {action: code for code, action in enumerate(ACTIONS)}
_COLUMNS = (
    *("user", "item", "time_ms", "trusted_ms", "action", "stars", "weight", "trusted"),
    *("propensity", "position"),
)
_UNDO, _REVIEW = CODES[Action.UNDO], CODES[Action.REVIEW]
_NEVER = np.iinfo(np.int64).min


class LoggedEvent(NamedTuple):
    """One event of a history, as `afterclick.state.effective` reads it."""

    item_id: int
    """item_index"""
    action: Action
    time_ms: int
    rating: float | None = None


@dataclass(frozen=True)
class Votes:
    """Changes of the trends in the order in which they take effect."""

    effective_ms: Int64Array
    """(v,) event time of the event that causes the change, ascending"""
    item: IntArray
    """(v,) item_index"""
    time_ms: Int64Array
    """(v,) time from which the change decays: for a replaced vote, that of the older event"""
    weight: FloatArray
    """(v,) added weight; negative for skips and for replaced votes"""
    established: BoolArray
    """(v,) whether the voting user was established"""
    n_items: int

    def of_established(self) -> Votes:
        """Only the changes by established users."""
        return self.where(self.established)

    def where(self, mask: BoolArray | slice) -> Votes:
        """The changes that the mask (v,) or a slice selects."""
        fields = ("effective_ms", "item", "time_ms", "weight", "established")
        return replace(self, **{name: getattr(self, name)[mask] for name in fields})


@dataclass(frozen=True)
class Contacts:
    """The first effective positive event of each user and item."""

    row: NDArray[np.intp]
    """(p,) row of that event in the log, ascending"""
    grade: FloatArray
    """(p,) weight of the user's strongest action on the item up to the end of the log"""
    unseen: BoolArray
    """(p,) no effective event of the user on the item precedes it, a skip for example"""


@dataclass(frozen=True)
class NegativeFeedback:
    """The effective, trusted events of negative weight: skips and low ratings."""

    row: NDArray[np.intp]
    """(n,) row in the log, by user, then by time"""
    item: IntArray
    """(n,) item_index"""
    key: Int64Array
    """(n,) ascending: user_index · span + time since `start_ms`"""
    start_ms: int
    span: int

    @classmethod
    def of(cls, log: EventLog) -> NegativeFeedback:
        row = np.flatnonzero((log.weight < 0) & log.trusted & ~log.undone())
        row = row[np.argsort(log.user[row], kind="stable")]
        start = int(log.time_ms[0]) if len(log) else 0
        span = int(log.time_ms[-1]) - start + 2 if len(log) else 1
        key = log.user[row].astype(np.int64) * span + (log.time_ms[row] - start)
        return cls(row, log.item[row], key, start, span)

    def bounds(
        self, user: IntArray, from_ms: Int64Array, until_ms: Int64Array
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(q,) first and end of the events of users from a moment until before another one."""
        keys = (
            user.astype(np.int64) * self.span + np.clip(ms - self.start_ms, 0, self.span - 1)
            for ms in (from_ms, until_ms)
        )
        first, end = (np.searchsorted(self.key, key) for key in keys)
        return first, end

    def items(self, user: int, period: tuple[int, int], count: int) -> IntArray:
        """The first items, each once, that a user disliked in a period (ms)."""
        moments = (np.array([ms], np.int64) for ms in period)
        first, end = self.bounds(np.array([user], np.int32), *moments)
        found = list(dict.fromkeys(self.item[first[0] : end[0]].tolist()))
        return np.array(found[:count], np.int32)


@dataclass(frozen=True)
class EventLog:
    """Events by time, then by a hash of user and item."""

    user_ids: NDArray[np.str_]
    """(n_users,)"""
    item_ids: NDArray[np.str_]
    """(n_items,)"""
    user: IntArray
    """(n,) user_index"""
    item: IntArray
    """(n,) item_index"""
    time_ms: Int64Array
    """(n,) event time, ascending"""
    trusted_ms: Int64Array
    """(n,) time from which the event counts for the age of its user's account, as in the stream
    (`InteractionEvent.trusted_ms`): a client cannot date it back"""
    action: NDArray[np.int8]
    """(n,) code of the action: its number in ACTIONS"""
    stars: NDArray[np.int8]
    """(n,) stars of a review, 1 to 5; 0: unknown, or no review"""
    weight: FloatArray
    """(n,) weight by action and stars; negative for a skip, 0 for an undo"""
    trusted: BoolArray
    """(n,) events with a reliable time: only they become targets and live events"""
    propensity: FloatArray
    """(n,) probability with which the list of the event showed the item in its place; NaN: the
    event names no list (organic)"""
    position: NDArray[np.int16]
    """(n,) place of the item in the list, from 0; -1: organic, or from a list that is not known"""
    lists: ServedLists = field(default_factory=ServedLists.empty)
    """The lists that users reacted to, by the same indices."""

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(
        cls,
        rows: Interactions,
        trusted: BoolArray | None = None,
        action: Action = Action.REVIEW,
        stars: NDArray[np.int8] | None = None,
    ) -> EventLog:
        """A log of organic events with one action: a dataset of reviews."""
        n = len(rows)
        return cls(
            rows.user_ids,
            rows.item_ids,
            rows.user,
            rows.item,
            rows.time_ms,
            rows.time_ms,
            np.full(n, CODES[action], np.int8),
            np.zeros(n, np.int8) if stars is None else stars,
            rows.weight,
            np.ones(n, bool) if trusted is None else trusted,
            np.full(n, np.nan, np.float32),
            np.full(n, -1, np.int16),
        ).sorted()

    def sorted(self) -> EventLog:
        """The same events by time; equal times by a hash of user and item, then by action
        and stars."""
        ties = tie_hash(self.user_ids, self.user, self.item_ids, self.item)
        return self.where(np.lexsort((self.stars, self.action, ties, self.time_ms)))

    def where(self, rows: BoolArray | NDArray[np.intp]) -> EventLog:
        """The events that a mask (n,) or row numbers select. Ids and indices stay."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def before(self, time_ms: int) -> EventLog:
        """The events with an event time before `time_ms`."""
        end = int(np.searchsorted(self.time_ms, time_ms))
        return replace(self.where(np.arange(end)), lists=self.lists.before(time_ms))

    def merged(self, other: EventLog) -> EventLog:
        """The events of both; `other` has the users of this log and maybe more, and its items."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _COLUMNS
        }
        return replace(other, **columns).sorted()

    def also(self, item_ids: list[str]) -> EventLog:
        """With these items appended; known items keep their index."""
        return replace(self, item_ids=extended(self.item_ids, item_ids))

    def contacts(self) -> Contacts:
        """First contact and grade of each pair with an effective positive event."""
        pairs = self._pairs()
        effective = np.flatnonzero(~self.undone() & (self.action != _UNDO))
        outweighed, replaced = self._reviewed(effective)
        row = effective[(self.weight[effective] > 0) & ~outweighed[effective]]
        known, earliest = np.unique(pairs[effective], return_index=True)
        positive, first, pair = np.unique(pairs[row], return_index=True, return_inverse=True)
        grade = np.zeros(len(first), np.float32)
        np.maximum.at(grade, pair, np.where(replaced[row], 0.0, self.weight[row]))
        unseen = effective[earliest[np.searchsorted(known, positive)]] == row[first]
        order = np.argsort(row[first])
        return Contacts(row[first][order], grade[order], unseen[order])

    def outweighed(self) -> BoolArray:
        """(n,) events, not undone, that count for less than the user's newest, negative review."""
        return self._reviewed(np.flatnonzero(~self.undone() & (self.action != _UNDO)))[0]

    def _reviewed(self, effective: NDArray[np.intp]) -> tuple[BoolArray, BoolArray]:
        """(n,) effective events that the newest review of their pair outweighs, and reviews that it
        replaces."""
        outweighed, replaced = np.zeros(len(self), bool), np.zeros(len(self), bool)
        reviews = effective[self.action[effective] == _REVIEW]
        if not ((self.stars[reviews] > 0) | (self.weight[reviews] <= 0)).any():
            return outweighed, replaced  # all weigh the same
        known, pair = np.unique(self._pairs()[effective], return_inverse=True)
        is_review = self.action[effective] == _REVIEW
        newest = np.full(len(known), -1)
        np.maximum.at(newest, pair[is_review], reviews)  # rows are in the order of time and stars
        of_pair = newest[pair]
        weight = np.where(of_pair >= 0, self.weight[of_pair], np.inf)
        earlier = self.time_ms[effective] <= self.time_ms[of_pair]
        outweighed[effective] = ((weight < 0) & earlier) | ((weight <= 0) & is_review)
        replaced[reviews] = of_pair[is_review] != reviews
        return outweighed, replaced

    def pairs(self) -> Interactions:
        """One row per user and item: their first contact, with the weight of the strongest
        action."""
        contacts = self.contacts()
        return Interactions(
            self.user_ids,
            self.item_ids,
            self.user[contacts.row],
            self.item[contacts.row],
            self.time_ms[contacts.row],
            contacts.grade,
        )

    def negatives(self) -> NegativeFeedback:
        """What users skipped or rated low, and did not undo."""
        return NegativeFeedback.of(self)

    def undone(self) -> BoolArray:
        """(n,) events that an undo of the same user and item, at their time or later, cancels."""
        undo = self.action == _UNDO
        if not undo.any():
            return np.zeros(len(self), bool)
        pairs = self._pairs()
        known, pair = np.unique(pairs, return_inverse=True)
        newest = np.full(len(known), _NEVER)
        np.maximum.at(newest, pair[undo], self.time_ms[undo])
        return np.asarray(self.time_ms <= newest[pair])

    def established(self, days: float = ESTABLISHED_DAYS) -> BoolArray:
        """(n,) events at least `days` after the first event of their user, by trusted times."""
        return np.asarray(self.trusted_ms - self._since()[self.user] >= days * DAY_MS)

    def votes(self, established_days: float = ESTABLISHED_DAYS) -> Votes:
        """Each event's vote, and the retraction of the vote of the same action that it replaces.

        As in the stream, negative votes count only by established users, and every review votes.
        """
        established = self.established(established_days)
        counts = (self.weight > 0) | ((self.weight < 0) & established)
        counted = np.where(counts, self.weight, np.float32(0.0))
        row = np.flatnonzero((self.weight != 0) | (self.action == _REVIEW))
        key = self._pairs()[row] * len(ACTIONS) + self.action[row]
        order = np.argsort(key, kind="stable")  # within a key by time
        again = np.flatnonzero(key[order][1:] == key[order][:-1])
        older, newer = row[order][again], row[order][again + 1]
        cause = np.concatenate([row, newer])
        source = np.concatenate([row, older])
        weight = np.concatenate([counted[row], -counted[older]])
        by_effect = np.argsort(self.time_ms[cause], kind="stable")
        by_effect = by_effect[weight[by_effect] != 0]
        source = source[by_effect]
        return Votes(
            self.time_ms[cause][by_effect],
            self.item[source],
            self.time_ms[source],
            weight[by_effect],
            established[source],
            len(self.item_ids),
        )

    def first_seen(self) -> Float64Array:
        """(n_items,) event time of each item's first positive event, ms; NaN without one."""
        seen = np.full(len(self.item_ids), np.inf)
        positive = self.weight > 0
        np.minimum.at(seen, self.item[positive], self.time_ms[positive].astype(np.float64))
        return np.where(np.isfinite(seen), seen, np.nan)

    def signals(self) -> Signals:
        """The weights of this log; 0 for an action, or stars, that do not occur."""
        actions, stars = dict.fromkeys(ACTIONS, 0.0), dict.fromkeys(STARS, 0.0)
        unrated = np.flatnonzero(self.stars == 0)
        for code, row in zip(*np.unique(self.action[unrated], return_index=True), strict=True):
            actions[ACTIONS[code]] = float(self.weight[unrated[row]])
        for number, row in zip(*np.unique(self.stars, return_index=True), strict=True):
            if number:
                stars[int(number)] = float(self.weight[row])
        return Signals(actions, stars)

    def fingerprint(self) -> str:
        """A hash of the events: 16 hex digits, independent of how the files are split."""
        digest = hashlib.sha256()
        for array in (self.user, self.item, self.time_ms, self.action, self.weight):
            digest.update(array.tobytes())
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join(ids.tolist()).encode())
        return digest.hexdigest()[:16]

    def _pairs(self) -> Int64Array:
        """(n,) a number for each user and item."""
        return self.user.astype(np.int64) * len(self.item_ids) + self.item

    def _since(self) -> Int64Array:
        """(n_users,) the least trusted time of each user's events."""
        since = np.full(len(self.user_ids), np.iinfo(np.int64).max)
        np.minimum.at(since, self.user, self.trusted_ms)
        return since


def load(folder: Path) -> EventLog:
    """Load the events of an ETL version; every time in the event archive is trusted."""
    columns = ["user_index", "item_index", "time_ms", "trusted_ms", "action", "weight"]
    columns += ["stars", "propensity", "position"]
    rows = pq.read_table(folder / "events", columns=columns, read_dictionary=["action"])
    action = rows["action"].combine_chunks()
    codes = np.array([CODES[Action(name)] for name in action.dictionary.to_pylist()], np.int8)
    log = EventLog(
        user_ids=_ids(folder / "users", "user"),
        item_ids=_ids(folder / "items", "item"),
        user=rows["user_index"].to_numpy().astype(np.int32),
        item=rows["item_index"].to_numpy().astype(np.int32),
        time_ms=rows["time_ms"].to_numpy().astype(np.int64),
        trusted_ms=rows["trusted_ms"].to_numpy().astype(np.int64),
        action=codes[action.indices.to_numpy()],
        stars=rows["stars"].to_numpy().astype(np.int8),
        weight=rows["weight"].to_numpy().astype(np.float32),
        trusted=np.ones(len(rows), bool),
        propensity=rows["propensity"].to_numpy().astype(np.float32),
        position=rows["position"].to_numpy().astype(np.int16),
    ).sorted()
    lists, more_items = served_lists.load(folder, log.item_ids)
    return replace(log.also(more_items), lists=lists)


def _ids(folder: Path, kind: str) -> NDArray[np.str_]:
    table = pq.read_table(folder, columns=[f"{kind}_index", f"{kind}_id"])
    ids = np.asarray(table[f"{kind}_id"].to_pylist(), np.str_)
    return ids[np.argsort(table[f"{kind}_index"].to_numpy())]
