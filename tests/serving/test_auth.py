"""Authentication: keys and scopes per route, origins, rate limits."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from afterclick.errors import BadInput
from afterclick.events import decode
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import ApiKey, RedisSettings, ServingSettings, Settings
from infra.embedded.server import free_port
from serving.control.api_keys import new_key
from serving.control.auth import check_address
from tests.serving.running import Running
from tests.waiting import PATIENCE_S

SCOPES: dict[tuple[str, str], str | None] = {
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/recommendations"): "recommend",
    ("POST", "/recommendations"): "recommend",
    ("POST", "/recommendations/batch"): "recommend",
    ("GET", "/similar-items"): "recommend",
    ("GET", "/popular"): "recommend",
    ("GET", "/latest"): "recommend",
    ("GET", "/items/{item_id}"): "recommend",
    ("GET", "/search"): "recommend",
    ("GET", "/categories"): "recommend",
    ("GET", "/users/{user_id}"): "recommend",
    ("GET", "/users/{user_id}/history"): "recommend",
    ("PUT", "/users/{user_id}/interests"): "feedback",
    ("POST", "/feedback"): "feedback",
    ("GET", "/explain/{impression_id}"): "admin",
    ("GET", "/exposure"): "admin",
    ("GET", "/requests"): "admin",
    ("GET", "/models"): "admin",
    ("GET", "/dead-letters"): "admin",
    ("GET", "/metrics"): "admin",
    ("GET", "/rules"): "admin",
    ("POST", "/rules"): "admin",
    ("DELETE", "/rules/{rule_id}"): "admin",
    ("GET", "/experiments"): "admin",
    ("POST", "/experiments"): "admin",
    ("GET", "/experiments/{name}"): "admin",
    ("POST", "/experiments/{name}/stop"): "admin",
    ("GET", "/keys"): "admin",
    ("POST", "/keys"): "admin",
    ("DELETE", "/keys/{name}"): "admin",
    ("POST", "/tokens"): "admin",
    ("GET", "/admin/quarantine"): "admin",
    ("POST", "/admin/quarantine"): "admin",
}
"""Every operation and the scope it needs; None: no authentication."""
PATH_NAMES = ("item_id", "user_id", "impression_id", "rule_id", "name")
KEYS = {"recommend": "r-key", "feedback": "f-key", "admin": "a-key"}


def guarded(settings: Settings, **serving: Any) -> Settings:
    keys = {
        name: ApiKey(sha256=hashlib.sha256(key.encode()).hexdigest(), scopes=(name,))
        for name, key in KEYS.items()
    }
    return settings.model_copy(update={"serving": ServingSettings(keys=keys, **serving)})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_needs_a_key_with_its_scope(settings: Settings) -> None:
    with Running(guarded(settings)) as api:
        for (method, path), scope in SCOPES.items():
            if scope is None:
                continue
            real = path.format(**dict.fromkeys(PATH_NAMES, "x"))
            steers = path.startswith("/admin/") and method == "POST"  # see test_quarantine_routes
            for headers, allowed in (
                ({}, False),
                (bearer("wrong"), False),
                ({"authorization": f"Basic {KEYS[scope]}"}, False),
                (bearer(KEYS[scope]), True),
                ({"x-api-key": KEYS[scope]}, True),
                (bearer(KEYS["admin"]), True),
            ):
                if allowed and steers:
                    continue
                status = api.http.request(method, real, headers=headers).status_code
                assert (status not in {401, 403}) is allowed, (method, path, headers, status)
                assert status < 500 or status == 503, (path, status)
            other = "feedback" if scope == "recommend" else "recommend"
            assert api.http.request(method, real, headers=bearer(KEYS[other])).status_code == 403
        assert api.http.get("/recommendations").headers["www-authenticate"].startswith("Bearer")
        assert api.http.get("/health/live").status_code == 200


def test_only_an_administrator_sends_events_of_the_past(settings: Settings) -> None:
    """And only theirs are trusted with the time from which an account is established."""
    body = {"user_id": "bob", "item_id": "camera-1", "action": "like"}
    past = body | {"time": "2020-01-01T00:00:00Z"}
    with Running(guarded(settings)) as api:
        statuses = [
            api.http.post("/feedback", json=each, headers=bearer(key)).status_code
            for each, key in ((past, "f-key"), (past, "a-key"), (body, "f-key"), (body, "a-key"))
        ]
    assert statuses == [422, 202, 202, 202]
    topic = settings.kafka.topics.feedback
    with KafkaLog(settings.kafka) as log:
        events = [decode(record.value()) for record in log.last(topic, 10)]
    assert sorted(event.source for event in events) == [*["afterclick/api"] * 2, "import/api"]


def test_sockets_need_the_key_and_a_known_origin(settings: Settings) -> None:
    with Running(guarded(settings, origins=("https://shop.example",))) as api:
        url = f"{api.ws}/ws/recommendations?user_id=bob"
        for headers in (
            {},
            bearer("f-key"),
            bearer("r-key") | {"origin": "https://evil.example"},
            bearer("r-key") | {"origin": "null"},
        ):
            with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 403
        for origin in ({}, {"origin": "https://shop.example"}, {"origin": api.url}):
            with connect(url, additional_headers=bearer("r-key") | origin) as socket:
                assert socket.recv(PATIENCE_S)


def test_a_foreign_origin_is_rejected_without_keys_too(hostile_api: Running) -> None:
    headers = {"origin": "https://evil.example"}
    with (
        pytest.raises(InvalidStatus),
        connect(f"{hostile_api.ws}/ws/live", additional_headers=headers),
    ):
        pass


def test_without_keys_only_loopback_may_call_admin_routes(settings: Settings) -> None:
    with Running(settings) as api:
        assert api.http.get("/admin/quarantine").status_code == 200
        for host in ("shop.example", "shop.example:8000", "127.0.0.1.example", ""):
            assert api.http.get("/admin/quarantine", headers={"host": host}).status_code in {
                400,
                403,
            }
    with Running(settings.model_copy(update={"serving": ServingSettings(open=True)})) as api:
        assert api.http.get("/admin/quarantine").status_code == 403


def test_over_the_limit_is_429_per_caller(settings: Settings) -> None:
    with Running(guarded(settings, limit="5/minute")) as api:
        statuses = [
            api.http.get("/recommendations?user_id=b", headers=bearer("r-key")).status_code
            for _ in range(7)
        ]
        assert statuses == [200] * 5 + [429] * 2
        response = api.http.get("/recommendations?user_id=b", headers=bearer("r-key"))
        assert response.headers["retry-after"] == "60"
        assert response.headers["content-type"] == "application/problem+json"
        assert (
            api.http.get("/recommendations?user_id=b", headers=bearer("a-key")).status_code == 200
        )


def test_rejected_keys_count_against_the_limit_of_their_address(settings: Settings) -> None:
    with Running(guarded(settings, limit="5/minute")) as api:
        statuses = [
            api.http.get("/popular", headers=bearer(f"guess-{n}")).status_code for n in range(7)
        ]
        assert statuses == [401] * 5 + [429] * 2
        assert api.http.get("/popular", headers=bearer("r-key")).status_code == 200, (
            "keys are counted apart"
        )


def test_processes_that_share_their_limit_count_together(settings: Settings) -> None:
    shared = guarded(settings, limit="5/minute", limit_shared=True)
    with Running(shared) as one, Running(shared) as other:
        apis = [one, other] * 4
        found = [api.http.get("/popular", headers=bearer("r-key")).status_code for api in apis]
    assert found == [200] * 5 + [429] * 3


def test_without_redis_each_process_limits_its_own_requests(settings: Settings) -> None:
    shared = guarded(settings, limit="5/minute", limit_shared=True)
    unreachable = RedisSettings(url=f"redis://127.0.0.1:{free_port()}/0")
    with Running(shared.model_copy(update={"redis": unreachable})) as api:
        found = [api.http.get("/popular", headers=bearer("r-key")).status_code for _ in range(7)]
    assert found == [200] * 5 + [429] * 2


def test_without_keys_the_api_listens_on_loopback_only() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(ServingSettings(host=host))
    for host in ("0.0.0.0", "::", "10.0.0.1", "shop.example"):
        with pytest.raises(BadInput, match="api-key"):
            check_address(ServingSettings(host=host))
        check_address(ServingSettings(host=host, open=True))
    key, sha256 = new_key()
    check_address(ServingSettings(host="0.0.0.0", keys={"shop": ApiKey(sha256=sha256)}))
    assert hashlib.sha256(key.encode()).hexdigest() == sha256
