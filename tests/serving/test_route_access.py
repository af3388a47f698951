"""Every route of the OpenAPI document with every kind of credentials and input."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from afterclick.settings import ServingSettings, Settings
from infra.embedded.kafka import delete_topics, ensure_topics
from serving.control.user_tokens import MAX_TOKEN_S, UserTokens, new_token
from serving.routes import sockets
from serving.service import ServingTimings
from tests.serving.running import Running, installation
from tests.serving.test_auth import KEYS, SCOPES, bearer, guarded
from tests.waiting import PATIENCE_S

LIFETIME_S = 5.0
SECRET = "a secret that is long enough for HS256"
BODIES: dict[str, dict[str, Any]] = {
    "/recommendations": {"user_id": "ann"},
    "/recommendations/batch": {"user_ids": ["ann"]},
    "/feedback": {"user_id": "ann", "item_id": "i", "action": "view"},
    "/rules": {"action": "exclude", "query": ["item:x"]},
    "/experiments": {
        "name": "e",
        "metric": "conversion",
        "plan": {"users": 100},
        "arms": [{"name": "a"}, {"name": "b"}],
    },
    "/tokens": {"user_id": "ann"},
    "/keys": {"name": "k"},
    "/users/{user_id}/interests": {"interests": ["x"]},
    "/sessions/{session_id}/user": {"user_id": "ann"},
    "/admin/quarantine": {"item_id": "i"},
}
QUERIES: dict[str, dict[str, str]] = {
    "/recommendations": {"user_id": "ann"},
    "/similar-items": {"item_id": "i"},
    "/search": {"q": "x"},
}
IN_PATHS = {
    "item_id": "i",
    "user_id": "ann",
    "session_id": "s",
    "impression_id": "x",
    "rule_id": "r",
    "name": "none",
    "fault": "none",
}
HOSTILE = (
    "%00",
    "%0a",
    "%ed%a0%80",
    "%ff",
    "..%2f..%2fetc",
    "x" * 600,
    "%F0%9F%A6%8A",
    "*",
    "1e999",
    "NaN",
    "",
)


@dataclass(frozen=True)
class Route:
    """One operation of the document."""

    method: str
    path: str
    operation: dict[str, Any]

    @property
    def body(self) -> dict[str, Any] | None:
        return BODIES[self.path] if "requestBody" in self.operation else None

    @property
    def steers(self) -> bool:
        """True if a valid request has an effect; `test_quarantine_routes` covers those."""
        return self.method == "POST" and self.path.startswith("/admin/")

    @property
    def names_a_user(self) -> bool:
        named = {parameter["name"] for parameter in self.operation.get("parameters", ())}
        return "user_id" in named or (
            bool({"user_id", "user_ids"} & set(self.body or ())) and self.path != "/tokens"
        )

    def send(self, api: Running, headers: dict[str, str], user_id: str = "ann") -> int:
        """The status of a valid request for a user."""
        path = self.path.format(**IN_PATHS | {"user_id": user_id})
        query = QUERIES.get(self.path, {}) if self.method == "GET" else {}
        query = query | ({"user_id": user_id} if "user_id" in query else {})
        body = self.body and {k: _for(user_id, k, v) for k, v in self.body.items()}
        answer = api.http.request(self.method, path, params=query, json=body, headers=headers)
        return answer.status_code


def _for(user_id: str, name: str, value: Any) -> Any:
    return {"user_id": user_id, "user_ids": [user_id]}.get(name, value)


@pytest.fixture(scope="module")
def api(broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An API with keys and tokens that the tests of this module share."""
    settings = installation(broker, redis_url, tmp_path_factory.mktemp("home"))
    ensure_topics(settings)
    with Running(guarded(settings, token_secret=SECRET)) as running:
        yield running
    delete_topics(settings.kafka)


def routes(api: Running) -> list[Route]:
    paths = api.get("/openapi.json")["paths"]
    found = [
        Route(m.upper(), path, op) for path, methods in paths.items() for m, op in methods.items()
    ]
    assert {(route.method, route.path) for route in found} == SCOPES.keys()
    return [route for route in found if SCOPES[route.method, route.path] is not None]


def signed(**changes: Any) -> str:
    now = time.time()
    claims = {"sub": "ann", "aud": "afterclick", "iat": now, "exp": now + 60} | changes
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, SECRET, "HS256")


def unsigned() -> str:
    head, claims = (
        urlsafe_b64encode(part).rstrip(b"=").decode()
        for part in (b'{"alg":"none"}', b'{"sub":"ann","aud":"afterclick","exp":9999999999}')
    )
    return f"{head}.{claims}."


def test_every_route_rejects_invalid_credentials(api: Running) -> None:
    good = signed()
    invalid = {
        "no credentials": {},
        "a wrong key": bearer("wrong"),
        "another kind": {"authorization": "Basic r-key"},
        "a token that has ended": bearer(signed(exp=time.time() - 1)),
        "a token without end": bearer(signed(exp=None)),
        "a token without beginning": bearer(signed(iat=None)),
        "a token that begins tomorrow": bearer(signed(iat=time.time() + 86_400)),
        "a token that lasts too long": bearer(signed(exp=time.time() + MAX_TOKEN_S + 60)),
        "a token for something else": bearer(signed(aud="another")),
        "a token without a user": bearer(signed(sub="")),
        "a token that was changed": bearer(good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")),
        "a token by another secret": bearer(
            new_token("another secret of 32 characters!", "ann", 3600)[0]
        ),
        "an unsigned token": bearer(unsigned()),
        "dots": bearer(".."),
    }
    for route in routes(api):
        assert {"400", "401", "403", "429"} <= route.operation["responses"].keys(), route.path
        for name, headers in invalid.items():
            assert route.send(api, headers) == 401, (route.method, route.path, name)


def test_a_key_allows_the_routes_of_its_scope_and_no_others(api: Running) -> None:
    for route in routes(api):
        needed = SCOPES[route.method, route.path]
        for scope, key in KEYS.items():
            allowed = scope in (needed, "admin")
            if allowed and route.steers:
                continue
            status = route.send(api, bearer(key))
            assert (status != 403) is allowed, (route.method, route.path, scope, status)
            assert status < 500 or status == 503, (route.method, route.path, scope, status)


def test_a_token_is_valid_for_its_own_user_only(api: Running) -> None:
    own, checked = bearer(new_token(SECRET, "ann", 3600)[0]), 0
    for route in routes(api):
        operation = (route.method, route.path)
        if operation == ("DELETE", "/users/{user_id}/tokens"):  # ends its own: test_user_tokens
            assert route.send(api, own, user_id="bob") == 403
            continue
        if route.path == "/sessions/{session_id}/user":  # with a key only
            assert route.send(api, own) == 403
            continue
        if SCOPES[operation] == "admin" and operation != ("DELETE", "/users/{user_id}"):
            assert route.send(api, own) == 403, (route.method, route.path)
            continue
        assert route.send(api, own) not in (401, 403), (route.method, route.path)
        if route.names_a_user:
            assert route.send(api, own, user_id="bob") == 403, (route.method, route.path)
            checked += 1
    assert checked == 9
    for query in ("user_id=ann&user_id=bob", "user_id=bob&user_id=ann", "user%5Fid=bob"):
        assert api.http.get(f"/recommendations?{query}", headers=own).status_code == 403
    assert api.http.get("/recommendations", headers=own).status_code == 200, (
        "a list without a user needs no matching token"
    )


def test_every_route_rejects_a_body_that_is_too_large(api: Running) -> None:
    checked = 0
    for route in routes(api):
        if route.body is None:
            continue
        headers = bearer(KEYS["admin"]) | {"content-type": "application/json"}
        size = 600_000 if route.path == "/feedback" else 70_000
        answer = api.http.request(route.method, route.path, content=b" " * size, headers=headers)
        assert answer.status_code == 413, (route.method, route.path)
        checked += 1
    assert checked == len(BODIES)


def test_invalid_values_are_never_a_server_error(api: Running) -> None:
    headers = bearer(KEYS["admin"])
    for route in [route for route in routes(api) if not route.steers]:
        names = [p["name"] for p in route.operation.get("parameters", ()) if p["in"] == "query"]
        for value in HOSTILE:
            path = route.path.format(**dict.fromkeys(IN_PATHS, value or "%20"))
            queries = [f"{name}={value}" for name in names]
            if path != route.path or not names:
                queries.append("")
            for query in queries:
                answer = api.http.request(
                    route.method, f"{path}?{query}", json=route.body, headers=headers
                )
                assert answer.status_code < 500 or answer.status_code == 503, (
                    path,
                    query,
                    answer.text,
                )
            if path == route.path and not names:
                break  # the route has no parameters
        for name, value in (route.body or {}).items():
            wrong: Any
            for wrong in (
                None,
                7,
                "",
                "\x00",
                [],
                {},
                [[]],
                "x" * 5000,
                float("1e300"),
                [value] * 501,
            ):
                body = {**(route.body or {}), name: wrong}
                answer = api.http.request(route.method, path, json=body, headers=headers)
                assert answer.status_code < 500 or answer.status_code == 503, (
                    path,
                    body,
                    answer.text,
                )


def test_invalid_bodies_of_admin_routes_are_rejected(api: Running) -> None:
    for route in [route for route in routes(api) if route.steers and route.body]:
        wrong: Any
        for wrong in (None, 7, "\x00", [], {}, float("1e300")):
            answer = api.http.post(
                route.path,
                json={**(route.body or {}), "more": wrong},
                headers=bearer(KEYS["admin"]),
            )
            assert answer.status_code == 422, (route.path, wrong, answer.text)


def test_a_browser_opens_a_socket_with_its_token_for_its_own_user(api: Running) -> None:
    token = new_token(SECRET, "ann", 3600)[0]
    offered: Any = ["afterclick", f"bearer.{token}"]
    with connect(f"{api.ws}/ws/recommendations?user_id=ann", subprotocols=offered) as socket:
        assert socket.subprotocol == "afterclick"
        assert socket.recv(PATIENCE_S)
    for url in ("/ws/recommendations?user_id=bob", "/ws/live"):
        with pytest.raises(InvalidStatus), connect(f"{api.ws}{url}", subprotocols=offered):
            pass


def test_a_socket_does_not_outlive_its_token(settings: Settings) -> None:
    timings = ServingTimings(reauthenticate_s=0.1)
    with Running(guarded(settings, token_secret=SECRET), timings=timings) as api:
        token = new_token(SECRET, "ann", LIFETIME_S)[0]
        url = f"{api.ws}/ws/recommendations?user_id=ann"
        with connect(url, additional_headers=bearer(token)) as socket:
            assert socket.recv(PATIENCE_S)
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == sockets.INVALID


def test_tokens_are_created_by_admins_and_only_with_a_secret(
    api: Running, hostile_api: Running
) -> None:
    made = api.http.post(
        "/tokens", json={"user_id": "ann", "seconds": 60}, headers=bearer(KEYS["admin"])
    )
    assert made.status_code == 201
    tokens = UserTokens(ServingSettings(token_secret=SECRET))
    assert tokens.user_of(made.json()["token"].encode()) == "ann"
    assert hostile_api.http.post("/tokens", json={"user_id": "ann"}).status_code == 409


def test_pages_of_allowed_origins_may_call_the_api(settings: Settings) -> None:
    with Running(guarded(settings, token_secret=SECRET, origins=("https://shop.example",))) as api:
        wanted = {"access-control-request-headers": "authorization,content-type"}
        for method, path in SCOPES:
            asked = wanted | {"access-control-request-method": method}
            for origin, status in (("https://shop.example", 200), ("https://evil.example", 400)):
                answer = api.http.options(path, headers=asked | {"origin": origin})
                assert answer.status_code == status, (method, path, origin)
                allowed = "access-control-allow-origin" in answer.headers
                assert allowed is (status == 200), (method, path, origin)
        asked = wanted | {"access-control-request-method": "PATCH"}
        answer = api.http.options("/rules", headers=asked | {"origin": "https://shop.example"})
        assert answer.status_code == 400, "no route has this method"
        own = bearer(new_token(SECRET, "ann", 3600)[0]) | {"origin": "https://shop.example"}
        answer = api.http.get("/recommendations?user_id=ann", headers=own)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
