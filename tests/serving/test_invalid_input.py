"""Invalid input is answered by a problem with a reason, never by a 500."""

from __future__ import annotations

import http.client
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from socket import create_connection
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from afterclick.events import Action
from afterclick.settings import ServingSettings, Settings
from tests.serving.running import Running
from tests.waiting import PATIENCE_S

GOOD = {"user_id": "bob", "item_id": "camera-1", "action": "like"}
LATER = (datetime.now(UTC) + timedelta(days=2)).isoformat()
EARLIER = (datetime.now(UTC) - timedelta(days=2)).isoformat()
BODIES: dict[str, tuple[str | bytes, int]] = {
    "no JSON": ("{", 422),
    "empty": ("", 422),
    "not an object": ("[1]", 422),
    "null": ("null", 422),
    "a number": ("1e999", 422),
    "NaN rating": ('{"user_id":"b","item_id":"i","action":"like","rating":NaN}', 422),
    "Infinity rating": ('{"user_id":"b","item_id":"i","action":"like","rating":Infinity}', 422),
    "huge rating": ('{"user_id":"b","item_id":"i","action":"like","rating":1e999}', 422),
    "rating too high": (json.dumps(GOOD | {"rating": 5.1}), 422),
    "rating negative": (json.dumps(GOOD | {"rating": -1}), 422),
    "rating a word": (json.dumps(GOOD | {"rating": "great"}), 422),
    "lone surrogate": ('{"user_id":"\\ud800","item_id":"i","action":"like"}', 422),
    "lone surrogate in another field": (
        '{"user_id":"b","item_id":"i","action":"like","x\\udfff":1}',
        422,
    ),
    "NUL": ('{"user_id":"b\\u0000","item_id":"i","action":"like"}', 422),
    "raw invalid UTF-8": (b'{"user_id":"\xff\xfe","item_id":"i","action":"like"}', 422),
    "empty user": (json.dumps(GOOD | {"user_id": ""}), 422),
    "long user": (json.dumps(GOOD | {"user_id": "x" * 129}), 422),
    "user a number": (json.dumps(GOOD | {"user_id": 7}), 422),
    "user a list": (json.dumps(GOOD | {"user_id": ["b"]}), 422),
    "unknown action": (json.dumps(GOOD | {"action": "explode"}), 422),
    "extra field": (json.dumps(GOOD | {"admin": True}), 422),
    "missing item": (json.dumps({"user_id": "b", "action": "like"}), 422),
    "naive time": (json.dumps(GOOD | {"time": "2026-01-01T00:00:00"}), 422),
    "time in the future": (json.dumps(GOOD | {"time": LATER}), 422),
    "time two days ago": (json.dumps(GOOD | {"time": EARLIER}), 422),
    "time before 1970": (json.dumps(GOOD | {"time": "1066-10-14T09:00:00Z"}), 422),
    "time out of range": (json.dumps(GOOD | {"time": 1e300}), 422),
    "time year 0001": (json.dumps(GOOD | {"time": "0001-01-01T00:00:00+14:00"}), 422),
    "deep nesting": ("[" * 20_000 + "]" * 20_000, 422),
    "too large": (json.dumps(GOOD | {"session_id": "x" * 600_000}), 413),
    "good": (json.dumps(GOOD), 202),
}
HOSTILE_IDS = (
    "%00",
    "%0a",
    "%ed%a0%80",
    "%ff",
    "x" * 500,
    "..%2f..%2fetc",
    "%F0%9F%A6%8A",
    "a%20b",
    "{u:1}",
    "*",
)


def assert_problem(response: httpx2.Response, status: int) -> None:
    assert response.status_code == status, (response.status_code, response.text[:300])
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        body = response.json()
        assert body["status"] == status
        assert body["title"]
        assert body["detail"]


def test_feedback_rejects_invalid_bodies(api: Running) -> None:
    for name, (body, status) in BODIES.items():
        content = body if isinstance(body, bytes) else body.encode()
        response = api.http.post(
            "/feedback", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == status, (name, response.status_code, response.text[:300])
        assert_problem(response, status)


def test_an_unknown_action_is_refused_with_the_known_ones(api: Running) -> None:
    response = api.http.post("/feedback", json=GOOD | {"action": "explode"})
    detail = response.json()["detail"]
    assert detail.startswith("body.action: ")
    assert all(str(action) in detail for action in Action)


def test_a_body_of_another_content_type_is_rejected(api: Running) -> None:
    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", ""):
        response = api.http.post(
            "/feedback", content=json.dumps(GOOD), headers={"content-type": kind}
        )
        assert_problem(response, 422)


def test_a_chunked_body_is_cut_at_the_limit(api: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=PATIENCE_S)
    chunks = (b"x" * 8192 for _ in range(80))
    connection.request(
        "POST", "/feedback", chunks, {"content-type": "application/json"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_arrive_is_answered_with_408(settings: Settings) -> None:
    slow_body = settings.model_copy(update={"serving": ServingSettings(body_s=0.3)})
    with Running(slow_body) as api, create_connection(("127.0.0.1", api.port), PATIENCE_S) as slow:
        json = b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        slow.sendall(b"POST /feedback HTTP/1.1\r\nhost: localhost\r\n" + json)
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/recommendations", 200),
        ("/recommendations?items=%00", 422),
        ("/recommendations?exclude=" + "x" * 129, 422),
        ("/recommendations?category=nothing", 200),
        ("/recommendations?user_id=", 422),
        ("/recommendations?user_id=b&n=0", 422),
        ("/recommendations?user_id=b&n=201", 422),
        ("/recommendations?user_id=b&n=1e3", 422),
        ("/recommendations?user_id=b&n=-1", 422),
        ("/recommendations?user_id=b&n=NaN", 422),
        ("/recommendations?user_id=b&n=99999999999999999999999", 422),
        ("/recommendations?user_id=b&m=1", 422),
        ("/recommendations?user_id=b&after=yesterday", 422),
        ("/recommendations?user_id=b&after=feedback/0/-1", 422),
        ("/recommendations?user_id=b&after=feedback/0/٣", 422),
        ("/recommendations?user_id=%00", 422),
        ("/recommendations?user_id=b&interests=" + "x" * 600, 422),
        ("/recommendations?user_id=b" + "&interests=x" * 51, 422),
        ("/recommendations?user_id=b&interests=", 422),
        ("/recommendations?explore=1.1", 422),
        ("/recommendations?explore=nan", 422),
        ("/recommendations?diversity=-0.1", 422),
        ("/recommendations?offset=-1", 422),
        ("/recommendations?offset=1001", 422),
        ("/recommendations?cursor=nonsense", 422),
        ("/recommendations?cursor=", 422),
        ("/recommendations?cursor=*&n=5", 200),
        ("/recommendations?filters=colour:red", 422),
        ("/recommendations?filters=price:..1e999", 200),
        ("/recommendations?filters=brand:%00", 422),
        ("/recommendations?filters=brand:unknown&explore=1&diversity=1&offset=1000", 200),
        ("/similar-items", 422),
        ("/similar-items?item_id=nothing", 404),
        ("/popular?window=century", 422),
        ("/popular?n=x", 422),
        ("/popular?category=nothing", 200),
        ("/items/nothing", 404),
        ("/users/unknown/history", 200),
        ("/users/unknown/history?n=9999", 422),
        ("/nothing", 404),
        ("/experiments/nothing", 404),
        ("/experiments/nothing?level=2", 422),
        ("/experiments/%00", 422),
    ],
)
def test_queries_are_validated(hostile_api: Running, path: str, status: int) -> None:
    assert_problem(hostile_api.http.get(path), status)


def test_unknown_methods_are_rejected(hostile_api: Running) -> None:
    assert_problem(hostile_api.http.get("/feedback"), 405)
    assert_problem(hostile_api.http.delete("/recommendations"), 405)
    assert_problem(hostile_api.http.post("/recommendations"), 422)
    assert_problem(hostile_api.http.post("/recommendations/batch", json={"user_ids": []}), 422)
    assert_problem(
        hostile_api.http.post("/recommendations/batch", json={"user_ids": ["x"] * 501}), 422
    )
    assert_problem(hostile_api.http.post("/recommendations", json={"user_id": "b", "n": True}), 422)


def test_hostile_ids_never_break_a_route(hostile_api: Running) -> None:
    for value in HOSTILE_IDS:
        for path in (
            f"/items/{value}",
            f"/users/{value}/history",
            f"/recommendations?user_id={value}",
        ):
            response = hostile_api.http.get(path)
            assert response.status_code in {200, 404, 422}, (path, response.status_code)
            assert_problem(response, response.status_code)


def test_sockets_reject_invalid_queries(hostile_api: Running) -> None:
    for query in ("", "?user_id=", "?user_id=%00", "?user_id=b&n=0", "?user_id=b&x=1"):
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"{hostile_api.ws}/ws/recommendations{query}"),
        ):
            pass
        assert refused.value.response.status_code == 403


def test_a_socket_with_too_many_or_too_large_messages_is_closed(
    hostile_api: Running,
) -> None:
    url = f"{hostile_api.ws}/ws/recommendations?user_id=bob"
    for messages, code in ((["x" * 70_000], 1009), (["x"] * 100, 1008)):
        with connect(url) as socket:
            assert socket.recv(PATIENCE_S)
            with suppress(ConnectionClosed):
                for message in messages:
                    socket.send(message)
            with pytest.raises(ConnectionClosed):
                socket.recv(PATIENCE_S)
            assert socket.close_code == code
    with connect(url) as socket:
        assert socket.recv(PATIENCE_S)
        for _ in range(10):
            socket.send("x")
        assert socket.ping().wait(PATIENCE_S)


def test_responses_match_their_models(hostile_api: Running) -> None:
    document: dict[str, Any] = hostile_api.get("/openapi.json")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/health") or path == "/metrics":
                continue
            problems = {s for s in operation["responses"] if s.startswith("4")}
            assert problems >= {"400", "422"}, (path, method)
            problems -= {"400", "431"}  # the HTTP server's: test_openapi_fuzzing.py
            for status in problems:
                assert "application/problem+json" in operation["responses"][status]["content"], (
                    path,
                    status,
                )
            assert operation["description"], path
