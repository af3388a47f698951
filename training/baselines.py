"""Models without training: popularity, decayed popularity, item-item neighbours from co-reviews."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from afterclick.arrays import FloatArray, IntArray
from afterclick.quarantine import ESTABLISHED_DAYS, LimitedTrends, QuarantineLimits, apply_limits
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.interactions import Interactions

_CHUNK = 4096


@dataclass(frozen=True)
class NeighbourConfig:
    """How neighbours are counted."""

    count: int = 100
    """Neighbours kept per item."""
    shrink: float = 2.0
    """Added to the items' counts, so that one shared user of two rare items proves little."""
    steps: int = 20
    """Neighbours of each kind that a walk may step to."""
    half_life_days: float | None = 180.0
    """An interaction this much older than the newest counts half; None: all alike."""
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


def decayed_popularity(
    rows: Interactions, now_ms: float, half_life_ms: float
) -> NDArray[np.float64]:
    """(n_items,) Σ weight · 2^(−age / half-life) as of `now_ms`."""
    worth = rows.weight * np.exp2((rows.time_ms - now_ms) / half_life_ms)
    return np.asarray(np.bincount(rows.item, worth, minlength=len(rows.item_ids)), np.float64)


def trends_at(
    rows: Interactions, moments: NDArray[np.int64], bounds: QuarantineLimits | None = None
) -> Iterator[tuple[int, LimitedTrends, NDArray[np.float64]]]:
    """For each moment, ascending: the trends (n_items, H) and first_seen (n_items,) of the rows before it.

    The same numbers as serving's at that moment, item by item: those of `afterclick.trends.TrendTable`, held
    back as `bounds` (None: the usual ones) have it.
    """
    vouched = rows.where(established(rows))
    for (moment, votes, seen), (_, theirs, _) in zip(
        sums_at(rows, moments), sums_at(vouched, moments), strict=True
    ):
        yield moment, apply_limits(votes, theirs, bounds or QuarantineLimits()), seen


def established(rows: Interactions) -> NDArray[np.bool_]:
    """(n,) the rows whose user had been here for some days."""
    since = np.full(len(rows.user_ids), np.iinfo(np.int64).max)
    np.minimum.at(since, rows.user, rows.time_ms)
    return np.asarray(rows.time_ms - since[rows.user] >= ESTABLISHED_DAYS * DAY_MS)


def unpushed(rows: Interactions, bounds: QuarantineLimits | None = None) -> Interactions:
    """The rows less new accounts' on items in quarantine as of the newest row: what may be learned from."""
    if not len(rows):
        return rows
    old = established(rows)
    now = rows.time_ms[-1:] + 1
    (_, votes, _), (_, theirs, _) = *sums_at(rows, now), *sums_at(rows.where(old), now)
    held = apply_limits(votes, theirs, bounds or QuarantineLimits()).quarantined
    return rows.where(old | ~held[rows.item])


def sums_at(
    rows: Interactions, moments: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """For each moment, ascending: decayed sums (n_items, H), first_seen (n_items,) of the rows before it."""
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
    """(n_items, K) neighbours of each item by the cosine of their users, and the cosines."""
    together, total = _counted(rows.user, rows, config)
    size = np.sqrt(total + config.shrink)
    return _nearest(together, 1.0 / (size[together.row] * size[together.col]), total, config.count)


def same_day_neighbours(rows: Interactions, config: NeighbourConfig) -> tuple[IntArray, FloatArray]:
    """(n_items, K) items that the same users reviewed on the same day (bought together, or variants), and the
    chance that one of them comes with the item."""
    day = (rows.time_ms // int(DAY_MS)).astype(np.int64)
    _, basket = np.unique(
        rows.user.astype(np.int64) * (day.max(initial=0) + 1) + day, return_inverse=True
    )
    together, total = _counted(basket, rows, config)
    return _nearest(together, 1.0 / (total[together.row] + config.shrink), total, config.count)


def neighbour_arrays(rows: Interactions, config: NeighbourConfig) -> dict[str, Any]:
    """Every neighbour list of a model, by the names of its fields."""
    cosine, same_day = cosine_neighbours(rows, config), same_day_neighbours(rows, config)
    now = float(rows.time_ms[-1]) if len(rows) else 0.0
    lately = decayed_popularity(rows, now, HALF_LIVES_MS["month"])
    reach = reachable(cosine, same_day, lately, config)
    return {
        "neighbour_items": cosine[0],
        "neighbour_scores": cosine[1],
        "same_day_items": same_day[0],
        "same_day_scores": same_day[1],
        "reach_items": reach[0],
        "reach_scores": reach[1],
    }


def reachable(
    cosine: tuple[IntArray, FloatArray],
    same_day: tuple[IntArray, FloatArray],
    lately: NDArray[np.float64],
    config: NeighbourConfig,
) -> tuple[IntArray, FloatArray]:
    """(n_items, K) where a walk of one or two steps over both kinds of neighbours leads, and its weight.

    W is the mean of both lists, rows summing to one; the weight is (W + W²) · popularity^0.7, rows summing to
    one again. `lately` (n_items,) is decayed popularity. Most items share users with few others, so the
    second step counts: on Electronics (live questions) it brings 13 % of the next items among the first 100,
    cosine alone 7.5 %.
    """
    walk = _rows_to_one(_steps(*cosine, config.steps) + _steps(*same_day, config.steps))
    weight = sparse.diags(np.maximum(lately, 0.0) ** 0.7)
    items = np.full((walk.shape[0], config.count), -1, np.int32)
    scores = np.zeros((walk.shape[0], config.count), np.float32)
    for start in range(0, walk.shape[0], _CHUNK):
        part = walk[start : start + _CHUNK]
        found = (_rows_to_one((part + part @ walk) @ weight)).tocoo()
        apart = (found.row + start != found.col) & (found.data > 0)
        row, col, score = found.row[apart], found.col[apart], found.data[apart]
        end = start + part.shape[0]
        items[start:end], scores[start:end] = _best(
            row, col, score, lately, part.shape[0], config.count
        )
    return items, scores


def _steps(items: IntArray, scores: FloatArray, count: int) -> Any:
    """(n_items, n_items) CSR of the first `count` neighbours, rows summing to one."""
    items, scores = items[:, :count], scores[:, :count]
    row, place = np.nonzero(items >= 0)
    shape = (len(items), len(items))
    return _rows_to_one(
        sparse.csr_matrix((scores[row, place], (row, items[row, place])), shape=shape)
    )


def _rows_to_one(matrix: Any) -> Any:
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.diags(1.0 / np.where(total > 0, total, 1.0)) @ matrix


def _counted(
    group: NDArray[Any], rows: Interactions, config: NeighbourConfig
) -> tuple[Any, FloatArray]:
    """How often two items are in one group (COO, n_items × n_items, no diagonal), and each is in any."""
    matrix = _newest_per_group(group, rows, config)
    together = (matrix.T @ matrix).tocoo()
    total = np.asarray(matrix.multiply(matrix).sum(axis=0), np.float32).ravel()
    together.setdiag(0)
    together.eliminate_zeros()
    return together, total


def _newest_per_group(group: NDArray[Any], rows: Interactions, config: NeighbourConfig) -> Any:
    """(groups, items) CSR of the newest rows of each group: the root of what each counts. Time ascends."""
    order = np.argsort(group, kind="stable")[::-1]
    ordered = group[order]
    starts = (
        np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        if len(ordered)
        else np.empty(0, int)
    )
    rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    keep = order[rank < config.longest]
    counts = np.ones(len(keep), np.float32)
    if config.half_life_days is not None and len(keep):
        age = (rows.time_ms.max() - rows.time_ms[keep]) / DAY_MS
        counts = np.exp2(-age / config.half_life_days).astype(np.float32)
    shape = (int(group.max(initial=-1)) + 1, len(rows.item_ids))
    return sparse.csr_matrix((np.sqrt(counts), (group[keep], rows.item[keep])), shape=shape)


def _nearest(
    together: Any, scale: NDArray[np.floating], total: FloatArray, count: int
) -> tuple[IntArray, FloatArray]:
    """(n_items, count) the best partners of each item by `together` times `scale`, and that score."""
    return _best(together.row, together.col, together.data * scale, total, len(total), count)


def _best(
    row: NDArray[Any],
    col: NDArray[Any],
    score: NDArray[np.floating],
    popular: NDArray[np.floating],
    n_rows: int,
    count: int,
) -> tuple[IntArray, FloatArray]:
    """(n_rows, count) the columns with the best scores of each row, and their scores."""
    # equal scores: the more popular first, so that no order of the rows decides
    order = np.lexsort((-popular[col], -score, row))
    row, col, score = row[order], col[order], score[order]
    rank = np.arange(len(row)) - np.searchsorted(row, np.arange(n_rows))[row]
    keep = rank < count
    items = np.full((n_rows, count), -1, np.int32)
    scores = np.zeros((n_rows, count), np.float32)
    items[row[keep], rank[keep]] = col[keep]
    scores[row[keep], rank[keep]] = score[keep]
    return items, scores
