"""Items that the catalogue lacks are removed from counts and trends, and `reconcile` accepts it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from afterclick.events import Item
from afterclick.settings import Settings
from streaming.lease import NO_LEASE
from streaming.proof.reconcile import reconcile
from streaming.unknown_items import read_catalogue_ids, remove_unknown_items
from tests.serving.shop import publish_items
from tests.streaming.builders import START_S, event
from tests.streaming.stream_process import produce
from tests.streaming.topic_log import apply_log

NOW_S = time.time() - START_S


def remove(settings: Settings, client: redis.Redis) -> int:
    return remove_unknown_items(settings, client, NO_LEASE, read_catalogue_ids(settings))


def counted(settings: Settings, client: redis.Redis) -> set[str]:
    """The items that any partition of `feedback` has counted."""
    keys, topic = settings.redis.keys, settings.kafka.topics.feedback
    parts: list[Any] = [
        client.hgetall(keys.counts(topic, n)) for n in range(settings.kafka.partitions)
    ]
    trends: list[Any] = [
        client.hgetall(keys.trends(topic, n)) for n in range(settings.kafka.partitions)
    ]
    assert {i for part in parts for i in part} == {i for part in trends for i in part}
    return {item.decode() for part in parts for item in part}


@pytest.mark.parametrize("allowed", [False, True], ids=["removed", "control: allowed"])
def test_old_unknown_items_are_removed_and_reconcile_agrees(
    settings: Settings, client: redis.Redis, allowed: bool
) -> None:
    serving = settings.serving.model_copy(update={"unknown_items": allowed})
    settings = settings.model_copy(update={"serving": serving})
    liked = [("camera", 0.0), ("pills", 0.0), ("pills", 1.0), ("new-pills", NOW_S)]
    produce(settings, [event("ann", item, "like", at=at) for item, at in liked], "feedback")
    apply_log(settings)
    assert remove(settings, client) == 0, "without a catalogue every item stays"
    publish_items(settings, [Item(item_id="camera")])
    assert remove(settings, client) == (0 if allowed else 1)
    kept = {"camera", "new-pills"} | ({"pills"} if allowed else set())
    assert counted(settings, client) == kept
    report = reconcile(settings)
    assert (report.differences, report.lost) == (0, 0)
    assert report.removed_items == (0 if allowed else 1)

    produce(settings, [event("ann", "pills", "like", at=NOW_S)], "feedback")
    apply_log(settings)
    publish_items(settings, [Item(item_id="pills")])
    assert reconcile(settings).differences == 0, "an item that returns, and becomes known"
    for partition in range(settings.kafka.partitions):
        counts = settings.redis.keys.counts(settings.kafka.topics.feedback, partition)
        client.hdel(counts, "camera")
    assert reconcile(settings).lost == 1, "counts of other items are compared as before"


def test_the_number_of_unknown_items_is_bounded(settings: Settings, client: redis.Redis) -> None:
    stream = settings.stream.model_copy(update={"max_unknown_items": 3})
    bounded = settings.model_copy(update={"stream": stream})
    made_up = [event("ann", f"pills-{n}", at=NOW_S - 20 + n) for n in range(10)]
    produce(bounded, [event("ann", "camera"), *made_up], "feedback")
    apply_log(bounded)
    publish_items(bounded, [Item(item_id="camera")])
    assert remove(settings, client) == 0, "the control: the bound of the defaults"
    assert remove(bounded, client) == 7
    assert counted(bounded, client) == {"camera", "pills-7", "pills-8", "pills-9"}
    assert reconcile(bounded).differences == 0


@pytest.mark.parametrize(("changed", "removed"), [(True, 0), (False, 1)])
def test_an_event_that_arrives_meanwhile_keeps_its_item(
    settings: Settings, client: redis.Redis, changed: bool, removed: int
) -> None:
    keys, partition = settings.redis.keys, (settings.kafka.topics.feedback, 0)
    names = (keys.counts(*partition), keys.uniques(*partition), keys.trends(*partition))
    client.hset(names[2], "pills", b"newer" if changed else b"read")
    ratings = keys.ratings(*partition)
    client.hset(ratings, "pills", b"1 5 1 0")
    found = client.fcall("afterclick_remove_items", 5, *names, "", ratings, "", "pills", b"read")
    assert found == removed
    assert client.hexists(names[2], "pills") is changed
    assert client.hexists(ratings, "pills") is changed
