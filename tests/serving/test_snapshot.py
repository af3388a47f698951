"""Badges: which items are marked as trending and as new. The present of a snapshot."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from afterclick.api import Badge
from afterclick.arrays import Float64Array
from afterclick.events import MAX_LEAD_MS, Item
from afterclick.settings import StreamSettings
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from serving.recommender import request_user
from serving.request import RecommendationRequest
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import TrendState
from serving.state.loaded_models import no_model
from serving.state.snapshot import MAX_BADGES, badges
from serving.state.snapshot_builder import SnapshotBuilder, SnapshotSources
from tests.serving.offline import Offline
from tests.waiting import wait_until

NOW = 1_700_000_000_000.0


def sums(per_hour: float, steady_per_day: float = 0.0) -> list[float]:
    """Decayed sums of a burst within the last hour on top of a steady rate."""
    return [
        per_hour + steady_per_day * half_life / DAY_MS / np.log(2.0)
        for half_life in HALF_LIVES_MS.values()
    ]


def marked(values: Float64Array, first_seen_ms: Float64Array) -> dict[int, tuple[Badge, ...]]:
    """The badges of the items that have any."""
    found = badges(values, first_seen_ms, NOW)
    return {item: found.of(item) for item in range(len(values)) if found.of(item)}


def test_a_burst_trends_and_a_steady_seller_does_not() -> None:
    values = np.array([sums(6.0), sums(0.0, 500.0), sums(1.0), sums(6.0, 500.0)])
    assert marked(values, np.full(4, np.nan)) == {0: (Badge.TRENDING,)}


def test_an_item_first_seen_this_month_is_new_and_may_trend_too() -> None:
    values = np.array([sums(6.0), sums(0.0), sums(0.0), sums(0.0)])
    seen = NOW - np.array([DAY_MS, 29 * DAY_MS, 31 * DAY_MS, np.nan])
    assert marked(values, seen) == {0: (Badge.TRENDING, Badge.NEW), 1: (Badge.NEW,)}


def test_only_the_strongest_trends_get_a_badge() -> None:
    values = np.array([sums(2.0 + n) for n in range(MAX_BADGES + 5)])
    assert sorted(marked(values, np.full(len(values), np.nan))) == list(range(5, MAX_BADGES + 5))


@pytest.mark.parametrize(
    ("ahead_ms", "present_ms"),
    [
        (-900 * DAY_MS, 0.0),  # a replay of old events
        (-1.0, 0.0),
        (60_000.0, 60_000.0),  # a producer whose clock is fast
        (0.9 * DAY_MS, MAX_LEAD_MS),  # one wrong date moves nobody's ages by a day
    ],
)
def test_the_newest_event_leads_the_clock_by_minutes_at_most(
    ahead_ms: float, present_ms: float
) -> None:
    trends = TrendState()
    trends.table.add("a", NOW - 10 * DAY_MS, 1.0)
    trends.table.add("b", NOW + ahead_ms, 1.0)
    sources = SnapshotSources(trends, Catalogue(), clock_ms=lambda: NOW)
    snapshot = SnapshotBuilder(sources, no_model()).build()
    assert snapshot.now_ms == NOW + present_ms
    assert np.isfinite(snapshot.view.log_share).all()


def test_items_that_are_added_later_are_excluded_from_garbage_collections_too() -> None:
    def collected() -> bool:
        return any(each is late for each in gc.get_objects())

    served = Offline([Item(item_id=f"i{n}") for n in range(10)])
    gc.unfreeze()
    served.snapshots.start()
    try:
        wait_until(lambda: gc.get_freeze_count() > 0, what="the first items to be frozen")
        late = Item(item_id="late")
        assert collected()
        for n in range(5):
            served.catalogue.put(Item(item_id=f"new-{n}"))
        served.catalogue.put(late)
        wait_until(lambda: not collected(), what="the new items to be frozen")
    finally:
        served.snapshots.stop(10.0)
        gc.unfreeze()


def test_a_user_state_is_as_of_the_clock_or_of_a_newer_snapshot() -> None:
    snapshot = Offline().snapshot
    request, signals = RecommendationRequest("ann", 3), StreamSettings().signals
    for now_ms in (snapshot.now_ms + 5.0, snapshot.now_ms - 5.0):
        user = request_user(request, [], snapshot, signals, now_ms)
        assert user.state.now_ms == max(now_ms, snapshot.now_ms)
