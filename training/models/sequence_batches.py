"""Histories as batches of token sequences: every position predicts the item after it.

Interactions of one user at the same time are a set without an order. Every epoch draws another
order of each set, so that an item is predicted from a random part of its set and all that came
before, and no order of a file or of item ids is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IndexArray, Int64Array, IntArray
from afterclick.sequence_encoder import gap_bucket, weight_bucket
from training.interactions import Interactions, by_user_and_time


@dataclass(frozen=True)
class SequenceBatch:
    """Windows of histories, padded at the end."""

    item: Int64Array
    """(b, t) item indices, oldest first; 0 pads"""
    weight: Int64Array
    """(b, t) bucket of the action's weight"""
    gap: Int64Array
    """(b, t) bucket of the time until the target"""
    target: Int64Array
    """(b, t) the item after each; 0 pads"""
    there: NDArray[np.bool_]
    """(b, t) False pads"""
    share: FloatArray
    """(b, t) weight of each target in the loss"""


@dataclass(frozen=True)
class Sequences:
    """The histories that a model learns from, of users with two interactions or more."""

    user: IntArray
    """(m,) user index, ascending"""
    item: IntArray
    """(m,)"""
    weight: FloatArray
    """(m,)"""
    time_ms: Int64Array
    """(m,) ascending within a user"""

    @classmethod
    def of(cls, rows: Interactions) -> Sequences:
        """Those of `rows`."""
        return cls.all_of(rows.where(rows.user_counts()[rows.user] > 1))

    @classmethod
    def all_of(cls, rows: Interactions) -> Sequences:
        """Those of `rows`, also of users with one interaction."""
        order = by_user_and_time(rows)
        return cls(rows.user[order], rows.item[order], rows.weight[order], rows.time_ms[order])

    def __len__(self) -> int:
        return len(self.user)

    def starts(self) -> IndexArray:
        """(m,) the first row of each row's user."""
        return np.searchsorted(self.user, self.user, side="left")

    def owned(self, ends: IndexArray) -> tuple[IndexArray, IntArray]:
        """Number of each of the rows `ends` (b,) with the items of its user before it."""
        start = self.starts()[ends]
        number = np.repeat(np.arange(len(ends)), ends - start)
        before = np.cumsum(ends - start) - (ends - start)
        return number, self.item[np.arange(len(number)) + (start - before)[number]]

    def where(self, mask: NDArray[np.bool_]) -> Sequences:
        """The rows where `mask` (m,) is true."""
        return Sequences(self.user[mask], self.item[mask], self.weight[mask], self.time_ms[mask])

    def shuffled(self, random: np.random.Generator) -> Sequences:
        """The same with each set in a random order."""
        order = np.lexsort((random.random(len(self)), self.time_ms, self.user))
        return Sequences(self.user, self.item[order], self.weight[order], self.time_ms)

    def windows(self, length: int, random: np.random.Generator) -> tuple[IndexArray, IndexArray]:
        """(w,) first row and number of targets of windows with at most `length` targets.

        A history longer than a window is cut at random places; the last item of a window is the
        first of the next.
        """
        starts = np.flatnonzero(np.r_[True, self.user[1:] != self.user[:-1]])
        targets = np.diff(np.append(starts, len(self))) - 1
        first = np.where(targets > length, random.integers(1, length + 1, len(starts)), targets)
        more = -(-(targets - first) // length)
        owner = np.repeat(np.arange(len(starts)), 1 + more)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(1 + more) - (1 + more), 1 + more)
        begin = np.where(number > 0, first[owner] + (number - 1) * length, 0)
        end = np.minimum(first[owner] + number * length, targets[owner])
        return starts[owner] + begin, end - begin

    def epoch(
        self, tokens: int, length: int, share: FloatArray, random: np.random.Generator
    ) -> Iterator[SequenceBatch]:
        """Every target once, in batches of windows of similar length, of about `tokens` tokens.

        `share` (m,): weight of each row as a target.
        """
        rows = self.shuffled(random)
        first, count = rows.windows(length, random)
        order = random.permutation(len(first))
        order = order[np.argsort(count[order], kind="stable")]
        batch = (np.cumsum(count[order]) - 1) // tokens
        parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        for number in random.permutation(len(parts)):
            yield rows.batch(first[parts[number]], count[parts[number]], share)

    def batch(self, first: IndexArray, count: IndexArray, share: FloatArray) -> SequenceBatch:
        """The windows that begin at rows `first` (b,) with `count` (b,) targets each."""
        column = np.arange(int(count.max()))
        there = column < count[:, None]
        row = np.where(there, first[:, None] + column, first[:, None])
        target = np.minimum(row + 1, len(self) - 1)
        return SequenceBatch(
            np.where(there, self.item[row], 0).astype(np.int64),
            weight_bucket(self.weight[row]),
            gap_bucket(self.time_ms[target] - self.time_ms[row]),
            np.where(there, self.item[target], 0).astype(np.int64),
            there,
            share[target],
        )
