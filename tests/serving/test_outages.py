"""Outages of Redis and Kafka, damaged models: reported, and recovered from without a restart."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import httpx2
import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from afterclick.api import Tier
from afterclick.settings import Settings
from infra.embedded.kafka import KafkaServer, ensure_topics
from infra.embedded.server import ValkeyServer
from serving.events.feedback import AckTimeouts
from serving.events.impressions import ImpressionLog
from serving.response_cache import Recommendation, RenderedList
from serving.service import ServingTimings
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, after, installation, kinds
from tests.waiting import PATIENCE_S, wait_until

NEVER_S = 10 * PATIENCE_S
# the Redis timeout of a request, where a test stops Redis
SHORT_S = 1.0
STALL_S = 0.4


def source_of(body: dict[str, Any]) -> tuple[str, bool]:
    return body["source"], body["degraded"]


def test_without_redis_lists_are_served_as_degraded(
    broker: str, own_redis: ValkeyServer, tmp_path: Path
) -> None:
    settings = installation(broker, own_redis.address, tmp_path, SHORT_S)
    ensure_topics(settings)
    with Running(settings) as api, MiniStream(settings):
        api.ready()
        shop.publish_items(settings, shop.catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        after(api, "bob", api.feedback("bob", "camera-1"))
        wait_until(lambda: source_of(api.list_for("bob")) == ("personalised", False))

        own_redis.kill()
        took: list[float] = []
        for _ in range(30):
            began = time.perf_counter()
            body = api.list_for("bob")
            took.append(time.perf_counter() - began)
            assert body["degraded"] is True
            assert body["items"]
        assert median(took) < 2 * SHORT_S
        assert api.get("/users/bob/history")["degraded"] is True
        assert api.list_for("bob", interests="Cables")["source"] == "interests"
        api.feedback("bob", "cable-1")  # feedback needs only Kafka

        own_redis.start()
        wait_until(lambda: api.list_for("bob")["degraded"] is False)
        wait_until(lambda: kinds(api.list_for("bob", n=60)) == {"camera", "cable"})


def test_a_request_waits_for_a_paused_redis_up_to_the_timeout(
    broker: str, own_redis: ValkeyServer, tmp_path: Path
) -> None:
    settings = installation(broker, own_redis.address, tmp_path, SHORT_S)
    ensure_topics(settings)
    with Running(settings) as api:
        api.ready()
        own_redis.process.suspend()
        try:
            began = time.perf_counter()
            assert api.list_for("bob")["degraded"] is True
            assert time.perf_counter() - began < PATIENCE_S / 3, "no timeout"
        finally:
            own_redis.process.resume()
        wait_until(lambda: api.list_for("bob")["degraded"] is False)


def test_without_kafka_feedback_is_rejected_with_retry_after(
    own_broker: KafkaServer, redis_url: str, tmp_path: Path
) -> None:
    # longer than the client waits: only the lost connection can cause the response
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S))
    settings = installation(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=timings) as api, MiniStream(settings):
        api.ready()
        after(api, "bob", api.feedback("bob", "camera-1"))

        own_broker.kill()
        body = {"user_id": "bob", "item_id": "camera-2", "action": "like", "event_id": "try-again"}
        response = api.http.post("/feedback", json=body)
        assert response.status_code == 503, response.text
        assert response.headers["retry-after"] == "1"
        assert "try-again" in response.json()["detail"]
        assert api.list_for("bob")["degraded"] is False
        for _ in range(2):
            assert api.http.post("/feedback", json=body).status_code == 503
        assert api.service.feedback.health.down
        sent = api.service.feedback.sent
        assert api.http.post("/feedback", json=body).status_code == 503
        assert api.service.feedback.sent == sent, "feedback was sent to a Kafka known to be down"

        own_broker.start()
        wait_until(
            lambda: not api.service.feedback.health.down,
            what="the API detects that Kafka is back",
        )
        wait_until(lambda: api.http.post("/feedback", json=body).status_code == 202)
        wait_until(lambda: len(api.get("/users/bob/history")["events"]) == 2)


@pytest.mark.parametrize("probes", [True, False], ids=["probe", "control: no probe"])
def test_a_paused_kafka_is_detected_before_the_ack_timeout(
    own_broker: KafkaServer,
    redis_url: str,
    tmp_path: Path,
    probes: bool,
) -> None:
    doubt_s = AckTimeouts.doubt_s if probes else NEVER_S
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S, doubt_s=doubt_s))
    settings = installation(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=timings) as api:
        api.ready()
        api.feedback("bob", "camera-1")
        body = {"user_id": "bob", "item_id": "camera-2", "action": "like", "event_id": "try-again"}
        own_broker.process.suspend()
        try:
            if probes:
                assert api.http.post("/feedback", json=body).status_code == 503
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    api.http.post("/feedback", json=body, timeout=3)
        finally:
            own_broker.process.resume()
        wait_until(
            lambda: not api.service.feedback.health.down,
            what="the API detects that Kafka responds",
        )
        wait_until(lambda: api.http.post("/feedback", json=body).status_code == 202)


# ten times the default, so that a busy machine does not exceed it
@pytest.mark.parametrize(
    "usual_s", [10 * AckTimeouts.usual_s, 0.0], ids=["tolerant", "control: no tolerance"]
)
def test_a_new_process_tolerates_a_short_stall_of_kafka(
    own_broker: KafkaServer,
    redis_url: str,
    tmp_path: Path,
    usual_s: float,
) -> None:
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S, usual_s=usual_s))
    resume = threading.Timer(STALL_S, own_broker.process.resume)
    settings = installation(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=timings) as api:
        api.ready()
        own_broker.process.suspend()
        if usual_s:
            resume.start()
        try:
            body = {"user_id": "bob", "item_id": "camera-1", "action": "like"}
            response = api.http.post("/feedback", json=body)
        finally:
            if usual_s:
                resume.join()
            else:
                own_broker.process.resume()
        assert response.status_code == (202 if usual_s else 503)


def test_the_api_starts_before_kafka_and_redis(own_broker: KafkaServer, tmp_path: Path) -> None:
    redis = ValkeyServer(tmp_path / "late")
    settings = installation(own_broker.address, redis.address, tmp_path)
    own_broker.kill()
    with Running(settings) as api:
        body = api.list_for("bob")
        assert body["degraded"] is True
        assert api.http.get("/health/live").status_code == 200
        assert api.http.get("/health/ready").status_code == 503
        redis.start()
        own_broker.start()
        ensure_topics(settings)
        try:
            with MiniStream(settings):
                wait_until(lambda: api.http.get("/health/ready").status_code == 200)
                wait_until(
                    lambda: not api.service.feedback.health.down,
                    what="the API detects Kafka",
                )
                after(api, "bob", api.feedback("bob", "camera-1"))
        finally:
            redis.kill()


def test_no_request_fails_while_models_are_swapped(shop_api: Running, settings: Settings) -> None:
    after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))
    versions: list[str] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            response = shop_api.http.get("/recommendations", params={"user_id": "bob"})
            if response.status_code != 200 or not response.json()["items"]:
                failures.append(response.text)
            versions.append(orjson.loads(response.content)["model_version"])

    def served(version: str) -> bool:
        return versions[-1:] == [version]

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2, 8):
            shop.publish(settings, *shop.write(settings, f"m{number}"))
            wait_until(partial(served, f"m{number}"))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert list(dict.fromkeys(versions)) == [f"m{i}" for i in range(1, 8)]


def test_a_damaged_model_is_rejected_and_the_previous_one_serves(
    shop_api: Running, settings: Settings
) -> None:
    folder, sha256 = shop.write(settings, "broken")
    path = folder / "als_item_factors.npy"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    shop.publish(settings, folder, sha256)
    wait_until(lambda: "broken" in shop_api.service.models.rejected)
    assert shop_api.list_for("bob")["model_version"] == "m1"
    shop.publish(settings, *shop.write(settings, "repaired"))
    wait_until(lambda: shop_api.list_for("bob")["model_version"] == "repaired")


def test_a_starting_api_loads_the_newest_model(shop_api: Running, settings: Settings) -> None:
    shop.publish(settings, *shop.write(settings, "m2"))
    with Running(settings) as second:
        wait_until(lambda: second.list_for("bob")["model_version"] == "m2")
        assert second.list_for("bob")["items"]


def test_trends_survive_a_restart_and_agree_with_redis(
    shop_api: Running, settings: Settings
) -> None:
    for user in range(5):
        position = shop_api.feedback(f"u{user}", "camera-5", "purchase")
        after(shop_api, f"u{user}", position)
    with Running(settings) as second:
        second.ready()
        wait_until(lambda: second.get("/popular", n=1)["items"])
        ours = second.service.feed.table
        theirs = shop_api.service.feed.table
        row, other = ours.find("camera-5"), theirs.find("camera-5")
        assert row is not None
        assert other is not None
        assert ours.counts[row] == theirs.counts[other] == 5
        now = max(ours.newest_ms, theirs.newest_ms)
        assert abs(ours.values(now)[row] - theirs.values(now)[other]).max() < 1e-9


class ProducerWithoutTopic:
    """A producer that knows from the metadata that the topic does not exist."""

    def produce(self, *_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))


def test_an_impression_without_a_topic_is_dropped_without_an_error(settings: Settings) -> None:
    impressions = ImpressionLog(settings.kafka, cast(Producer, ProducerWithoutTopic()))
    body = {"impression_id": "x", "user_id": "bob", "model_version": "m1", "source": "trending"}
    shown = RenderedList(Tier.TRENDING, b"[]", b"[]", 0)
    impressions.append(Recommendation(body, shown, "blend"))
    assert impressions.dropped == 1
