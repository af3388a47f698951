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
from serving.state import redis_pipe
from serving.state.live_trends import TrendFeed
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
    silent_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_pipe, "SILENT_S", silent_s)
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
        pipe = RedisPipe(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 0.2)
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


@pytest.fixture
def feed(settings: Settings) -> tuple[TrendFeed, list[int]]:
    """A feed that is not started, and the offsets of the changes that it tells."""
    told: list[int] = []
    return TrendFeed(settings, lambda changes: told.extend(c.offset for c in changes)), told


def test_a_reader_that_begins_again_goes_on_where_it_was(
    feed: tuple[TrendFeed, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trends, _ = feed
    monkeypatch.setattr(trends, "_load", lambda: None)
    assert trends._start_at({0: 5, 1: 7}) == {0: 5, 1: 7}, (
        "what came before the start is nobody's news"
    )
    trends._read([notice(5), notice(6)])
    assert trends._start_at({0: 20, 1: 7}) == {0: 7, 1: 7}
    assert trends._start_at({0: 3, 1: 0}) == {0: 3, 1: 0}, "a topic that was made anew"


def test_a_log_that_was_begun_anew_is_heard(
    feed: tuple[TrendFeed, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trends, told = feed
    monkeypatch.setattr(trends, "_snapshot", lambda: (TrendTable(), {}, frozenset()))
    trends._load()
    trends._read([notice(0), notice(1), notice(1)])
    assert told == [0, 1]
    trends._load()  # Redis is empty, too
    trends._read([notice(0)])
    assert told == [0, 1, 0]


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
