"""The transition graph: which items users took after an item, as ranking reads it.

An item's row holds its neighbours and their scores S[i, j], best first, as training learned them
(training/models/transition_graph.py). `LiveTransitions` adds what users did since: see
afterclick/live_transitions.py. A user's score of item j is Σ over their newest items h₁, h₂, … of
DECAY^(k-1) · S[hₖ, j].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from afterclick.arrays import FloatArray, IntArray
from afterclick.compiled import compiled
from afterclick.kernels import as_items, position_in, positions_of

RECENT = 5
"""Newest items of a history whose rows are read."""
DECAY = 0.6
"""Weight of an item of the history relative to the next newer one."""


class TransitionRows(NamedTuple):
    """The rows of a user's newest items."""

    items: IntArray
    """(r, K) neighbours of each, newest item first; -1 pads"""
    scores: FloatArray
    """(r, K)"""


NO_ROWS = TransitionRows(np.empty((0, 0), np.int32), np.empty((0, 0), np.float32))
"""Without a graph or a history."""


@dataclass(frozen=True, eq=False)
class TransitionGraph:
    """Rows by item index: those learned by a model, replaced by live ones where there are any."""

    items: IntArray
    """(n, K) neighbours of the model's items; (0, K) without a model"""
    scores: FloatArray
    """(n, K)"""
    row_of: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """(m,) the live row of an item; -1: the model's"""
    live_items: IntArray = field(default_factory=lambda: np.empty((0, 0), np.int32))
    """(r, L)"""
    live_scores: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(r, L)"""

    def rows(self, recent: IntArray) -> TransitionRows:
        """The rows of the first RECENT items of a history, newest first."""
        learned = self.items, self.scores
        live = self.row_of, self.live_items, self.live_scores
        return TransitionRows(*_rows(learned, live, as_items(recent[:RECENT])))


@compiled
def _rows(
    learned: tuple[IntArray, FloatArray],
    live: tuple[IntArray, IntArray, FloatArray],
    recent: IntArray,
) -> tuple[IntArray, FloatArray]:
    """(r, K) neighbours and scores of recent items (r,)."""
    row_of, live_items, live_scores = live
    width = max(learned[0].shape[1], live_items.shape[1])
    items = np.full((len(recent), width), np.int32(-1), np.int32)
    scores = np.zeros((len(recent), width), np.float32)
    for rank in range(len(recent)):
        item = recent[rank]
        row = row_of[item] if 0 <= item < len(row_of) else np.int32(-1)
        if row >= 0:
            for column in range(live_items.shape[1]):
                items[rank, column] = live_items[row, column]
                scores[rank, column] = live_scores[row, column]
        elif 0 <= item < len(learned[0]):
            for column in range(learned[0].shape[1]):
                items[rank, column] = learned[0][item, column]
                scores[rank, column] = learned[1][item, column]
    return items, scores


@compiled
def transition_rows(
    rows: tuple[IntArray, FloatArray],
    candidates: tuple[IntArray, IntArray],
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Write a user's score of candidates (c,), the part of the newest item, and the share.

    The share is the score relative to the highest that any item could have: that of an item which
    is first in all rows. `candidates`: their hash table and items.
    """
    neighbours, scores = rows
    table, items = candidates
    total, last, share = out
    sums = np.zeros(len(items))
    last[:] = 0.0
    weight, highest = 1.0, 0.0
    for rank in range(len(neighbours)):
        for column in range(neighbours.shape[1]):
            if neighbours[rank, column] < 0:
                break
            if column == 0:
                highest += weight * scores[rank, 0]
            position = position_in(table, items, neighbours[rank, column])
            if position < 0:
                continue
            sums[position] += weight * scores[rank, column]
            if rank == 0:
                last[position] = scores[rank, column]
        weight *= DECAY
    total[:] = sums
    share[:] = sums / highest if highest > 0.0 else sums


def scored(rows: TransitionRows) -> tuple[IntArray, FloatArray]:
    """The neighbours of a user's newest items (c,), ascending, each once, and the user's scores."""
    items = np.unique(rows.items[rows.items >= 0]).astype(np.int32)
    out = np.zeros((3, len(items)), np.float32)
    transition_rows(rows, (positions_of(items), items), (out[0], out[1], out[2]))
    return items, out[0]


def warm_up() -> None:
    """Compile what a list needs, or load its machine code."""
    item, score = np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)
    graph = TransitionGraph(item, score, item[0], item, score)
    scored(graph.rows(item[0]))
