"""Monitoring routes: exposure, models, dead letters."""

from __future__ import annotations

from confluent_kafka import Producer

from afterclick.events import Action
from afterclick.settings import Settings
from afterclick.topics import dlq
from serving.events.reactions import ReactionCounter, ShownList
from tests.serving.running import Running


def shown(impression_id: str) -> ShownList:
    return ShownList(impression_id, "trending", None, 3)


def test_a_list_counts_one_reaction_for_any_number_of_clicks() -> None:
    counter = ReactionCounter()
    for impression_id in ("a", "b"):
        counter.on_sent("trending", None)
        counter.on_impression(shown(impression_id))
    counter.on_sent("trending", None)
    counter.on_feedback("a", Action.CLICK)
    counter.on_feedback("a", Action.CLICK)
    counter.on_feedback("b", Action.SKIP)
    counter.on_feedback("unknown", Action.CLICK)
    counter.on_feedback(None, Action.CLICK)
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


def test_reactions_to_old_lists_are_not_counted() -> None:
    counter = ReactionCounter(max_open=10)
    for n in range(11):
        counter.on_impression(shown(str(n)))
    counter.on_feedback("0", Action.CLICK, 0)
    assert counter.by_rank()[0]["clicks"] == 0
    assert counter.rows()[0]["reacted"] == 0


def test_exposure_counts_lists_and_feedback_over_http(shop_api: Running) -> None:
    body = shop_api.list_for("erin")
    item_id = body["items"][2]["item_id"]
    feedback = {
        "user_id": "erin",
        "item_id": item_id,
        "action": "click",
        "impression_id": body["impression_id"],
    }
    assert shop_api.http.post("/feedback", json=feedback).status_code == 202
    rows = {row["source"]: row for row in shop_api.get("/exposure")["rows"]}
    assert rows[body["source"]]["reacted"] == 1
    assert rows[body["source"]]["clicks"] == 1
    assert rows[body["source"]]["items"] == len(body["items"])
    places = shop_api.get("/exposure")["places"]
    assert places[0] == {"place": 1, "shown": 1, "clicks": 0}
    assert places[2] == {"place": 3, "shown": 1, "clicks": 1}
    assert len(places) == len(body["items"])


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
