"""Badges: which items are marked as trending and as new."""

from __future__ import annotations

import numpy as np

from afterclick.api import Badge
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from serving.state.snapshot import MAX_BADGES, badges

NOW = 1_700_000_000_000.0


def sums(per_hour: float, steady_per_day: float = 0.0) -> list[float]:
    """Decayed sums of a burst within the last hour on top of a steady rate."""
    return [
        per_hour + steady_per_day * half_life / DAY_MS / np.log(2.0)
        for half_life in HALF_LIVES_MS.values()
    ]


def test_a_burst_trends_and_a_steady_seller_does_not() -> None:
    values = np.array([sums(6.0), sums(0.0, 500.0), sums(1.0), sums(6.0, 500.0)])
    assert badges(values, np.full(4, np.nan), NOW) == {0: (Badge.TRENDING,)}


def test_an_item_first_seen_this_month_is_new_and_may_trend_too() -> None:
    values = np.array([sums(6.0), sums(0.0), sums(0.0), sums(0.0)])
    seen = NOW - np.array([DAY_MS, 29 * DAY_MS, 31 * DAY_MS, np.nan])
    assert badges(values, seen, NOW) == {0: (Badge.TRENDING, Badge.NEW), 1: (Badge.NEW,)}


def test_only_the_strongest_trends_get_a_badge() -> None:
    values = np.array([sums(2.0 + n) for n in range(MAX_BADGES + 5)])
    assert sorted(badges(values, np.full(len(values), np.nan), NOW)) == list(
        range(5, MAX_BADGES + 5)
    )
