"""A list of feedback: each event has a result of its own and takes effect once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from afterclick.io.client import Client
from afterclick.settings import ServingSettings, Settings
from infra.embedded.kafka import KafkaServer, ensure_topics
from serving.events.feedback import AckTimeouts
from serving.routes.queries import EVENTS_PER_REQUEST, MAX_EVENTS, FeedbackList
from serving.service import ServingTimings
from tests.serving.running import Running, after, installation
from tests.serving.test_auth import KEYS, bearer, guarded
from tests.serving.test_outages import NEVER_S
from tests.serving.test_user_tokens import SECRET, token
from tests.waiting import wait_until


def like(user_id: str, item_id: str, **more: Any) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": item_id, "action": "like", **more}


def send(api: Running, events: list[Any], **headers: str) -> httpx2.Response:
    return api.http.post("/feedback", json=events, headers=headers)


def test_valid_events_count_once_beside_invalid_ones(shop_api: Running) -> None:
    events = [
        like("kim", "camera-1", event_id="e-1"),
        like("kim", "camera-2", action="explode", event_id="e-2"),
        {"item_id": "camera-3", "action": "like"},
        like("kim", "camera-4", time="2001-01-01T00:00:00Z", event_id="e-4"),
        like("lou", "cable-1", event_id="e-5"),
    ]
    for _ in range(2):  # the second time nothing changes
        answer = send(shop_api, events)
        assert answer.status_code == 202, answer.text
        body = answer.json()
        statuses = [result["status"] for result in body["results"]]
        assert (body["accepted"], statuses) == (2, [202, 422, 422, 422, 202])
        assert [r["event_id"] for r in body["results"]] == ["e-1", "e-2", None, "e-4", "e-5"]
        assert body["results"][1]["detail"].startswith("action: ")
        assert "user_id or session_id is required" in body["results"][2]["detail"]
        assert body["results"][3]["detail"].startswith("time: older than")
        for user, result in (("kim", body["results"][0]), ("lou", body["results"][4])):
            after(shop_api, user, result["position"])
    history = shop_api.get("/users/kim/history")["events"]
    assert [(row["event_id"], row["item_id"]) for row in history] == [("e-1", "camera-1")]


def test_the_client_sends_lists_with_event_ids(shop_api: Running) -> None:
    with Client(shop_api.url) as client:
        found = client.feedback_list(like("max", f"cable-{n}") for n in range(1, 4))
        assert (found.accepted, {r.status for r in found.results}) == (3, {202})
        assert len({r.event_id for r in found.results}) == 3


def test_a_list_has_one_to_a_thousand_events_of_up_to_the_limit(shop_api: Running) -> None:
    assert send(shop_api, []).status_code == 422
    events = [like("nat", f"camera-{n % 20}") for n in range(MAX_EVENTS)]
    answer = send(shop_api, events)
    assert answer.json()["accepted"] == MAX_EVENTS, answer.text[:500]
    refused = send(shop_api, [*events, events[0]])
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("body: "), refused.text
    assert send(shop_api, [like("nat", "x" * 600_000)]).status_code == 413


def test_a_list_may_name_only_the_user_of_a_token(settings: Settings) -> None:
    with Running(guarded(settings, token_secret=SECRET)) as api:
        own = bearer(token("ann"))
        assert send(api, [like("ann", "i"), like("bob", "i")], **own).status_code == 403
        other_session = {"session_id": "s", "item_id": "i", "action": "like"}
        assert send(api, [like("ann", "i"), other_session], **own).status_code == 403
        wait_until(lambda: send(api, [like("ann", "i")], **own).status_code == 202)
        assert send(api, [like("bob", "i")], **bearer(KEYS["admin"])).status_code == 202


def test_a_list_counts_in_the_rate_limit_by_its_length(settings: Settings) -> None:
    assert FeedbackList([{}] * (2 * EVENTS_PER_REQUEST + 1)).cost == 3
    limited = settings.model_copy(update={"serving": ServingSettings(limit="3/day")})
    with Running(limited) as api:
        events = [like("oli", "i")] * (3 * EVENTS_PER_REQUEST + 1)
        assert send(api, events).status_code == 429


def test_without_kafka_a_list_is_answered_like_an_event(
    own_broker: KafkaServer, redis_url: str, tmp_path: Path
) -> None:
    settings = installation(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings, timings=ServingTimings(ack=AckTimeouts(ack_s=NEVER_S))) as api:
        api.ready()
        api.feedback("pia", "camera-1")
        own_broker.kill()
        answer = send(api, [like("pia", "camera-2", event_id="again"), {"item_id": "camera-3"}])
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"] == "1"
        assert "again" in answer.json()["detail"]
