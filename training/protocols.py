"""The queries of an evaluation: a user at a moment, what is known, and the next item.

`returning`   users with five or more training interactions; the first test item; as of the cut
`live`        users with two or more test items; the second one, with the first as a live event:
              trends hold what came before the day of that event
`live_later`  the queries of `live` whose target came on a later day than the live event
`back`        the targets of `live_later`, on the day they came: the live event is history by then,
              and trends hold what came before that day
`trends`      the targets of `live` with live trends, but without the live event
`frozen`      the targets of `live`, everything as of the cut
`cold`        users without a training interaction; the first test item; everything as of the cut
`cold_items`  as `live`, over every item; targets have fewer than five training interactions

`live` minus `frozen` is the value of freshness. Except for `cold_items`, targets have five or more
training interactions (`min_interactions`) and were never seen by the user before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from afterclick.trends import DAY_MS
from training.interactions import Interactions

PROTOCOLS = ("returning", "live", "live_later", "back", "trends", "frozen", "cold", "cold_items")
NO_ITEM = -1


@dataclass(frozen=True)
class Queries:
    """One row per query."""

    user: NDArray[np.int32]
    """(q,) user_index"""
    target: NDArray[np.int32]
    """(q,) item_index of the one relevant item"""
    target_ms: NDArray[np.int64]
    """(q,) when the target came"""
    now_ms: NDArray[np.int64]
    """(q,) the moment of the query: trends and item ages are as of events before this"""
    live_item: NDArray[np.int32]
    """(q,) item_index of the live event, -1: none"""

    def __len__(self) -> int:
        return len(self.user)

    def where(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Queries:
        """The rows that `keep` (a mask or row numbers) chooses."""
        return Queries(
            self.user[keep],
            self.target[keep],
            self.target_ms[keep],
            self.now_ms[keep],
            self.live_item[keep],
        )


@dataclass(frozen=True)
class EvaluationSplit:
    """Interactions cut at a moment in time."""

    rows: Interactions
    """Everything, in order of time."""
    cut_ms: int
    end_ms: int
    """Test rows are those in [cut_ms, end_ms)."""
    trusted: NDArray[np.bool_]
    """(n,) rows with a reliable time: only they become targets and live events."""
    min_interactions: int = 5
    """Training interactions an item needs to be ranked."""

    @property
    def of_every_item(self) -> EvaluationSplit:
        """The same, with every item ranked, also those without interactions."""
        return replace(self, min_interactions=0)

    @property
    def train(self) -> Interactions:
        """The rows before the cut."""
        return self.rows.before(self.cut_ms)

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """(n_items,) items that are ranked."""
        return self.train.item_counts() >= self.min_interactions

    def test(self) -> Interactions:
        """The trusted rows at or after the cut."""
        late = (self.rows.time_ms >= self.cut_ms) & (self.rows.time_ms < self.end_ms)
        return self.rows.where(late & self.trusted)


def queries(split: EvaluationSplit, protocol: str) -> Queries:
    """The queries of a protocol. Raises ValueError for a name that is not in PROTOCOLS."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    history = split.train.user_counts()
    if protocol in ("returning", "cold"):
        first = _first(split)
        known = history[first.user]
        return first.where(known >= 5 if protocol == "returning" else known == 0)
    if protocol == "cold_items":
        found = _next(split.of_every_item, second_only=True)
        return found.where(split.train.item_counts()[found.target] < split.min_interactions)
    live = _next(split, second_only=True)
    if protocol in ("live_later", "back"):
        later = live.where(live.target_ms // int(DAY_MS) > live.now_ms // int(DAY_MS))
        return later if protocol == "live_later" else _when_back(later)
    if protocol == "trends":
        return replace(live, live_item=np.full(len(live), NO_ITEM, np.int32))
    if protocol == "frozen":
        return as_of(live, split.cut_ms)
    return live


def as_of(found: Queries, moment_ms: int) -> Queries:
    """The same queries at one moment, without live events."""
    return replace(
        found,
        now_ms=np.full(len(found), moment_ms, np.int64),
        live_item=np.full(len(found), NO_ITEM, np.int32),
    )


def _when_back(found: Queries) -> Queries:
    """The same queries on the days of their targets; the live event is history then."""
    return replace(found, now_ms=found.target_ms, live_item=np.full(len(found), NO_ITEM, np.int32))


def with_history(split: EvaluationSplit, found: Queries) -> Queries:
    """The queries of users with an interaction before the cut or a live event."""
    return found.where((found.live_item >= 0) | (split.train.user_counts()[found.user] > 0))


def sample(found: Queries, n: int | None, seed: int) -> Queries:
    """At most `n` of the queries, chosen at random."""
    if n is None or len(found) <= n:
        return found
    chosen = np.random.default_rng(seed).choice(len(found), n, replace=False)
    return found.where(np.sort(chosen))


def moments(split: EvaluationSplit) -> Queries:
    """Every query that the test rows answer, for learning.

    The first item as of the cut, and each next item with the one before it as a live event.
    """
    first, live = _first(split), _next(split)
    fields = ("user", "target", "target_ms", "now_ms", "live_item")
    return Queries(*(np.concatenate([getattr(first, f), getattr(live, f)]) for f in fields))


def _first(split: EvaluationSplit) -> Queries:
    test = split.test()
    test = test.where(split.eligible[test.item])
    first = np.sort(np.unique(test.user, return_index=True)[1])
    found = Queries(
        test.user[first],
        test.item[first],
        test.time_ms[first],
        test.time_ms[first],
        test.item[first],
    )
    return as_of(found, split.cut_ms)


def _next(split: EvaluationSplit, second_only: bool = False) -> Queries:
    """Each test item of a user with the previous one as the live event."""
    test = split.test()
    order = np.argsort(test.user, kind="stable")
    user = test.user[order]
    same = np.r_[False, user[1:] == user[:-1]][: len(user)]
    if second_only:
        same &= ~np.r_[False, same[:-1]][: len(user)]
    after = np.flatnonzero(same)
    row, before = order[after], order[after - 1]
    found = Queries(
        test.user[row], test.item[row], test.time_ms[row], test.time_ms[before], test.item[before]
    )
    return found.where(split.eligible[found.target])
