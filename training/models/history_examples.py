"""Targets and the histories that predict them, drawn from interactions; equal times are sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, FloatArray, IndexArray, Int64Array, IntArray
from afterclick.ncf import NCF_HISTORY
from afterclick.sequence_encoder import AGES_DAYS
from afterclick.trends import DAY_MS
from training.interactions import Interactions, by_user_and_time, runs

_RANKS = np.arange(NCF_HISTORY)


@dataclass(frozen=True)
class HistoryBatch:
    """Targets and the histories that predict them."""

    history: IntArray
    """(b, NCF_HISTORY) item indices, newest first; -1 pads"""
    weight: FloatArray
    """(b, NCF_HISTORY) weight of the action"""
    age: NDArray[np.int8]
    """(b, NCF_HISTORY) number of the age's bucket"""
    target: IntArray
    """(b,) item indices"""


@dataclass(frozen=True)
class HistoryExamples:
    """The interactions whose user has others before them or at the same time.

    Interactions of one user at the same time are a set without an order. The history of a target is
    drawn anew in every batch: a random part of the rest of its set, at age 0, then what came before
    the set. The part has any size with equal probability, as if the set had come in random order.
    """

    item: IntArray
    """(m,) item index of each interaction, by user, time and hash"""
    weight: FloatArray
    """(m,)"""
    time_ms: Int64Array
    """(m,)"""
    of_user: tuple[IndexArray, IndexArray]
    """(m,) start and end of the rows of the same user"""
    of_set: tuple[IndexArray, IndexArray]
    """(m,) start and end of the rows of the same user and time"""
    targets: IndexArray
    """(n,) rows that are targets"""

    @classmethod
    def of(cls, rows: Interactions) -> HistoryExamples:
        """Every interaction that can have a history."""
        order = by_user_and_time(rows)
        user, time_ms = rows.user[order], rows.time_ms[order]
        of_user, of_set = runs(user), runs(user, time_ms)
        targets = np.flatnonzero((of_set[0] > of_user[0]) | (of_set[1] - of_set[0] > 1))
        return cls(rows.item[order], rows.weight[order], time_ms, of_user, of_set, targets)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, chosen: IndexArray, random: np.random.Generator) -> HistoryBatch:
        """The examples `chosen` (b,) with histories drawn for them."""
        target = self.targets[chosen]
        first, start = self.of_user[0][target], self.of_set[0][target]
        others = self.of_set[1][target] - start - 1
        together = random.integers((start == first).astype(np.intp), others + 1)[:, None]
        turn = random.integers(0, np.maximum(others, 1))[:, None] + _RANKS
        in_set = (target - start + 1)[:, None] + turn % np.maximum(others, 1)[:, None]
        in_set = start[:, None] + in_set % (others + 1)[:, None]
        row = np.where(together > _RANKS, in_set, start[:, None] - 1 - (_RANKS - together))
        there = row >= first[:, None]
        row = np.where(there, row, 0)
        days = (self.time_ms[target][:, None] - self.time_ms[row]) / DAY_MS
        return HistoryBatch(
            np.where(there, self.item[row], -1).astype(np.int32),
            np.where(there, self.weight[row], 0.0).astype(np.float32),
            np.searchsorted(AGES_DAYS, days, side="right").astype(np.int8),
            self.item[target].astype(np.int32),
        )

    def owned(self, chosen: IndexArray, items: IndexArray) -> BoolArray:
        """(b, len(items)) whether the user of each example has an interaction with each item."""
        start, end = (bound[self.targets[chosen]] for bound in self.of_user)
        example = np.repeat(np.arange(len(chosen)), end - start)
        before = np.cumsum(end - start) - (end - start)
        item = self.item[np.arange(len(example)) + (start - before)[example]]
        distinct, column = np.unique(items, return_inverse=True)
        place = np.minimum(np.searchsorted(distinct, item), len(distinct) - 1)
        found = distinct[place] == item
        owned = np.zeros((len(chosen), len(distinct)), bool)
        owned[example[found], place[found]] = True
        return np.asarray(owned[:, column])
