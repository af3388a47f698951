"""Counts, trends and quarantine of interactions as of past moments.

The same numbers as in serving at that moment: `afterclick.trends.TrendTable` under the push-attack
limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from afterclick.quarantine import ESTABLISHED_DAYS, LimitedTrends, QuarantineLimits, apply_limits
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.interactions import Interactions


def popularity(rows: Interactions) -> NDArray[np.float32]:
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
    decayed = rows.weight * np.exp2((rows.time_ms - now_ms) / half_life_ms)
    return np.asarray(np.bincount(rows.item, decayed, minlength=len(rows.item_ids)), np.float64)


def trends_at(
    rows: Interactions, moments: NDArray[np.int64], limits: QuarantineLimits | None = None
) -> Iterator[tuple[int, LimitedTrends, NDArray[np.float64]]]:
    """For each moment, ascending: the trends (n_items, H) and first_seen (n_items,) of the rows
    before it.

    `limits` (default: the usual ones) hold back the votes of new accounts on pushed items.
    """
    established_rows = rows.where(established(rows))
    for (moment, votes, seen), (_, established_votes, _) in zip(
        sums_at(rows, moments), sums_at(established_rows, moments), strict=True
    ):
        yield moment, apply_limits(votes, established_votes, limits or QuarantineLimits()), seen


def established(rows: Interactions) -> NDArray[np.bool_]:
    """(n,) rows of users whose first interaction was ESTABLISHED_DAYS or more before."""
    since = np.full(len(rows.user_ids), np.iinfo(np.int64).max)
    np.minimum.at(since, rows.user, rows.time_ms)
    return np.asarray(rows.time_ms - since[rows.user] >= ESTABLISHED_DAYS * DAY_MS)


def without_pushed_rows(rows: Interactions, limits: QuarantineLimits | None = None) -> Interactions:
    """Drop the rows of new accounts on items in quarantine as of the newest row."""
    if not len(rows):
        return rows
    old = established(rows)
    now = rows.time_ms[-1:] + 1
    (_, votes, _), (_, established_votes, _) = *sums_at(rows, now), *sums_at(rows.where(old), now)
    quarantined = apply_limits(votes, established_votes, limits or QuarantineLimits()).quarantined
    return rows.where(old | ~quarantined[rows.item])


def sums_at(
    rows: Interactions, moments: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """For each moment, ascending: decayed sums (n_items, H), first_seen (n_items,) of the rows
    before it."""
    half_lives = np.array(list(HALF_LIVES_MS.values()))
    sums = np.zeros((len(rows.item_ids), len(half_lives)))
    seen = np.full(len(rows.item_ids), np.inf)
    start, now = 0, float(moments[0]) if len(moments) else 0.0
    for moment in np.unique(moments).tolist():
        end = int(np.searchsorted(rows.time_ms, moment, side="left"))
        item, time = rows.item[start:end], rows.time_ms[start:end].astype(np.float64)
        sums *= np.exp2((now - moment) / half_lives)
        decayed = rows.weight[start:end, None] * np.exp2((time - moment)[:, None] / half_lives)
        for column in range(len(half_lives)):
            sums[:, column] += np.bincount(item, decayed[:, column], minlength=len(sums))
        np.minimum.at(seen, item, time)
        start, now = end, float(moment)
        yield moment, sums.copy(), np.where(np.isfinite(seen), seen, np.nan)
