"""What failed once, or lacked something, is looked at again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from confluent_kafka import KafkaError, KafkaException, Producer
from websockets.sync.client import connect

from afterclick.api import Tier
from afterclick.errors import Unavailable
from afterclick.settings import Settings
from afterclick.state import Effect, StateChange
from afterclick.trends import TrendTable
from infra.embedded.valkey import ValkeyServer
from serving.events.impressions import ImpressionLog
from serving.response_cache import Recommendation, RenderedList
from serving.service import ServingTimings
from serving.state.live_trends import StoredTrends, TrendFeed
from serving.state.redis_pipe import RedisPipe
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, received
from tests.serving.test_loop import after
from tests.waiting import PATIENCE_S, wait_until

NEVER_S = 10 * PATIENCE_S


@pytest.mark.parametrize("again", [True, False], ids=["again", "control: at the next deed"])
def test_a_list_made_without_the_history_is_pushed_again_once_it_can_be_whole(
    settings: Settings, own_redis: ValkeyServer, again: bool
) -> None:
    timings = ServingTimings(push_retry_s=0.2 if again else NEVER_S)
    redis = settings.redis.model_copy(update={"url": own_redis.address, "timeout_s": 1.0})
    settings = settings.model_copy(update={"redis": redis})
    with Running(settings, timings=timings) as api, MiniStream(settings):
        api.ready()
        after(api, "bob", api.tell("bob", "camera-1"))
        own_redis.process.suspend()
        with connect(f"{api.ws}/ws/recommendations?user_id=bob") as socket:
            try:
                assert received(socket)["degraded"] is True
            finally:
                own_redis.process.resume()
            wait_until(lambda: not api.list_for("bob")["degraded"])
            if not again:
                api.tell("bob", "camera-2")
            whole = received(socket)
            assert (whole["cause"] is None) is again
            assert again is False or whole["degraded"] is False


@pytest.mark.parametrize("again", [True, False], ids=["again", "control: at the next deed"])
def test_who_watches_from_before_the_first_model_gets_its_list(
    settings: Settings, stream: MiniStream, again: bool
) -> None:
    timings = ServingTimings(push_retry_s=0.2 if again else NEVER_S)
    with Running(settings, timings=timings) as api:
        api.ready()
        with connect(f"{api.ws}/ws/recommendations?user_id=bob") as socket:
            assert received(socket)["model_version"] is None
            shop.publish_items(settings, shop.catalogue())
            shop.publish(settings, *shop.write(settings, "m1"))
            wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
            if not again:
                api.tell("bob", "camera-2")
            modelled = received(socket)
            assert modelled["model_version"] == "m1"
            assert (modelled["cause"] is None) is again


@pytest.mark.parametrize(
    "silent_s", [0.3, NEVER_S], ids=["another connection", "control: the same one"]
)
def test_a_peer_that_has_gone_without_a_word_is_left(
    silent_s: float,
) -> None:
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        silent = connections == 1
        while await reader.read(1000):
            if not silent:
                writer.write(b"+HERE\r\n")
        writer.close()

    async def main() -> int:
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        pipe = RedisPipe(url, 0.2, silent_s)
        answered = 0
        for _ in range(8):
            try:
                answered += await pipe.call("PING") == b"HERE"
            except Unavailable:
                continue
        await pipe.close()
        server.close()
        return answered

    answered = uvloop.run(main())
    assert (connections > 1) is (silent_s < 1)
    assert (answered > 0) is (silent_s < 1)


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


def notice(offset: int) -> Any:
    """A record of the state-changes topic, of the event at the same offset of its own."""
    return SimpleNamespace(value=change(offset).encode, offset=lambda: offset, partition=lambda: 0)


def a_feed(settings: Settings, forwarded: list[int]) -> TrendFeed:
    """A feed that is not started, over an empty Redis; appends the offsets of forwarded changes."""
    return TrendFeed(
        settings,
        lambda changes: forwarded.extend(change.offset for change in changes),
        read=lambda: StoredTrends(TrendTable(), {}, frozenset()),
    )


def test_a_restarted_reader_continues_where_it_stopped(settings: Settings) -> None:
    feed = a_feed(settings, [])
    assert feed.start_offsets({0: 5, 1: 7}) == {0: 5, 1: 7}, "earlier changes are not forwarded"
    feed.on_records([notice(5), notice(6)])
    assert feed.start_offsets({0: 20, 1: 7}) == {0: 7, 1: 7}
    assert feed.start_offsets({0: 3, 1: 0}) == {0: 3, 1: 0}, "a recreated topic"


def test_changes_of_a_recreated_log_are_forwarded(settings: Settings) -> None:
    forwarded: list[int] = []
    feed = a_feed(settings, forwarded)
    feed.reload()
    feed.on_records([notice(0), notice(1), notice(1)])
    assert forwarded == [0, 1]
    feed.reload()  # Redis is empty, too
    feed.on_records([notice(0)])
    assert forwarded == [0, 1, 0]


class ProducerWithoutTopic:
    """A producer that knows from the metadata that the topic does not exist."""

    def produce(self, *_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))


def test_an_impression_without_a_topic_is_dropped_and_fails_nothing(settings: Settings) -> None:
    impressions = ImpressionLog(settings.kafka, cast(Producer, ProducerWithoutTopic()))
    body = {"impression_id": "x", "user_id": "bob", "model_version": "m1", "source": "trending"}
    shown = RenderedList(Tier.TRENDING, b"[]", b"[]", 0)
    impressions.append(Recommendation(body, shown, "blend"))
    assert impressions.dropped == 1
