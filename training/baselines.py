"""Models without training: popularity, decayed popularity, item-item neighbours from co-reviews."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.dataset import Interactions

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class NeighbourConfig:
    """How neighbours are counted."""

    count: int = 50
    """Neighbours kept per item."""
    shrink: float = 5.0
    """Added to both items' counts, so that one shared user of two rare items proves little."""
    longest: int = 100
    """Only the newest this many interactions of a user (or of a user's day) make pairs."""


def popularity(rows: Interactions) -> FloatArray:
    """(n_items,) interactions of each item."""
    return rows.item_counts().astype(np.float32)


def first_seen(rows: Interactions) -> NDArray[np.float64]:
    """(n_items,) event time of each item's first interaction, ms; NaN where it has none."""
    seen = np.full(len(rows.item_ids), np.inf)
    np.minimum.at(seen, rows.item, rows.time_ms.astype(np.float64))
    return np.where(np.isfinite(seen), seen, np.nan)


def decayed_popularity(rows: Interactions, now_ms: float, half_life_ms: float) -> NDArray[np.float64]:
    """(n_items,) Σ weight · 2^(−age / half-life) as of `now_ms`."""
    worth = rows.weight * np.exp2((rows.time_ms - now_ms) / half_life_ms)
    return np.asarray(np.bincount(rows.item, worth, minlength=len(rows.item_ids)), np.float64)


def trends_at(
    rows: Interactions, moments: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """For each moment, ascending: the trends (n_items, H) and first_seen (n_items,) of the rows before it.

    The same numbers as `afterclick.trends.TrendTable.values` at that moment, item by item.
    """
    half_lives = np.array(list(HALF_LIVES_MS.values()))
    sums = np.zeros((len(rows.item_ids), len(half_lives)))
    seen = np.full(len(rows.item_ids), np.inf)
    start, now = 0, float(moments[0]) if len(moments) else 0.0
    for moment in np.unique(moments).tolist():
        end = int(np.searchsorted(rows.time_ms, moment, side="left"))
        item, time = rows.item[start:end], rows.time_ms[start:end].astype(np.float64)
        sums *= np.exp2((now - moment) / half_lives)
        worth = rows.weight[start:end, None] * np.exp2((time - moment)[:, None] / half_lives)
        for column in range(len(half_lives)):
            sums[:, column] += np.bincount(item, worth[:, column], minlength=len(sums))
        np.minimum.at(seen, item, time)
        start, now = end, float(moment)
        yield moment, sums.copy(), np.where(np.isfinite(seen), seen, np.nan)


def cosine_neighbours(rows: Interactions, config: NeighbourConfig) -> tuple[IntArray, FloatArray]:
    """(n_items, K) neighbours of each item by the cosine of their user sets, and the cosines."""
    return _nearest(_newest_per_group(rows.user, rows, config.longest), config)


def same_day_neighbours(rows: Interactions, config: NeighbourConfig) -> tuple[IntArray, FloatArray]:
    """(n_items, K) items that the same users reviewed on the same day: bought together, or variants."""
    day = (rows.time_ms // int(DAY_MS)).astype(np.int64)
    _, basket = np.unique(rows.user.astype(np.int64) * (day.max(initial=0) + 1) + day, return_inverse=True)
    return _nearest(_newest_per_group(basket, rows, config.longest), config)


def _newest_per_group(group: NDArray[Any], rows: Interactions, longest: int) -> Any:
    """(groups, items) CSR of ones with the newest `longest` rows of each group. Rows ascend in time."""
    order = np.argsort(group, kind="stable")[::-1]
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, int)
    rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    keep = order[rank < longest]
    shape = (int(group.max(initial=-1)) + 1, len(rows.item_ids))
    return sparse.csr_matrix((np.ones(len(keep), np.float32), (group[keep], rows.item[keep])), shape=shape)


def _nearest(matrix: Any, config: NeighbourConfig) -> tuple[IntArray, FloatArray]:
    together = (matrix.T @ matrix).tocoo()
    total = np.asarray(matrix.sum(axis=0)).ravel()
    apart = together.row != together.col
    row, col, both = together.row[apart], together.col[apart], together.data[apart]
    norm = np.sqrt(total + config.shrink).astype(np.float32)
    score = both / (norm[row] * norm[col])
    # equal scores: the more popular first, so that no order of the rows decides
    order = np.lexsort((-total[col], -score, row))
    row, col, score = row[order], col[order], score[order]
    starts = np.searchsorted(row, np.arange(matrix.shape[1]))
    rank = np.arange(len(row)) - starts[row]
    keep = rank < config.count
    items = np.full((matrix.shape[1], config.count), -1, np.int32)
    scores = np.zeros((matrix.shape[1], config.count), np.float32)
    items[row[keep], rank[keep]] = col[keep]
    scores[row[keep], rank[keep]] = score[keep]
    return items, scores
