"""Monitoring routes: exposure, models, dead letters."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from afterclick.io.background import BackgroundLoop
from afterclick.io.forgotten import publish_forgotten
from afterclick.io.heartbeats import HeartbeatWriter
from afterclick.settings import Settings
from afterclick.topics import dlq
from infra.cli import app
from streaming.proof.forget_requests import ForgettingLoop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.streaming.stream_process import environment
from tests.waiting import wait_until


def test_exposure_counts_lists_and_feedback_over_http(shop_api: Running) -> None:
    body = shop_api.list_for("erin")
    click = (body["items"][2]["item_id"], "click")
    named = {"impression_id": body["impression_id"]}

    def row() -> dict[str, int]:
        rows = {row["source"]: row for row in shop_api.get("/exposure")["rows"]}
        found: dict[str, int] = rows[body["source"]]
        return found

    shop_api.feedback("mallory", *click, **named)
    for _ in range(3):  # a client that sends it again
        shop_api.feedback("erin", *click, **named, event_id="click-1")
    shop_api.feedback("erin", *click, **named, event_id="click-2")
    shop_api.feedback("erin", body["items"][0]["item_id"], "skip", **named)
    wait_until(lambda: row()["clicks"] and row()["skips"])
    assert row()["clicks"] == 1
    assert (row()["sent"], row()["lists"], row()["reacted"]) == (1, 1, 1)
    assert row()["items"] == len(body["items"])
    nothing = {"clicks": 0, "likes": 0, "baskets": 0, "purchases": 0, "skips": 0}
    places = shop_api.get("/exposure", days=1)["places"]
    assert places[0] == {"place": 1, "shown": 1} | nothing | {"skips": 1}
    assert places[2] == {"place": 3, "shown": 1} | nothing | {"clicks": 1}
    assert len(places) == len(body["items"])
    assert shop_api.get("/exposure", experiment="none") == {"rows": [], "places": []}


def test_exposure_is_the_same_after_a_restart(settings: Settings, stream: MiniStream) -> None:
    def counts(api: Running) -> list[tuple[str, int]]:
        return [(row["source"], row["lists"]) for row in api.get("/exposure")["rows"]]

    with Running(settings) as first:
        first.ready()
        source = first.list_for("erin")["source"]
        wait_until(lambda: counts(first) == [(source, 1)])
    with Running(settings) as second:
        assert counts(second) == [(source, 1)]


def test_exposure_without_redis_is_a_clear_error(settings: Settings) -> None:
    """Control: with Redis it is answered."""
    lost = settings.model_copy(
        update={"redis": settings.redis.model_copy(update={"url": "redis://127.0.0.1:1/0"})}
    )
    with Running(settings) as api, Running(lost) as without:
        assert api.http.get("/exposure").status_code == 200
        answer = without.http.get("/exposure")
        assert answer.status_code == 503
        assert "Redis" in answer.text


def test_a_frozen_reader_is_reported_until_it_goes_on(api: Running, stream: MiniStream) -> None:
    feed = api.service.feed
    feed.heartbeat.limit_s = 1.0
    gauge = f'afterclick_heartbeat_age_seconds{{loop="{feed.heartbeat.name}"}} '

    def age_s() -> float:
        text = api.http.get("/metrics").text
        return float(text.partition(gauge)[2].partition("\n")[0])

    wait_until(lambda: api.get("/health/ready")["status"] == "ready")
    with feed.lock:
        api.feedback("ann", "camera")  # its state change waits for the lock
        wait_until(lambda: api.get("/health/ready")["status"] == "stalled")
        (frozen,) = api.get("/health/ready")["parts"]["frozen"]
        assert frozen["loop"] == feed.heartbeat.name
        assert frozen["seconds"] >= 1
        assert age_s() > 1
    wait_until(lambda: api.get("/health/ready")["status"] == "ready")
    wait_until(lambda: age_s() < 1)


def test_a_frozen_loop_of_the_stream_job_is_reported_until_it_goes_on(
    api: Running, stream: MiniStream, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real loop that waits in the middle of an erasure. The control: one that goes on."""
    release = threading.Event()
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    gauge = 'afterclick_heartbeat_age_seconds{loop="stream/forgetting"} '

    def frozen() -> list[str]:
        body = api.get("/health/ready")
        loops = [loop["loop"] for loop in body["parts"]["frozen"]]
        assert (body["status"] == "stalled") is bool(loops)
        return loops

    def is_healthy() -> bool:
        return CliRunner().invoke(app, ["heartbeats", "stream"]).exit_code == 0

    def batch() -> str | None:  # what the archive is writing
        release.wait(90)
        return None

    other = BackgroundLoop("unknown-items", lambda: None, 0.1, limit_s=1.0)
    with closing(ForgettingLoop(settings, batch)) as forgetting:
        forgetting.heartbeat.limit_s = 1.0
        beats = (forgetting.heartbeat, other.heartbeat)
        with closing(HeartbeatWriter(settings, "stream", beats)) as writer:
            for loop in (forgetting, other, writer):
                loop.start()
            wait_until(lambda: gauge in api.http.get("/metrics").text)
            wait_until(lambda: frozen() == [])
            wait_until(is_healthy)
            publish_forgotten(settings.kafka, "ann", 1000)
            wait_until(lambda: frozen() == ["stream/forgetting"])
            wait_until(
                lambda: float(api.http.get("/metrics").text.partition(gauge)[2].split()[0]) > 1
            )
            (named,) = api.figures()["frozen"]
            assert named.startswith("stream/forgetting for ")
            wait_until(lambda: not is_healthy())
            release.set()
            wait_until(lambda: frozen() == [])
            wait_until(is_healthy)
        other.stop()
    wait_until(lambda: gauge not in api.http.get("/metrics").text)  # it ended in order
    assert not is_healthy()


def test_a_preview_is_the_same_list_and_is_not_counted(shop_api: Running) -> None:
    shown = shop_api.list_for("paula")
    wait_until(lambda: lists(shop_api) == 1)
    preview = shop_api.list_for("paula", preview=True)
    assert preview["impression_id"] is None
    assert preview["items"] == shown["items"]
    shop_api.list_for("paula")
    wait_until(lambda: lists(shop_api) >= 2, what="what is shown counts")
    assert lists(shop_api) == 2


def lists(api: Running) -> int:
    return sum(row["lists"] for row in api.get("/exposure")["rows"])


def test_models_report_the_serving_version(shop_api: Running) -> None:
    body = shop_api.get("/models")
    assert body["serving"] == "m1"
    assert [(row["version"], row["serving"], row["refused"]) for row in body["models"]] == [
        ("m1", True, None)
    ]


def test_dead_letters_are_counted_and_returned_with_their_error(
    api: Running, settings: Settings
) -> None:
    topics = settings.kafka.topics
    assert api.get("/dead-letters") == {
        "counts": {topics.reviews: 0, topics.feedback: 0, topics.impressions: 0},
        "newest": [],
    }
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "enable.idempotence": True})
    producer.produce(
        dlq(topics.feedback), b"{not json", headers=[("error", b"event: invalid JSON")]
    )
    assert producer.flush(20) == 0
    body = api.get("/dead-letters")
    assert body["counts"][topics.feedback] == 1
    assert body["newest"][0]["value"] == "{not json"
    assert body["newest"][0]["headers"] == {"error": "event: invalid JSON"}
