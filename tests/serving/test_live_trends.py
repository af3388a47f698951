"""Trends are read again from Redis now and then; nobody who watches a list notices."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis
from websockets.sync.client import connect

from afterclick.settings import Settings
from afterclick.state import LogPosition
from tests.serving.running import Running, received
from tests.waiting import PATIENCE_S, wait_until


def counted(api: Running, item_id: str) -> int:
    feed = api.service.feed
    with feed.lock:
        row = feed.table.find(item_id)
        return 0 if row is None else int(feed.table.counts[row])


def reached(settings: Settings, told: LogPosition) -> int:
    """The offset up to which Redis has the counts of a partition."""
    with redis.Redis.from_url(settings.redis.url) as client:
        return int(client.get(settings.redis.keys.applied_offset(told.topic, told.partition)) or -1)


@pytest.mark.parametrize(
    "heard", [True, False], ids=["heard", "control: what Redis had is no news"]
)
def test_a_like_that_was_read_with_the_snapshot_is_pushed(
    settings: Settings, shop_api: Running, heard: bool
) -> None:
    feed, gate = shop_api.service.feed, threading.Event()
    read = feed.reader.handle

    def held_back(messages: Any) -> None:
        assert gate.wait(PATIENCE_S)
        read(messages)

    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol") as socket:
        received(socket)
        feed.reader.handle = held_back
        told = LogPosition.parse(shop_api.tell("carol", "cable-7", event_id="first"))
        wait_until(lambda: reached(settings, told) >= told.offset)
        feed.reload()
        assert counted(shop_api, "cable-7") == 1
        if not heard:
            feed._forwarded.update(feed.positions)
        gate.set()
        if not heard:
            shop_api.tell("carol", "cable-1", event_id="second")
        assert received(socket)["cause"]["event_id"] == ("first" if heard else "second")
    assert counted(shop_api, "cable-7") == 1


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "control: forgotten"])
def test_changes_go_on_while_the_snapshot_is_read(shop_api: Running, kept: bool) -> None:
    feed = shop_api.service.feed
    read, reading, goes_on = feed.read, threading.Event(), threading.Event()

    def slow() -> Any:
        found = read()
        reading.set()
        assert goes_on.wait(PATIENCE_S)
        return found

    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol") as socket:
        received(socket)
        feed.read = slow
        feed.loaded_at = None
        assert reading.wait(PATIENCE_S)
        shop_api.tell("carol", "cable-7", event_id="meanwhile")
        assert received(socket)["cause"]["event_id"] == "meanwhile", "nobody waits for the snapshot"
        assert counted(shop_api, "cable-7") == 1
        if not kept:
            feed._pending = None
        goes_on.set()
        wait_until(lambda: feed.loaded)
        assert counted(shop_api, "cable-7") == int(kept)
        assert feed.gap_at is None
