"""Monitoring routes: exposure, models, dead letters."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from afterclick.events import Action
from afterclick.io.background import BackgroundLoop
from afterclick.io.forgotten import publish_forgotten
from afterclick.io.heartbeats import HeartbeatWriter
from afterclick.settings import Settings, StreamSettings
from afterclick.state import Effect, StateChange
from afterclick.topics import dlq
from infra.cli import app
from serving.events.reactions import ReactionCounter, ShownList
from streaming.proof.forget_requests import ForgettingLoop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.streaming.stream_process import environment
from tests.waiting import wait_until

REACTIONS = StreamSettings().signals.reactions


def shown(impression_id: str, user_id: str | None = "erin") -> ShownList:
    return ShownList(impression_id, user_id, "trending", None, 3)


def reaction(
    impression_id: str | None,
    action: Action = Action.CLICK,
    user_id: str = "erin",
    effect: Effect = Effect.APPLIED,
) -> StateChange:
    return StateChange(
        user_id=user_id,
        item_id="camera",
        action=action,
        event_id="e",
        impression_id=impression_id,
        time_ms=0,
        topic="feedback",
        partition=0,
        offset=0,
        effect=effect,
        weight=1.0,
        first_user_item=False,
        log_ms=0.0,
        read_ms=0.0,
        applied_ms=0.0,
    )


def test_a_list_counts_one_reaction_for_any_number_of_clicks() -> None:
    counter = ReactionCounter(REACTIONS)
    for impression_id in ("a", "b"):
        counter.on_sent("trending", None)
        counter.on_impression(shown(impression_id))
    counter.on_sent("trending", None)
    for named in ("a", "a", "unknown", None):
        counter.on_change(reaction(named))
    counter.on_change(reaction("b", Action.SKIP))
    assert counter.rows() == [
        {
            "source": "trending",
            "model_version": None,
            "sent": 3,
            "lists": 2,
            "reacted": 1,
            "items": 6,
            "clicks": 2,
        }
    ]


@pytest.mark.parametrize(
    ("change", "owner", "clicks"),
    [
        (reaction("a", effect=Effect.DUPLICATE), "erin", 0),
        (reaction("a", effect=Effect.FORGOTTEN), "erin", 0),
        (reaction("a", effect=Effect.REPLAYED), "erin", 1),
        (reaction("a", user_id="mallory"), "erin", 0),
        (reaction("a", user_id="mallory"), "mallory", 1),
        (reaction("a", user_id="mallory"), None, 1),
    ],
)
def test_reactions_that_took_effect_count_for_the_user_of_the_list(
    change: StateChange, owner: str | None, clicks: int
) -> None:
    counter = ReactionCounter(REACTIONS)
    counter.on_impression(shown("a", owner))
    counter.on_change(change, 0)
    assert (counter.rows()[0]["clicks"], counter.by_rank()[0]["clicks"]) == (clicks, clicks)
    assert counter.rows()[0]["reacted"] == clicks


def test_reactions_to_old_lists_are_not_counted() -> None:
    counter = ReactionCounter(REACTIONS, max_open=10)
    for n in range(11):
        counter.on_impression(shown(str(n)))
    counter.on_change(reaction("0"), 0)
    assert counter.by_rank()[0]["clicks"] == 0
    assert counter.rows()[0]["reacted"] == 0


def test_exposure_counts_lists_and_feedback_over_http(shop_api: Running) -> None:
    body = shop_api.list_for("erin")
    click = (body["items"][2]["item_id"], "click")
    named = {"impression_id": body["impression_id"]}

    def row() -> dict[str, int]:
        rows = {row["source"]: row for row in shop_api.get("/exposure")["rows"]}
        found: dict[str, int] = rows[body["source"]]
        return found

    partition, offset = shop_api.feedback("mallory", *click, **named).rsplit("/", 1)
    feed = shop_api.service.feed
    wait_until(lambda: feed.positions.get(partition, -1) >= int(offset))
    for _ in range(3):  # a client that sends it again
        shop_api.feedback("erin", *click, **named, event_id="click-1")
    shop_api.feedback("erin", *click, **named, event_id="click-2")
    wait_until(lambda: row()["clicks"] >= 2)
    assert row()["clicks"] == 2
    assert row()["reacted"] == 1
    assert row()["items"] == len(body["items"])
    places = shop_api.get("/exposure")["places"]
    assert places[0] == {"place": 1, "shown": 1, "clicks": 0}
    assert places[2] == {"place": 3, "shown": 1, "clicks": 2}
    assert len(places) == len(body["items"])


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
    before = shop_api.get("/exposure")
    preview = shop_api.list_for("paula", preview=True)
    assert preview["impression_id"] is None
    assert preview["items"] == shown["items"]
    assert shop_api.get("/exposure") == before
    shop_api.list_for("paula")
    assert shop_api.get("/exposure") != before, "what is shown counts"


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
        "counts": {topics.reviews: 0, topics.feedback: 0},
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
