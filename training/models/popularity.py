"""Counts, trends and quarantine as of past moments.

The same numbers as in serving at that moment: `afterclick.trends.TrendTable` under the push-attack
limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from afterclick.quarantine import LimitedTrends, apply_limits
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.config import ReplayConfig
from training.event_log import EventLog, Votes
from training.interactions import Interactions

_DAILY_SHARE = 0.9


def popularity(rows: Interactions) -> NDArray[np.float32]:
    """(n_items,) interactions of each item."""
    return rows.item_counts().astype(np.float32)


def first_seen(rows: Interactions) -> NDArray[np.float64]:
    """(n_items,) event time of each item's first interaction, ms; NaN where it has none."""
    seen = np.full(len(rows.item_ids), np.inf)
    np.minimum.at(seen, rows.item, rows.time_ms.astype(np.float64))
    return np.where(np.isfinite(seen), seen, np.nan)


def time_resolution(rows: Interactions) -> tuple[float, float]:
    """The resolution of event times and their phase, ms: see `Model.resolution_ms`.

    A day if nine tenths of the rows are at the same time of day: midnight in most datasets, another
    one in a replay with shifted times. Live events may be among them. Else a millisecond.
    """
    time_of_day = rows.time_ms % int(DAY_MS)
    phase = float(np.median(time_of_day)) if len(rows) else 0.0
    daily = len(rows) > 0 and float((time_of_day == phase).mean()) >= _DAILY_SHARE
    return (DAY_MS, phase) if daily else (1.0, 0.0)


def decayed_popularity(
    rows: Interactions, now_ms: float, half_life_ms: float
) -> NDArray[np.float64]:
    """(n_items,) Σ weight · 2^(−age / half-life) as of `now_ms`."""
    decayed = rows.weight * np.exp2((rows.time_ms - now_ms) / half_life_ms)
    return np.asarray(np.bincount(rows.item, decayed, minlength=len(rows.item_ids)), np.float64)


def trends_at(
    log: EventLog, moments: NDArray[np.int64], known: ReplayConfig | None = None
) -> Iterator[tuple[int, LimitedTrends]]:
    """For each moment, ascending: the trends (n_items, H) of the events before it.

    `known` (default: the usual settings) limits the votes of new accounts on pushed items.
    """
    known = known or ReplayConfig()
    votes = log.votes(known.established_days)
    approved = np.flatnonzero(np.isin(log.item_ids, np.array(known.approved, np.str_)))
    for (moment, sums), (_, by_established) in zip(
        sums_at(votes, moments), sums_at(votes.of_established(), moments), strict=True
    ):
        yield moment, apply_limits(sums, by_established, known.limits, approved)


def without_pushed_rows(log: EventLog, known: ReplayConfig | None = None) -> EventLog:
    """Drop the events of new accounts on items in quarantine as of the newest event."""
    if not len(log):
        return log
    known = known or ReplayConfig()
    ((_, limited),) = trends_at(log, log.time_ms[-1:] + 1, known)
    established = log.established(known.established_days)
    return log.where(established | ~limited.quarantined[log.item])


def sums_at(votes: Votes, moments: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """For each moment, ascending: decayed sums (n_items, H) of the events before it."""
    half_lives = np.array(list(HALF_LIVES_MS.values()))
    sums = np.zeros((votes.n_items, len(half_lives)))
    start, now = 0, float(moments[0]) if len(moments) else 0.0
    for moment in np.unique(moments).tolist():
        end = int(np.searchsorted(votes.effective_ms, moment, side="left"))
        item, time = votes.item[start:end], votes.time_ms[start:end].astype(np.float64)
        sums *= np.exp2((now - moment) / half_lives)
        decayed = votes.weight[start:end, None] * np.exp2((time - moment)[:, None] / half_lives)
        for column in range(len(half_lives)):
            sums[:, column] += np.bincount(item, decayed[:, column], minlength=len(sums))
        start, now = end, float(moment)
        yield moment, sums.copy()
