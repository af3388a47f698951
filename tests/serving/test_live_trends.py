"""Trends are reloaded from Redis without a lost, repeated or delayed push."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from confluent_kafka import Producer
from structlog.testing import capture_logs
from websockets.sync.client import connect

from afterclick.events import Action, FeedbackEvent, Interaction, encode, now
from afterclick.io.kafka_clients import python_admin
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import Effect, LogPosition, StateChange
from afterclick.trends import TrendTable
from infra.embedded.kafka import ensure_topics
from serving.state.live_trends import StoredTrends, TrendFeed, read_trends
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, received
from tests.waiting import PATIENCE_S, wait_until


def counted(api: Running, item_id: str) -> int:
    feed = api.service.feed
    with feed.lock:
        row = feed.table.find(item_id)
        return 0 if row is None else int(feed.table.counts[row])


def reached(settings: Settings, position: LogPosition) -> int:
    """The offset up to which Redis has the counts of a partition."""
    with redis.Redis.from_url(settings.redis.url) as client:
        return int(
            client.get(settings.redis.keys.applied_offset(position.topic, position.partition)) or -1
        )


@pytest.mark.parametrize(
    "pushed", [True, False], ids=["pushed", "control: events in the snapshot are not pushed"]
)
def test_a_like_that_the_snapshot_contains_is_pushed(
    settings: Settings, shop_api: Running, pushed: bool
) -> None:
    feed, gate = shop_api.service.feed, threading.Event()
    read = feed.reader.handle

    def held_back(messages: Any) -> None:
        assert gate.wait(PATIENCE_S)
        read(messages)

    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol") as socket:
        received(socket)
        feed.reader.handle = held_back
        liked = LogPosition.parse(shop_api.feedback("carol", "cable-7", event_id="first"))
        wait_until(lambda: reached(settings, liked) >= liked.offset)
        feed.reload()
        assert counted(shop_api, "cable-7") == 1
        if not pushed:
            feed._forwarded.update(feed.positions)
        gate.set()
        if not pushed:
            shop_api.feedback("carol", "cable-1", event_id="second")
        assert received(socket)["cause"]["event_id"] == ("first" if pushed else "second")
    assert counted(shop_api, "cable-7") == 1


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "control: dropped"])
def test_changes_are_applied_while_the_snapshot_is_read(shop_api: Running, kept: bool) -> None:
    feed = shop_api.service.feed
    read, reading, resume = feed.read, threading.Event(), threading.Event()

    def slow() -> Any:
        found = read()
        reading.set()
        assert resume.wait(PATIENCE_S)
        return found

    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol") as socket:
        received(socket)
        feed.read = slow
        feed.loaded_at = None
        assert reading.wait(PATIENCE_S)
        shop_api.feedback("carol", "cable-7", event_id="during-the-read")
        assert received(socket)["cause"]["event_id"] == "during-the-read"
        assert counted(shop_api, "cable-7") == 1
        if not kept:
            feed._pending = None
        resume.set()
        wait_until(lambda: feed.loaded)
        assert counted(shop_api, "cable-7") == int(kept)
        assert feed.gap_at is None


def change(offset: int, user_id: str = "bob") -> StateChange:
    facts: Mapping[str, Any] = {
        "action": "like",
        "time_ms": 1,
        "weight": 1.0,
        "first_user_item": True,
    }
    stamps = {"log_ms": 1.0, "read_ms": 1.0, "applied_ms": 1.0}
    where: Mapping[str, Any] = {"topic": "feedback", "partition": 0, "offset": offset}
    return StateChange(
        user_id=user_id,
        item_id=f"i{offset}",
        event_id=f"e{offset}",
        effect=Effect.APPLIED,
        **facts,
        **stamps,
        **where,
    )


def change_record(offset: int) -> Any:
    """A record of the state-changes topic whose event has the same offset."""
    return SimpleNamespace(value=change(offset).encode, offset=lambda: offset, partition=lambda: 0)


def a_feed(settings: Settings, forwarded: list[int]) -> TrendFeed:
    """A feed over an empty Redis, not started; appends the offsets of forwarded changes."""
    return TrendFeed(
        settings,
        lambda changes: forwarded.extend(change.offset for change in changes),
        read=lambda: StoredTrends(TrendTable(), {}, frozenset()),
    )


def test_a_restarted_reader_continues_where_it_stopped(settings: Settings) -> None:
    feed = a_feed(settings, [])
    assert feed.start_offsets({0: 5, 1: 7}) == {0: 5, 1: 7}, "earlier changes are not forwarded"
    feed.on_records([change_record(5), change_record(6)])
    assert feed.start_offsets({0: 20, 1: 7}) == {0: 7, 1: 7}
    assert feed.start_offsets({0: 3, 1: 0}) == {0: 3, 1: 0}, "a recreated topic"
    assert feed.start_offsets({0: 3, 1: 0, 2: 4}) == {0: 3, 1: 0, 2: 0}, "an added partition"


def test_partitions_added_while_the_api_runs_are_read(settings: Settings, api: Running) -> None:
    kafka, topics = settings.kafka, settings.kafka.topics
    altered = (*topics.interactions, topics.state_changes)
    with KafkaLog(kafka) as log, python_admin(kafka) as admin:
        before = log.partitions(*topics.interactions)
        admin.create_partitions(dict.fromkeys(altered, 4))
        wait_until(lambda: len(log.partitions(*altered)) == 12)
    with MiniStream(settings), connect(f"{api.ws}/ws/recommendations?user_id=carol") as socket:
        received(socket)
        liked = FeedbackEvent(
            id="like",
            source="test",
            time=now(),
            subject="carol",
            data=Interaction(user_id="carol", item_id="cable-7", action=Action.LIKE),
        )
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        producer.produce(topics.feedback, encode(liked), "carol", partition=3)
        producer.flush(PATIENCE_S)
        assert received(socket)["cause"]["event_id"] == "like"
    api.service.feed.reload()
    assert counted(api, "cable-7") == 1
    assert len(api.figures()["positions"]) == 1
    with_the_setting = read_trends(settings, before)
    assert with_the_setting.table.find("cable-7") is None, "control: only the partitions of before"
    with capture_logs() as logs:
        assert ensure_topics(settings) == []
    differing = {line["topic"]: (line["partitions"], line["setting"]) for line in logs}
    assert differing == dict.fromkeys(altered, (4, 2))


def test_changes_of_a_recreated_log_are_forwarded(settings: Settings) -> None:
    forwarded: list[int] = []
    feed = a_feed(settings, forwarded)
    feed.reload()
    feed.on_records([change_record(0), change_record(1), change_record(1)])
    assert forwarded == [0, 1]
    feed.reload()  # Redis is empty
    feed.on_records([change_record(0)])
    assert forwarded == [0, 1, 0]
