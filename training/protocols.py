"""The queries of an evaluation: a user at a moment, what is known, and what the user took next.

Events of one user with equal times have no order: they are one set. A live event is a random member
of a set (the first by hash); every eligible member of the target's set is relevant.

`returning`       users with five or more training pairs; their first test set; as of the cut
`live`            users with two or more test items: one of their first set is the live event, the
                  targets are the rest of that set, or else the next one. Trends hold what came
                  before the day of the live event
`live_same_day`   the queries of `live` whose targets came on the day of the live event
`live_later`      the queries of `live` whose targets came on a later day
`live_later_day`  users with test items on two days: one of the first day is the live event, the
                  targets are the first set of a later day
`back`            the targets of `live_later`, on the day they came: the live event is history by
                  then, and trends hold what came before that day
`trends`          the queries of `live` without the live event
`nightly`         as `trends`, but as of one day earlier: a nightly batch that took a day to publish
`frozen`          the queries of `live`, everything as of the cut
`cold`            users without a training pair; their first test set; everything as of the cut
`live_all`        as `live`, over every item
`cold_items`      the queries of `live_all` whose targets have fewer than five training pairs

Freshness: `live` minus `trends` is the value of the live event, `trends` minus `nightly` that of
trends a day fresher, `nightly` minus `frozen` what a model loses that is not updated after the cut.
Except for `live_all` and `cold_items`, targets have five or more training pairs
(`min_interactions`). No target was seen by the user before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import AnyArray, BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.trends import DAY_MS
from training.event_log import EventLog
from training.interactions import Interactions, runs
from training.served_lists import ServedLists

PROTOCOLS = (
    "returning",
    "live",
    "live_same_day",
    "live_later",
    "live_later_day",
    "back",
    "trends",
    "nightly",
    "frozen",
    "cold",
    "live_all",
    "cold_items",
)
EVERY_ITEM = ("live_all", "cold_items")
"""Protocols that rank every item."""
MAX_TARGETS = 20
"""Members of a set that count as targets."""
UNBIASED_USERS = 1_000
"""Users with other targets, from which on those from lists without exploration weigh nothing."""
MAX_WEIGHT = 10.0
"""Largest inverse propensity; a few rarely shown items would decide otherwise."""
NOTHING = -1
_DAY = int(DAY_MS)


@dataclass(frozen=True)
class Queries:
    """One row per query."""

    user: IntArray
    """(q,) user_index"""
    targets: IntArray
    """(q, t) item_index of the relevant items, -1 pads"""
    grades: FloatArray
    """(q, t) weight of the user's strongest action on each target"""
    organic: BoolArray
    """(q,) no target came from a list that was shown"""
    weight: FloatArray
    """(q,) mean over the targets of 1 / propensity, at most MAX_WEIGHT; 1 for organic targets"""
    target_ms: Int64Array
    """(q,) when the targets came"""
    now_ms: Int64Array
    """(q,) the moment of the query: trends and item ages are as of events before this"""
    live: IntArray
    """(q, e) rows of the live events in the log, newest first, -1 pads"""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_targets(self) -> IntArray:
        """(q,) relevant items of each query."""
        return np.asarray((self.targets >= 0).sum(axis=1), np.int32)

    @property
    def first_target(self) -> IntArray:
        """(q,) one relevant item of each query."""
        return np.asarray(self.targets[np.arange(len(self)), (self.targets >= 0).argmax(axis=1)])

    def weights(self, min_users: int = UNBIASED_USERS) -> Float64Array:
        """(q,) weights of the queries in a mean that compares models.

        Targets from lists without exploration favour the model that made the lists: they weigh 0 if
        the other queries come from at least `min_users` users.
        """
        chosen = ~self.organic & (self.weight == 1.0)
        weights = self.weight.astype(np.float64)
        if len(np.unique(self.user[~chosen])) >= min_users:
            weights[chosen] = 0.0
        return weights

    def where(self, keep: BoolArray | NDArray[np.intp]) -> Queries:
        """The rows that `keep` (a mask or row numbers) chooses."""
        return Queries(*(getattr(self, name)[keep] for name in _FIELDS))

    @classmethod
    def joined(cls, parts: list[Queries]) -> Queries:
        """All queries of the parts."""
        return cls(*(_stacked([getattr(part, name) for part in parts]) for name in _FIELDS))


_FIELDS = ("user", "targets", "grades", "organic", "weight", "target_ms", "now_ms", "live")


@dataclass(frozen=True)
class EvaluationSplit:
    """A log cut at a moment in time."""

    log: EventLog
    """Everything, in order of time."""
    cut_ms: int
    end_ms: int
    """Test events are those in [cut_ms, end_ms)."""
    min_interactions: int = 5
    """Training pairs an item needs to be ranked."""

    @cached_property
    def of_every_item(self) -> EvaluationSplit:
        """The same, with every item ranked, also those without interactions."""
        return replace(self, min_interactions=0)

    @cached_property
    def train(self) -> Interactions:
        """The pairs of the events before the cut."""
        return self.log.before(self.cut_ms).pairs()

    @cached_property
    def eligible(self) -> BoolArray:
        """(n_items,) items that are ranked."""
        return np.asarray(self.train.item_counts() >= self.min_interactions)

    @cached_property
    def test(self) -> ContactSets:
        """The trusted first contacts at or after the cut."""
        return ContactSets.of(self.log.before(self.end_ms), self.cut_ms)


@dataclass(frozen=True)
class ContactSets:
    """First contacts in a period, by user, then by time, then by hash."""

    row: IntArray
    """(c,) row in the log"""
    user: IntArray
    item: IntArray
    time_ms: Int64Array
    grade: FloatArray
    organic: BoolArray
    weight: FloatArray
    """(c,) 1 / propensity, at most MAX_WEIGHT; 1 for an organic contact"""
    start: NDArray[np.intp]
    """(s + 1,) bounds of the sets: contacts of one user with equal times"""
    previous: BoolArray
    """(s,) the set before it is of the same user"""

    @classmethod
    def of(cls, log: EventLog, from_ms: int) -> ContactSets:
        contacts = log.contacts()
        row = contacts.row
        keep = (log.time_ms[row] >= from_ms) & log.trusted[row] & contacts.unseen
        row, grade = row[keep], contacts.grade[keep]
        order = np.argsort(log.user[row], kind="stable")
        row, grade = row[order], grade[order]
        user, time_ms = log.user[row], log.time_ms[row]
        (of_user, _), (of_set, _) = runs(user), runs(user, time_ms)
        start = np.flatnonzero(of_set == np.arange(len(row)))
        organic = np.isnan(log.propensity[row])
        weight = 1.0 / np.clip(log.propensity[row], 1.0 / MAX_WEIGHT, 1.0)
        return cls(
            row.astype(np.int32),
            user,
            log.item[row],
            time_ms,
            grade,
            organic,
            np.where(organic, 1.0, weight).astype(np.float32),
            np.r_[start, len(row)],
            of_user[start] < start,
        )

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def sizes(self) -> NDArray[np.intp]:
        """(s,) contacts of each set."""
        return np.diff(self.start)

    def queries(
        self, sets: NDArray[np.intp], skipped: NDArray[np.intp], live: IntArray, eligible: BoolArray
    ) -> Queries:
        """Queries for the eligible members of `sets` (q,), without the first `skipped` (q,) of
        each; now is the time of the first live event, or of the set."""
        first = self.start[:-1][sets] + skipped
        place = first[:, None] + np.arange(min(MAX_TARGETS, int(self.sizes.max(initial=1))))
        inside = place < self.start[1:][sets][:, None]
        place = np.where(inside, place, 0)
        there = inside & eligible[self.item[place]]
        time_ms = self.time_ms[self.start[:-1][sets]]
        total = np.where(there, self.weight[place], 0.0).sum(axis=1)
        weight = total / np.maximum(there.sum(axis=1), 1)
        found = Queries(
            user=self.user[self.start[:-1][sets]],
            targets=np.where(there, self.item[place], NOTHING).astype(np.int32),
            grades=np.where(there, self.grade[place], 0.0).astype(np.float32),
            organic=np.asarray((self.organic[place] | ~there).all(axis=1)),
            weight=weight.astype(np.float32),
            target_ms=time_ms,
            now_ms=time_ms,
            live=live,
        )
        return found.where(there.any(axis=1))


def queries(split: EvaluationSplit, protocol: str) -> Queries:
    """The queries of a protocol. Raises ValueError for a name that is not in PROTOCOLS."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    if protocol in ("returning", "cold"):
        first = as_of(_first_sets(split), split.cut_ms)
        known = split.train.user_counts()[first.user]
        return first.where(known >= 5 if protocol == "returning" else known == 0)
    if protocol == "live_later_day":
        return _later_day(split)
    live = _live(split.of_every_item if protocol in EVERY_ITEM else split)
    if protocol == "cold_items":
        new = split.train.item_counts() < split.min_interactions
        new_targets = np.where(new[live.targets], live.targets, NOTHING)
        found = replace(live, targets=new_targets.astype(np.int32))
        return found.where(np.flatnonzero(found.n_targets))
    same_day = np.equal(live.target_ms // _DAY, live.now_ms // _DAY)
    if protocol == "live_same_day":
        return live.where(np.flatnonzero(same_day))
    if protocol in ("live_later", "back"):
        later = live.where(np.flatnonzero(~same_day))
        return (
            later
            if protocol == "live_later"
            else replace(_eventless(later), now_ms=later.target_ms)
        )
    return {
        "trends": lambda: _eventless(live),
        "nightly": lambda: replace(_eventless(live), now_ms=live.now_ms - _DAY),
        "frozen": lambda: as_of(live, split.cut_ms),
    }.get(protocol, lambda: live)()


def every_choice(split: EvaluationSplit) -> Queries:
    """A query for each set of the test events, at its moment, about every item.

    Of a set of two or more, one member is the live event and the rest are the targets, as in
    `live`. A user has as many queries as sets.
    """
    test = split.test
    sets, known = np.arange(len(test)), (test.sizes > 1).astype(np.intp)
    every_item = np.ones(len(split.log.item_ids), bool)
    return test.queries(sets, known, _events(test, sets, known), every_item)


def as_of(found: Queries, moment_ms: int) -> Queries:
    """The same queries at one moment, without live events."""
    return replace(_eventless(found), now_ms=np.full(len(found), moment_ms, np.int64))


def with_history(split: EvaluationSplit, found: Queries) -> Queries:
    """The queries of users with an interaction before the cut or a live event."""
    known = split.train.user_counts()[found.user] > 0
    return found.where((found.live >= 0).any(axis=1) | known)


def sample(found: Queries, n: int | None, seed: int) -> Queries:
    """At most `n` of the queries, chosen at random."""
    if n is None or len(found) <= n:
        return found
    chosen = np.random.default_rng(seed).choice(len(found), n, replace=False)
    return found.where(np.sort(chosen))


def moments(split: EvaluationSplit, seed: int = 42) -> Queries:
    """Every query that the test events answer, for learning.

    The first set as of the cut; each next set with a random part of the one before as live events;
    and of each set of two or more, a random part as live events and the rest as targets.

    Of what the user disliked between that moment and the targets, a random part is known: then the
    moment is that of the last known dislike.
    """
    test = split.test
    revealed = _revealed(test.sizes, np.random.default_rng(seed))
    following = np.flatnonzero(test.previous)
    before = following - 1
    after = test.queries(
        following,
        np.zeros(len(following), np.intp),
        _events(test, before, revealed[before]),
        split.eligible,
    )
    within = np.flatnonzero(test.sizes > 1)
    part = np.minimum(revealed[within], test.sizes[within] - 1)
    inside = test.queries(within, part, _events(test, within, part), split.eligible)
    first = as_of(_first_sets(split), split.cut_ms)
    found = Queries.joined([first, _at_live(split.log, after), inside])
    return _after_dislikes(split.log.before(split.end_ms), found, np.random.default_rng(seed))


def list_queries(lists: ServedLists) -> Queries:
    """A query without a target for each list, at the moment of its first reaction."""
    n = len(lists)
    return Queries(
        user=lists.user,
        targets=np.full((n, 1), NOTHING, np.int32),
        grades=np.zeros((n, 1), np.float32),
        organic=np.zeros(n, bool),
        weight=np.ones(n, np.float32),
        target_ms=lists.time_ms,
        now_ms=lists.time_ms,
        live=np.full((n, 1), NOTHING, np.int32),
    )


def _after_dislikes(log: EventLog, found: Queries, random: np.random.Generator) -> Queries:
    """The same queries as of a random one of the dislikes before their targets, or as they are."""
    negatives = log.negatives()
    first, end = negatives.bounds(found.user, found.now_ms, found.target_ms)
    known = random.integers(0, np.maximum(end - first, 0) + 1)
    later = np.flatnonzero(known)
    if not len(later):
        return found
    live = np.pad(found.live, ((0, 0), (1, 0)), constant_values=NOTHING)
    live[later, 0] = negatives.row[(first + known - 1)[later]]
    now_ms = found.now_ms.copy()
    now_ms[later] = log.time_ms[live[later, 0]]
    return replace(found, live=live, now_ms=now_ms)


def _first_sets(split: EvaluationSplit) -> Queries:
    """The first set with an eligible member of every user, at its moment."""
    test = split.test
    everything = np.arange(len(test))
    found = test.queries(
        everything,
        np.zeros(len(test), np.intp),
        np.full((len(test), 1), NOTHING, np.int32),
        split.eligible,
    )
    return found.where(np.unique(found.user, return_index=True)[1])


def _live(split: EvaluationSplit) -> Queries:
    """One member of the first set as the live event, then the rest of it, or the next set."""
    test = split.test
    first = np.flatnonzero(~test.previous)
    several = test.sizes[first] > 1
    following = np.r_[test.previous[1:], False][first] if len(test) else several
    asked = first[several | following]
    own = test.sizes[asked] > 1
    found = test.queries(
        np.where(own, asked, asked + 1),
        own.astype(np.intp),
        _events(test, asked, np.ones(len(asked), np.intp)),
        split.eligible,
    )
    return _at_live(split.log, found)


def _later_day(split: EvaluationSplit) -> Queries:
    """One member of the first set as the live event, then the first set of a later day."""
    test = split.test
    day = test.time_ms[test.start[:-1]] // _DAY
    owner = np.cumsum(~test.previous) - 1
    first = np.flatnonzero(~test.previous)
    later = np.flatnonzero(day > day[first][owner]) if len(test) else first
    chosen = later[np.unique(owner[later], return_index=True)[1]]
    origin = first[owner[chosen]]
    found = test.queries(
        chosen,
        np.zeros(len(chosen), np.intp),
        _events(test, origin, np.ones(len(chosen), np.intp)),
        split.eligible,
    )
    return _at_live(split.log, found)


def _events(test: ContactSets, sets: NDArray[np.intp], count: NDArray[np.intp]) -> IntArray:
    """(q, e) the rows of the first `count` (q,) members of `sets` (q,)."""
    width = np.arange(int(count.max(initial=1)))
    place = test.start[:-1][sets][:, None] + width
    there = width < count[:, None]
    return np.where(there, test.row[np.where(there, place, 0)], NOTHING).astype(np.int32)


def _revealed(sizes: NDArray[np.intp], random: np.random.Generator) -> NDArray[np.intp]:
    """(s,) how many members of each set become live events: from one to all but one."""
    return np.asarray(random.integers(1, np.clip(sizes, 2, MAX_TARGETS)), np.intp)


def _at_live(log: EventLog, found: Queries) -> Queries:
    """The same queries at the moment of their live events."""
    return replace(found, now_ms=log.time_ms[found.live[:, 0]])


def _eventless(found: Queries) -> Queries:
    return replace(found, live=np.full((len(found), 1), NOTHING, np.int32))


def _stacked(arrays: list[AnyArray]) -> Any:
    """The arrays one after the other; rows of different widths are padded."""
    if arrays[0].ndim == 1:
        return np.concatenate(arrays)
    width = max(a.shape[1] for a in arrays)
    pad = 0 if arrays[0].dtype.kind == "f" else NOTHING
    return np.concatenate(
        [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=pad) for a in arrays]
    )
