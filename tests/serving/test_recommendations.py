"""Lists follow feedback: the list changes after the click."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from websockets.sync.client import connect

from afterclick import events
from afterclick.events import Context, ImpressionEvent
from afterclick.settings import Settings
from streaming.records import Record, dead_letter
from tests.serving import shop
from tests.serving.running import Running, after, ids, kinds
from tests.waiting import PATIENCE_S, wait_until


def test_a_new_user_is_personalised_after_the_first_event(shop_api: Running) -> None:
    shop_api.feedback("alice", "cable-0")
    cold = shop_api.list_for("bob")
    assert cold["source"] in {"trending", "popular"}

    body = after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))

    assert body["source"] == "personalised"
    assert body["model_version"] == "m1"
    assert kinds(body) == {"camera"}
    assert "camera-3" not in ids(body)
    assert body["items"][0]["reason"] == "because you liked The camera-3"
    assert body["items"][0]["title"].startswith("The camera-")


def test_an_undo_restores_the_list_and_the_history_keeps_both_events(
    shop_api: Running,
) -> None:
    before = after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))
    liked = ids(before)[0]
    changed = after(shop_api, "bob", shop_api.feedback("bob", liked, "like"))
    assert liked not in ids(changed)

    body = after(shop_api, "bob", shop_api.feedback("bob", liked, "undo"))

    assert ids(body) == ids(before)
    assert [item["reason"] for item in body["items"]] == [
        item["reason"] for item in before["items"]
    ]
    events_of_bob = shop_api.get("/users/bob/history")["events"]
    assert [event["action"] for event in events_of_bob] == ["undo", "like", "like"]
    # the like stays counted
    wait_until(lambda: shop_api.get(f"/items/{liked}")["interactions"] == 1)


def test_an_undo_of_the_only_event_makes_the_user_new_again(shop_api: Running) -> None:
    assert after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))["source"] == "personalised"
    body = after(shop_api, "bob", shop_api.feedback("bob", "camera-3", "undo"))
    assert body["source"] in {"trending", "popular"}
    assert "camera-3" in ids(shop_api.list_for("bob", n=100))


def test_a_skip_takes_the_item_out_of_the_list(shop_api: Running) -> None:
    body = after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))
    unwanted = ids(body)[0]
    body = after(shop_api, "bob", shop_api.feedback("bob", unwanted, "skip"))
    assert unwanted not in ids(body)
    assert body["source"] == "personalised"


def test_a_like_changes_the_list_pushed_on_the_socket(shop_api: Running) -> None:
    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol&n=5") as socket:
        first = orjson.loads(socket.recv(PATIENCE_S))
        assert first["type"] == "recommendations"
        assert first["cause"] is None
        shop_api.feedback("carol", "cable-7", event_id="the-click")
        pushed = orjson.loads(socket.recv(PATIENCE_S))
    assert pushed["cause"]["event_id"] == "the-click"
    assert pushed["cause"]["item_id"] == "cable-7"
    assert pushed["cause"]["title"] == "The cable-7"
    assert pushed["source"] == "personalised"
    assert kinds(pushed) == {"cable"}
    assert len(pushed["items"]) == 5


def test_events_of_other_users_push_no_list(shop_api: Running) -> None:
    with connect(f"{shop_api.ws}/ws/recommendations?user_id=carol") as socket:
        socket.recv(PATIENCE_S)
        after(shop_api, "dave", shop_api.feedback("dave", "cable-7"))
        shop_api.feedback("carol", "cable-1", event_id="mine")
        assert orjson.loads(socket.recv(PATIENCE_S))["cause"]["event_id"] == "mine"


def test_purchases_of_many_users_make_an_item_trend(shop_api: Running) -> None:
    for user in range(6):
        shop_api.feedback(f"u{user}", "cable-9", "purchase")
    wait_until(lambda: shop_api.get("/items/cable-9")["interactions"] == 6)

    def first() -> bool:
        return ids(shop_api.list_for("newcomer"))[:1] == ["cable-9"]

    wait_until(first)
    body = shop_api.list_for("newcomer")
    assert body["source"] == "trending"
    assert ids(shop_api.get("/popular", n=1)) == ["cable-9"]
    assert ids(shop_api.get("/popular", n=1, window="hour")) == ["cable-9"]


def test_interests_name_categories_or_items(shared_shop_api: Running) -> None:
    by_category = shared_shop_api.list_for("eve", n=5, interests="Cables")
    assert by_category["source"] == "interests"
    assert kinds(by_category) == {"cable"}
    by_item = shared_shop_api.list_for("eve", n=5, interests=["camera-1", "unknown"])
    assert by_item["source"] == "interests"
    assert kinds(by_item) == {"camera"}
    assert "camera-1" not in ids(by_item)


def test_unknown_interests_fall_back_to_trending_items(shared_shop_api: Running) -> None:
    body = shared_shop_api.list_for("eve", interests="submarines")
    assert body["source"] in {"trending", "popular"}
    assert body["items"]


def test_similar_items_are_of_the_same_kind(shared_shop_api: Running) -> None:
    body = shared_shop_api.get("/similar-items", item_id="camera-2", n=4)
    assert len(body["items"]) == 4
    assert kinds(body) == {"camera"}
    assert "camera-2" not in ids(body)


def test_similarity_by_content_and_by_purchases_adds_up_to_the_default(
    shared_shop_api: Running,
) -> None:
    similar = partial(shared_shop_api.get, "/similar-items", item_id="camera-2", n=60)
    scores = {
        by: {row["item_id"]: row["score"] for row in similar(**asked)["items"]}
        for by, asked in (
            ("both", {}),
            ("content", {"by": "content"}),
            ("bought", {"by": "bought"}),
        )
    }
    assert scores["content"]
    assert scores["content"] != scores["bought"]
    for item_id, score in scores["both"].items():
        parts = scores["content"].get(item_id, 0.0) + scores["bought"].get(item_id, 0.0)
        assert score == pytest.approx(parts, abs=1e-6)


def test_history_is_newest_first_and_the_same_event_counts_once(shop_api: Running) -> None:
    first = shop_api.feedback("fay", "camera-1", "view", event_id="e1")
    second = shop_api.feedback("fay", "camera-1", "view", event_id="e1")
    assert first != second
    after(shop_api, "fay", shop_api.feedback("fay", "cable-2", "purchase"))
    events = shop_api.get("/users/fay/history")["events"]
    assert [(e["item_id"], e["action"]) for e in events] == [
        ("cable-2", "purchase"),
        ("camera-1", "view"),
    ]
    wait_until(lambda: shop_api.get("/items/camera-1")["interactions"] == 1)


def test_a_long_list_has_every_unseen_item_once(shared_shop_api: Running) -> None:
    after(shared_shop_api, "gil", shared_shop_api.feedback("gil", "camera-1"))
    assert len(shared_shop_api.list_for("gil", n=200)["items"]) == len(shop.item_ids()) - 1


def test_the_live_stream_shows_events_and_figures(shop_api: Running) -> None:
    seen: dict[str, dict[str, Any]] = {}
    with connect(f"{shop_api.ws}/ws/live") as socket:
        shop_api.feedback("hal", "camera-1")

        def both() -> bool:
            message = orjson.loads(socket.recv(PATIENCE_S))
            seen[message["type"]] = message
            return message["type"] == "figures" and message["freshness_ms"] is not None

        wait_until(both, every=0)
    assert seen["event"]["user_id"] == "hal"
    assert seen["figures"]["model_version"] == "m1"
    assert seen["figures"]["freshness_ms"]["p50"] >= 0
    assert seen["figures"]["lag"] is not None


def test_lag_positions_dead_letters_and_duplicates_are_figures_and_metrics(
    settings: Settings, shop_api: Running
) -> None:
    for _ in range(3):
        position = shop_api.feedback("hugo", "camera-1", event_id="thrice")
    topic, partition, offset = position.rsplit("/", 2)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    letter = dead_letter(topic, 0, Record(0, b"key", b"poison", 1.0), "no event")
    producer.produce(letter.topic, key=letter.key, value=letter.value, headers=list(letter.headers))
    assert producer.flush(10) == 0
    with redis.Redis.from_url(settings.redis.url) as client:
        client.set(settings.redis.keys.last_batch_at, "1700000000.5")

    def figures() -> dict[str, Any] | None:
        shop_api.service.stats.refresh()
        now = shop_api.figures()
        return now if now["refused"] == 2 and now["lag"] == 0 and now["freshness_ms"] else None

    now = wait_until(figures)
    assert now["positions"][f"{topic}/{partition}"] == int(offset)
    assert set(now["lag_by_partition"].values()) == {0}
    assert len(now["lag_by_partition"]) == 2 * settings.kafka.partitions
    assert now["boundary"] == 1700000000.5
    stages = now["freshness_ms"]["stages"]
    assert stages["apply"].keys() == {"p50", "p95", "p99"}
    assert (
        -1 < stages["log"]["p50"] < stages["total"]["p50"]
    )  # the log's clock has whole milliseconds
    wait_until(lambda: shop_api.figures()["dead_letters"] == 1)
    text = shop_api.http.get("/metrics").text
    for line in (
        'afterclick_state_changes_total{effect="duplicate"} 2.0',
        f'afterclick_position_offset{{partition="{topic}/{partition}"}} {offset}.0',
        f'afterclick_partition_lag_events{{partition="{topic}/{partition}"}} 0.0',
        "afterclick_batch_boundary_seconds 1.7000000005e+09",
        f'afterclick_dead_letters{{topic="{topic}"}} 1.0',
    ):
        assert line in text, line


def test_a_request_with_a_position_never_sees_an_older_state(shop_api: Running) -> None:
    for number in range(30):
        position = shop_api.feedback("ida", f"camera-{number}", "view")
        body = shop_api.list_for("ida", n=200, after=position)
        assert body["fresh"] is True
        assert f"camera-{number}" not in ids(body)


def test_a_list_is_not_fresh_if_its_position_is_not_reached(shop_api: Running) -> None:
    shop_api.service.waiters.timeout_s = 0.3
    body = shop_api.list_for(
        "ida", after=f"{shop_api.service.settings.kafka.topics.feedback}/0/123456"
    )
    assert body["fresh"] is False
    assert body["items"]
    assert shop_api.list_for("ida")["fresh"] is None


def test_every_list_is_logged_as_an_impression(shop_api: Running, settings: Settings) -> None:
    body = shop_api.list_for("jan", n=5, page="home", device="phone")
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "group.id": "test",
            "auto.offset.reset": "earliest",
        }
    )
    topic = settings.kafka.topics.impressions
    consumer.assign([TopicPartition(topic, p, 0) for p in range(settings.kafka.partitions)])
    message = wait_until(lambda: consumer.poll(0.2))
    consumer.close()
    event = events.decode(message.value())
    assert isinstance(event, ImpressionEvent)
    assert event.data.impression_id == body["impression_id"]
    assert event.data.user_id == "jan"
    assert [row.item_id for row in event.data.items] == ids(body)
    assert event.data.items[0].score == body["items"][0]["score"]
    assert event.data.model_version == "m1"
    assert event.data.context == Context(page="home", device="phone")


def test_a_request_without_a_user_is_served_by_its_items(shop_api: Running) -> None:
    body = shop_api.get("/recommendations", items=["cable-3", "cable-4"], n=5)
    assert body["source"] == "session"
    assert body["user_id"] is None
    assert kinds(body) == {"cable"}
    assert {"cable-3", "cable-4"}.isdisjoint(ids(body))
    assert body["items"][0]["reason"] == "because you viewed The cable-3"


def test_items_of_the_session_outweigh_the_history(shared_shop_api: Running) -> None:
    after(shared_shop_api, "kim", shared_shop_api.feedback("kim", "camera-1", "view"))
    body = shared_shop_api.list_for("kim", n=3, items=["cable-3"])
    assert body["source"] == "personalised"
    assert "cable" in kinds(body)


def test_excluded_items_and_other_categories_are_not_recommended(shared_shop_api: Running) -> None:
    after(shared_shop_api, "lea", shared_shop_api.feedback("lea", "camera-1"))
    first = ids(shared_shop_api.list_for("lea", n=3))
    assert set(first).isdisjoint(ids(shared_shop_api.list_for("lea", n=50, exclude=first)))
    wait_until(lambda: shared_shop_api.service.snapshots.current.find("cable-3") is not None)
    inside = shared_shop_api.list_for("lea", n=5, category="cables")
    assert kinds(inside) <= {"cable"}
    visitor = shared_shop_api.get("/recommendations", n=5, category="cables", exclude=["cable-0"])
    assert kinds(visitor) == {"cable"}
    assert "cable-0" not in ids(visitor)


def test_a_batch_returns_the_lists_of_single_requests(shared_shop_api: Running) -> None:
    after(shared_shop_api, "mia", shared_shop_api.feedback("mia", "camera-1"))
    response = shared_shop_api.http.post(
        "/recommendations/batch", json={"user_ids": ["mia", "unknown"], "n": 4}
    )
    assert response.status_code == 200
    mia, unknown = response.json()["lists"]
    assert ids(mia) == ids(shared_shop_api.list_for("mia", n=4))
    assert mia["source"] == "personalised"
    assert unknown["source"] in {"trending", "popular"}


def test_attributions_name_the_event_with_the_strongest_effect(shop_api: Running) -> None:
    shop_api.feedback("rea", "cable-2", event_id="the-cable")
    position = shop_api.feedback("rea", "camera-2", event_id="the-camera")
    after(shop_api, "rea", position)
    body = shop_api.list_for("rea", n=3, explain="true")
    assert kinds(body) == {"camera"}
    for item in body["items"]:
        strongest = item["attributions"][0]
        assert (strongest["event_id"], strongest["title"]) == ("the-camera", "The camera-2")
        assert strongest["effect"] > 0
    assert "attributions" not in shop_api.list_for("rea", n=3)["items"][0]


def test_an_impression_is_explained_by_its_id(shared_shop_api: Running) -> None:
    then = shared_shop_api.list_for("sam", n=4)
    after(shared_shop_api, "sam", shared_shop_api.feedback("sam", "camera-2"))
    assert shared_shop_api.get(f"/explain/{then['impression_id']}") == then
    assert shared_shop_api.http.get("/explain/never-shown").status_code == 404
