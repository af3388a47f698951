"""Stars decide what is popular, trending, similar and shown to newcomers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from afterclick.events import Action, InteractionEvent, Item
from afterclick.settings import StreamSettings
from afterclick.signals import STARS, Signals
from afterclick.state import StateChange
from serving.state.snapshot import PRIOR_RATINGS, ServingSnapshot, rating_factor
from streaming.apply import Applier
from streaming.connection import NodeConnection, load_functions
from streaming.records import Record
from tests.serving.offline import Offline
from tests.streaming.builders import START_S, apply_config, event, log_of
from training.config import NeighbourConfig
from training.event_log import EventLog
from training.interactions import Interactions
from training.models.neighbours import cosine_neighbours

ITEMS = [Item(item_id=item_id, title=item_id) for item_id in ("bad", "good", "liked", "mixed")]
DEFAULT = StreamSettings().signals
UNRATED = Signals(DEFAULT.actions, dict.fromkeys(STARS, DEFAULT.actions[Action.REVIEW]))
"""The control: every review weighs the same."""


@pytest.fixture(scope="module")
def functions(redis_url: str) -> Iterator[str]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        yield redis_url


def reviews(item: str, ratings: list[float]) -> list[InteractionEvent]:
    """A review of a new user for each rating, within the last minutes."""
    now = time.time() - START_S - 600
    return [
        event(f"{item}-{n}", item, "review", at=now + n, rating=rating)
        for n, rating in enumerate(ratings)
    ]


def shop() -> list[InteractionEvent]:
    """200 reviews with one star, 20 with five, 25 with both, and 15 likes."""
    now = time.time() - START_S - 600
    likes = [event(f"liked-{n}", "liked", "like", at=now + n) for n in range(15)]
    bad, good = reviews("bad", [1.0] * 200), reviews("good", [5.0] * 20)
    return [*bad, *good, *reviews("mixed", [5.0] * 18 + [1.0] * 7), *likes]


def served(url: str, signals: Signals, events: list[InteractionEvent]) -> Offline:
    """The recommender behind a stream that has applied the events."""
    config = apply_config(url, signals=signals)
    log: list[Record] = log_of(events, log_ms=time.time() * 1000)
    offline = Offline(ITEMS, [0] * len(ITEMS))
    for output in Applier(config, NodeConnection(url)).apply("reviews", 0, log):
        offline.feed.table.apply(StateChange.decode(output.value or b""))
    offline.snapshots.current = offline.snapshots.build()
    return offline


def popular(snapshot: ServingSnapshot) -> list[str]:
    return [snapshot.ids[item] for item in snapshot.most_popular(None, 10, None)[0].tolist()]


def trending(snapshot: ServingSnapshot) -> list[str]:
    return [snapshot.ids[item] for item in snapshot.trending.tolist()]


def test_an_item_with_one_star_reviews_is_neither_popular_nor_trending_nor_recommended(
    functions: str,
) -> None:
    """Control: without stars it is first everywhere."""
    before = served(functions, UNRATED, shop())
    assert [popular(before.snapshot)[0], trending(before.snapshot)[0], before.ids("new")[0]] == (
        ["bad"] * 3
    )
    after = served(functions, DEFAULT, shop())
    assert popular(after.snapshot) == ["good", "mixed", "liked"]
    assert "bad" not in trending(after.snapshot)
    assert "bad" not in after.ids("new", 3)


def test_counts_stay_exact_beside_the_stars(functions: str) -> None:
    again = reviews("bad", [4.0] * 3)  # three users change their mind
    snapshot = served(functions, DEFAULT, [*shop(), *_later(again)]).snapshot
    bad, liked = snapshot.find("bad"), snapshot.find("liked")
    assert bad is not None
    assert liked is not None
    assert snapshot.interactions_of(bad) == (203, 3)
    assert snapshot.ratings_of(bad) == {"count": 200, "mean": round((197 + 12) / 200, 2)}
    assert snapshot.interactions_of(liked) == (15, 15)
    assert snapshot.ratings_of(liked) is None


def _later(events: list[InteractionEvent]) -> list[InteractionEvent]:
    at = time.time() - START_S - 60
    return [
        event(one.data.user_id, one.data.item_id, "review", at=at, rating=one.data.rating)
        for one in events
    ]


def test_items_without_stars_are_ordered_by_their_interactions_only() -> None:
    unrated = np.zeros((3, 4), np.int32)
    assert rating_factor(unrated).tolist() == [1.0, 1.0, 1.0]
    some = np.array([[0, 0, 0, 0], [100, 450, 90, 10], [100, 150, 10, 90], [1, 1, 0, 1]], np.int32)
    factor = rating_factor(some)
    prior = 100 / 201
    assert factor[0] == pytest.approx(1.0)
    assert factor[1] == pytest.approx((90 + PRIOR_RATINGS * prior) / 110 / prior)
    assert factor[2] < factor[3] < 1.0 < factor[1]  # one bad rating says little


@pytest.mark.parametrize(("signals", "similar"), [(UNRATED, True), (DEFAULT, False)])
def test_items_that_the_same_users_dislike_are_not_similar(signals: Signals, similar: bool) -> None:
    """In training, with the control that every review weighs the same."""
    users, stars = 40, np.tile(np.array([5, 1], np.int8), 40)
    rating = np.array([signals.stars[n] for n in stars.tolist()], np.float32)
    rows = Interactions(
        user_ids=np.array([f"u{n:02}" for n in range(users)]),
        item_ids=np.array(["bad", "good"]),
        user=np.repeat(np.arange(users, dtype=np.int32), 2),
        item=np.tile(np.array([1, 0], np.int32), users),
        time_ms=np.arange(2 * users) * 1000,
        weight=rating,
    )
    pairs = EventLog.of(rows, stars=stars).pairs()
    items, _ = cosine_neighbours(pairs, NeighbourConfig())
    assert (0 in items[1].tolist()) is similar
