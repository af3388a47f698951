"""The lists that users reacted to, with what they did not choose: examples for the ranker.

reads   parquet  <home>/etl/<version>/shown      impression_id, item_id, position, propensity,
                                                 page, device, shown_today
                 <home>/etl/<version>/reactions  impression_id, user_index, item_id, time_ms, weight

Position bias: P(click) = P(examined at the rank) · P(click | examined), with P(examined at rank k)
= k^-decay (position-based model). A click counts 1 / P(examined), so that items are preferred as
often as without the bias (Joachims, Swaminathan, Schnabel: Unbiased Learning-to-Rank with Biased
Feedback, WSDM 2017). Items of ranks with P(examined) < 1 / MAX_WEIGHT count as not examined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.user_vectors import UserState, context_code

MAX_WEIGHT: Final = 10.0
"""Largest weight of a click, relative to one at the first rank."""
MAX_LISTS: Final = 200_000
"""Lists in memory, the newest."""
MIN_CLICKS: Final = 50
"""Clicks on explored items from which only these decide about the position bias."""
MAX_DECAY: Final = 1.0
"""Largest decay: without exploration, lower ranks have fewer clicks also because their items are
worse."""
DEFAULT_DECAY: Final = 0.35
"""Decay with too few clicks."""
IGNORED: Final = 0.1
"""Grade of an ignored item in a list from which the user only disliked items."""
_EXPLORED: Final = 0.5
"""Propensities below it are those of explored items."""
_DECAYS = np.linspace(0.0, MAX_DECAY, 101)


@dataclass(frozen=True)
class ServedLists:
    """Lists with at least one reaction, by time."""

    user: IntArray
    """(l,) user_index"""
    time_ms: Int64Array
    """(l,) when the first reaction came"""
    last_ms: Int64Array
    """(l,) when the last one came"""
    start: NDArray[np.intp]
    """(l + 1,) bounds of each list in the rows"""
    item: IntArray
    """(r,) item_index, in the order of the list"""
    position: IntArray
    """(r,) place in the list, from 0"""
    propensity: FloatArray
    """(r,) probability with which the list showed the item in its place"""
    grade: FloatArray
    """(r,) weight of the strongest positive reaction; the lowest weight of an item that was only
    disliked; 0: no reaction"""
    shown_today: IntArray
    """(r,) how often the user was shown the item in the day before"""
    context: Float64Array
    """(l, 2) codes of the page and the device of each list; NaN: not known"""

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def empty(cls) -> ServedLists:
        items, times = np.empty(0, np.int32), np.empty(0, np.int64)
        numbers = np.empty(0, np.float32)
        start = np.zeros(1, np.intp)
        none = np.empty((0, 2))
        return cls(items, times, times, start, items, items, numbers, numbers, items, none)

    def where(self, keep: BoolArray | NDArray[np.intp]) -> ServedLists:
        """The lists that a mask (l,) or row numbers select."""
        chosen = np.arange(len(self))[keep]
        sizes = np.diff(self.start)[chosen]
        start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        rows = np.repeat(self.start[chosen] - start[:-1], sizes) + np.arange(start[-1])
        lists = {name: getattr(self, name)[chosen] for name in _OF_LISTS}
        of_rows = {name: getattr(self, name)[rows] for name in _ROWS}
        return replace(self, start=start, **lists, **of_rows)

    def state(self, number: int, user: UserState) -> UserState:
        """The state of a list's user, for that list: its context, and what was shown before."""
        rows = slice(self.start[number], self.start[number + 1])
        counts = zip(self.item[rows].tolist(), self.shown_today[rows].tolist(), strict=True)
        page, device = self.context[number].tolist()
        shown = {item: n for item, n in counts if n}
        return replace(user.after_lists(shown), context=(page, device))

    def before(self, time_ms: int) -> ServedLists:
        """The lists whose reactions all came before a moment."""
        return self.where(self.last_ms < time_ms)

    def between(self, from_ms: int, until_ms: int) -> ServedLists:
        """The lists with the first reaction in a period."""
        return self.where((self.time_ms >= from_ms) & (self.time_ms < until_ms))

    def newest(self, count: int) -> ServedLists:
        """At most `count` lists."""
        return self.where(np.arange(max(len(self) - count, 0), len(self)))


_OF_LISTS = ("user", "time_ms", "last_ms", "context")
_ROWS = ("item", "position", "propensity", "grade", "shown_today")


def position_decay(lists: ServedLists) -> float:
    """The decay with the highest likelihood, clicks being Poisson with the rate of their rank.

    From explored items, whose relevance does not depend on the rank, where they have MIN_CLICKS
    clicks; else from all items; DEFAULT_DECAY if these have too few.
    """
    clicked = lists.grade > 0
    explored = lists.propensity < _EXPLORED
    used = explored if np.count_nonzero(clicked & explored) >= MIN_CLICKS else clicked | True
    if np.count_nonzero(clicked & used) < MIN_CLICKS:
        return DEFAULT_DECAY
    rank = lists.position[used] + 1
    shown = np.bincount(rank)[1:]
    clicks = np.bincount(rank, clicked[used].astype(np.float64))[1:]
    logs = np.log(np.arange(1, len(shown) + 1))
    rates = np.exp(-np.outer(_DECAYS, logs))
    likelihood = -_DECAYS * (clicks @ logs) - clicks.sum() * np.log(rates @ shown)
    return float(_DECAYS[likelihood.argmax()])


@dataclass(frozen=True)
class ListGroup:
    """Items of one list that the ranker compares."""

    list_number: int
    items: IntArray
    """(i,) item_index"""
    grades: FloatArray
    """(i,)"""
    weight: float
    """1 / P(examined), relative to the first rank."""

    @property
    def is_choice(self) -> bool:
        """Whether the first item was chosen; otherwise the list has only disliked items."""
        return bool(self.grades[0] > 0 and not self.grades[1:].any())


def groups(lists: ServedLists, decay: float) -> Iterator[ListGroup]:
    """Each click with the examined items without one; without a click, the ignored items with the
    disliked ones."""
    examined = (lists.position + 1.0) ** -decay
    for number in range(len(lists)):
        rows = np.arange(lists.start[number], lists.start[number + 1])
        rows = rows[(examined[rows] >= 1.0 / MAX_WEIGHT) | (lists.grade[rows] != 0)]
        grades = lists.grade[rows]
        clicked, others = rows[grades > 0], rows[grades <= 0]
        for row in clicked.tolist() if len(others) else ():
            items = np.concatenate([[lists.item[row]], lists.item[others]]).astype(np.int32)
            of_items = np.zeros(len(items), np.float32)
            of_items[0] = lists.grade[row]
            weight = min(1.0 / float(examined[row]), MAX_WEIGHT)
            yield ListGroup(number, items, of_items, weight)
        if not len(clicked) and (grades == 0).any() and (grades < 0).any():
            ignored = np.where(grades == 0, np.float32(IGNORED), np.float32(0.0))
            yield ListGroup(number, lists.item[rows], ignored, 1.0)


def load(folder: Path, item_ids: NDArray[np.str_]) -> tuple[ServedLists, list[str]]:
    """The newest lists of an ETL version, and the ids of their items that `item_ids` lacks.

    The index of such an item follows those of `item_ids`. A list belongs to the user of its first
    reaction; those of others do not count. Nothing from a version without reactions.
    """
    if not (folder / "reactions").is_dir():
        return ServedLists.empty(), []
    reactions, shown = (pq.read_table(folder / name) for name in ("reactions", "shown"))
    if not len(reactions):
        return ServedLists.empty(), []
    by_time = reactions.sort_by([("time_ms", "descending")])
    newest = pc.unique(by_time["impression_id"])[:MAX_LISTS]
    reactions, shown = (
        table.filter(pc.is_in(table["impression_id"], value_set=newest))
        for table in (reactions, shown)
    )
    ids, of_reaction = np.unique(_texts(reactions, "impression_id"), return_inverse=True)
    of_shown = np.searchsorted(ids, _texts(shown, "impression_id")).astype(np.int32)
    names = _texts(shown, "item_id")
    missing = sorted(set(names.tolist()) - set(item_ids.tolist()))
    index = {name: n for n, name in enumerate([*item_ids.tolist(), *missing])}
    item = np.array([index[name] for name in names.tolist()], np.int32)
    reacted = [index.get(name, -1) for name in _texts(reactions, "item_id").tolist()]
    codes = [_codes(shown, name) for name in ("page", "device")]
    today = _counts(shown, "shown_today")
    columns = (reactions[name].to_numpy() for name in ("user_index", "time_ms", "weight"))
    position, propensity = (shown[name].to_numpy() for name in ("position", "propensity"))
    lists = _assembled(
        (of_shown, item, position, propensity, today, *codes),
        (of_reaction, np.array(reacted), *columns),
    )
    return lists, missing


def _counts(table: pa.Table, name: str) -> IntArray:
    """A column of counts; 0 where unknown, as in a table of an earlier version."""
    if name not in table.column_names:
        return np.zeros(len(table), np.int32)
    return np.asarray(pc.fill_null(table[name], 0).to_numpy(), np.int32)


def _codes(table: pa.Table, name: str) -> Float64Array:
    """The codes of a column of labels; NaN in a table of an earlier version."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.array([context_code(label) for label in table[name].to_pylist()])


def _texts(table: pa.Table, name: str) -> NDArray[np.str_]:
    return np.asarray(table[name].to_pylist(), np.str_)


def _assembled(shown: tuple[Any, ...], reactions: tuple[NDArray[np.generic], ...]) -> ServedLists:
    """From rows (list, item, position, propensity, shown_today, page, device) and (list, item,
    user, time, weight)."""
    number, item, user, time_ms, weight = (np.asarray(column) for column in reactions)
    order = np.lexsort((time_ms, number))
    number, item, user, time_ms, weight = (
        column[order] for column in (number, item, user, time_ms, weight)
    )
    first = np.searchsorted(number, np.arange(int(number[-1]) + 1))
    own = user == user[first][number]
    last_ms = np.zeros(len(first), np.int64)
    np.maximum.at(last_ms, number[own], time_ms[own])
    of_list, shown_item, position, propensity, today, *codes = shown
    rows = np.lexsort((position, of_list))
    of_list, shown_item = of_list[rows], shown_item[rows]
    grade = np.zeros(len(rows), np.float32)
    width = int(max(shown_item.max(initial=0), item.max(initial=0))) + 1
    keys = of_list.astype(np.int64) * width + shown_item
    by_key = np.argsort(keys, kind="stable")
    wanted = number[own].astype(np.int64) * width + item[own]
    at = np.minimum(np.searchsorted(keys[by_key], wanted), max(len(keys) - 1, 0))
    there = keys[by_key][at] == wanted
    target, given = by_key[at[there]], weight[own][there].astype(np.float32)
    lowest = np.zeros(len(rows), np.float32)
    np.maximum.at(grade, target, given)
    np.minimum.at(lowest, target, given)
    start = np.searchsorted(of_list, np.arange(len(first) + 1))
    context = np.column_stack(codes)[rows][np.minimum(start[:-1], len(rows) - 1)]
    found = ServedLists(
        user[first].astype(np.int32),
        time_ms[first].astype(np.int64),
        last_ms,
        start,
        shown_item.astype(np.int32),
        position[rows].astype(np.int32),
        propensity[rows].astype(np.float32),
        np.where(grade > 0, grade, lowest),
        today[rows].astype(np.int32),
        context,
    )
    return found.where(np.argsort(found.time_ms, kind="stable"))
