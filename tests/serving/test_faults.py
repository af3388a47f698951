"""What is away is missed, said, and found again without a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx2
import orjson
import pytest

from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.embedded.kafka import KafkaServer
from infra.embedded.valkey import ValkeyServer
from infra.topics_admin import ensure_topics
from serving.events.kafka_health import AckTimeouts
from serving.service import ServingTimings
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.serving.test_loop import after, kinds
from tests.waiting import PATIENCE_S, REDIS_S, wait_until

NEVER_S = 10 * PATIENCE_S
# where Redis is taken away: what a request waits for it
BRIEF_S = 1.0
STALL_S = 0.4


def of(broker: str, redis_url: str, home: Path, redis_s: float = REDIS_S) -> Settings:
    unique = uuid4().hex[:8]
    return Settings(
        home=home,
        kafka=KafkaSettings(bootstrap=broker, prefix=f"f{unique}-", partitions=2),
        redis=RedisSettings(url=redis_url, prefix=f"f{unique}:", timeout_s=redis_s),
    )


def said(body: dict[str, Any]) -> tuple[str, bool]:
    return body["source"], body["degraded"]


def test_without_redis_lists_go_on_and_say_so(
    broker: str, own_redis: ValkeyServer, tmp_path: Path
) -> None:
    settings = of(broker, own_redis.address, tmp_path, BRIEF_S)
    ensure_topics(settings)
    with Running(settings) as api, MiniStream(settings):
        api.ready()
        shop.publish_items(settings, shop.catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        after(api, "bob", api.tell("bob", "camera-1"))
        wait_until(lambda: said(api.list_for("bob")) == ("personalised", False))

        own_redis.kill()
        took: list[float] = []
        for _ in range(30):
            began = time.perf_counter()
            body = api.list_for("bob")
            took.append(time.perf_counter() - began)
            assert body["degraded"] is True
            assert body["items"]
        assert median(took) < 2 * BRIEF_S
        assert api.get("/users/bob/history")["degraded"] is True
        assert api.list_for("bob", interests="Cables")["source"] == "interests"
        api.tell("bob", "cable-1")  # feedback needs Kafka alone

        own_redis.start()
        wait_until(lambda: api.list_for("bob")["degraded"] is False)
        wait_until(lambda: kinds(api.list_for("bob", n=60)) == {"camera", "cable"})


def test_a_frozen_redis_is_waited_for_no_longer_than_the_timeout(
    broker: str, own_redis: ValkeyServer, tmp_path: Path
) -> None:
    settings = of(broker, own_redis.address, tmp_path, BRIEF_S)
    ensure_topics(settings)
    with Running(settings) as api:
        api.ready()
        own_redis.process.suspend()
        try:
            began = time.perf_counter()
            assert api.list_for("bob")["degraded"] is True
            assert time.perf_counter() - began < 30, "it would wait for as long as Redis is frozen"
        finally:
            own_redis.process.resume()
        wait_until(lambda: api.list_for("bob")["degraded"] is False)


def test_without_kafka_feedback_says_when_to_try_again(
    own_broker: KafkaServer, redis_url: str, tmp_path: Path
) -> None:
    # longer than the client waits: the response must come from the lost connection
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S))
    settings = of(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=timings) as api, MiniStream(settings):
        api.ready()
        after(api, "bob", api.tell("bob", "camera-1"))

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
        assert api.service.feedback.sent == sent, "no request waits for a Kafka known to be down"

        own_broker.start()
        wait_until(
            lambda: not api.service.feedback.health.down,
            what="it sees by itself that Kafka is back",
        )
        wait_until(lambda: api.http.post("/feedback", json=body).status_code == 202)
        wait_until(lambda: len(api.get("/users/bob/history")["events"]) == 2)


@pytest.mark.parametrize("looks", [True, False], ids=["it looks", "control: it only waits"])
def test_a_frozen_kafka_is_told_from_a_slow_one(
    own_broker: KafkaServer,
    redis_url: str,
    tmp_path: Path,
    looks: bool,
) -> None:
    doubt_s = AckTimeouts.doubt_s if looks else NEVER_S
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S, doubt_s=doubt_s))
    settings = of(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=timings) as api:
        api.ready()
        api.tell("bob", "camera-1")
        body = {"user_id": "bob", "item_id": "camera-2", "action": "like", "event_id": "try-again"}
        own_broker.process.suspend()
        try:
            if looks:
                assert api.http.post("/feedback", json=body).status_code == 503
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    api.http.post("/feedback", json=body, timeout=3)
        finally:
            own_broker.process.resume()
        wait_until(
            lambda: not api.service.feedback.health.down,
            what="it sees by itself that Kafka goes on",
        )
        wait_until(lambda: api.http.post("/feedback", json=body).status_code == 202)


# patient: ten times as long as in the product, so that a busy machine does not make the stall that long
@pytest.mark.parametrize(
    "usual_s", [10 * AckTimeouts.usual_s, 0.0], ids=["patient", "control: sure at once"]
)
def test_a_young_process_waits_for_a_kafka_that_stalls(
    own_broker: KafkaServer,
    redis_url: str,
    tmp_path: Path,
    usual_s: float,
) -> None:
    timings = ServingTimings(ack=AckTimeouts(ack_s=NEVER_S, usual_s=usual_s))
    resume = threading.Timer(STALL_S, own_broker.process.resume)
    settings = of(own_broker.address, redis_url, tmp_path)
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


def test_it_starts_before_kafka_and_redis_do(own_broker: KafkaServer, tmp_path: Path) -> None:
    redis = ValkeyServer(tmp_path / "late")
    settings = of(own_broker.address, redis.address, tmp_path)
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
                    what="it sees by itself that Kafka is there",
                )
                after(api, "bob", api.tell("bob", "camera-1"))
        finally:
            redis.kill()


def test_models_are_swapped_under_requests_without_one_failure(
    shop_api: Running, settings: Settings
) -> None:
    after(shop_api, "bob", shop_api.tell("bob", "camera-3"))
    versions: list[str] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            response = shop_api.http.get("/recommendations", params={"user_id": "bob"})
            if response.status_code != 200 or not response.json()["items"]:
                failures.append(response.text)
            versions.append(orjson.loads(response.content)["model_version"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2, 8):
            shop.publish(settings, *shop.write(settings, f"m{number}"))
            wait_until(lambda version=f"m{number}": versions and versions[-1] == version)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert list(dict.fromkeys(versions)) == [f"m{i}" for i in range(1, 8)]


def test_a_damaged_model_is_refused_and_the_old_one_serves(
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
    shop.publish(settings, *shop.write(settings, "mended"))
    wait_until(lambda: shop_api.list_for("bob")["model_version"] == "mended")


def test_the_newest_model_is_loaded_at_the_start(shop_api: Running, settings: Settings) -> None:
    shop.publish(settings, *shop.write(settings, "m2"))
    with Running(settings) as second:
        wait_until(lambda: second.list_for("bob")["model_version"] == "m2")
        assert second.list_for("bob")["items"]


def test_trends_survive_a_restart_and_agree_with_redis(
    shop_api: Running, settings: Settings
) -> None:
    for user in range(5):
        position = shop_api.tell(f"u{user}", "camera-5", "purchase")
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
