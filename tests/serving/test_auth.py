"""Authentication: keys and scopes per route, origins, rate limits."""

from __future__ import annotations

import hashlib
from socket import create_connection
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
from serving.control.auth import ADMIN_WRITE_PATHS, check_address
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
    ("DELETE", "/users/{user_id}"): "admin",
    ("GET", "/users/{user_id}/erasure"): "recommend",
    ("GET", "/users/{user_id}/history"): "recommend",
    ("PUT", "/users/{user_id}/interests"): "feedback",
    ("POST", "/feedback"): "feedback",
    ("POST", "/sessions/{session_id}/user"): "feedback",
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
    ("DELETE", "/users/{user_id}/tokens"): "admin",
    ("GET", "/admin/quarantine"): "admin",
    ("POST", "/admin/quarantine"): "admin",
}
"""Every operation and the scope it needs; None: no authentication."""
PATH_NAMES = ("item_id", "user_id", "session_id", "impression_id", "rule_id", "name")
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


def test_without_keys_every_route_needs_a_loopback_host(settings: Settings) -> None:
    """A page whose name was rebound to 127.0.0.1 sends its own name as Host and Origin."""
    with Running(settings) as api:
        rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
        for method, path in (operation for operation, scope in SCOPES.items() if scope):
            real = path.format(**dict.fromkeys(PATH_NAMES, "x"))
            assert api.http.request(method, real, headers=rebound).status_code == 403, path
            assert api.http.request(method, real).status_code not in {401, 403}, path
        for host in ("shop.example", "shop.example:8000", "127.0.0.1.example", ""):
            assert api.http.get("/popular", headers={"host": host}).status_code in {400, 403}
        for host in ("localhost", "127.0.0.2:8000", "[::1]:8000"):
            assert api.http.get("/popular", headers={"host": host}).status_code == 200
        assert [_socket_status(api, host) for host in ("evil.example", "localhost")] == [403, 101]


def _socket_status(api: Running, host: str) -> int:
    raw = create_connection(("127.0.0.1", api.port))
    try:
        with connect(f"ws://{host}:{api.port}/ws/recommendations?user_id=bob", sock=raw):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_without_keys_pages_of_other_origins_change_nothing(settings: Settings) -> None:
    allowed = ServingSettings(origins=("https://shop.example",))
    with Running(settings.model_copy(update={"serving": allowed})) as api:
        for method, path in (operation for operation, scope in SCOPES.items() if scope):
            real = path.format(**dict.fromkeys(PATH_NAMES, "x"))
            for origin, status in (
                ("https://evil.example", 403),
                ("null", 403),
                ("http://[", 400),
                ("https://shop.example", None),
                (api.url, None),
            ):
                response = api.http.request(method, real, headers={"origin": origin})
                rejected = response.status_code in {400, 403}
                assert rejected is (status is not None), (method, path, origin)
                assert response.status_code < 500 or response.status_code == 503


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none"])
def test_without_keys_an_image_of_another_page_counts_no_list(
    settings: Settings, site: str
) -> None:
    """A browser sends no Origin for it; a page of another port is of the same site."""
    own = site in {"same-origin", "none"}
    url, headers = "/recommendations?user_id=bob", {"sec-fetch-site": site}
    with Running(settings) as api, Running(guarded(settings)) as keyed:
        assert (api.http.get(url, headers=headers).status_code == 200) is own
        assert bool(api.get("/exposure")["rows"]) is own
        assert api.http.get("/health/ready", headers=headers).status_code != 403
        assert keyed.http.get(url, headers=headers | bearer("r-key")).status_code == 200


CHANGES = (
    ("POST", "/recommendations"),
    ("POST", "/recommendations/batch"),
    ("PUT", "/users/x/interests"),
    ("DELETE", "/users/x"),
    ("DELETE", "/users/x/tokens"),
    ("POST", "/feedback"),
    ("POST", "/sessions/x/user"),
    ("POST", "/rules"),
    ("DELETE", "/rules/x"),
    ("POST", "/experiments"),
    ("POST", "/experiments/x/stop"),
    ("POST", "/keys"),
    ("DELETE", "/keys/x"),
    ("POST", "/tokens"),
    ("POST", "/admin/quarantine"),
)
"""Every route that is no read."""
SIMPLE_TYPES = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page sends to another origin without asking it."""


def test_without_keys_a_change_needs_a_content_type_that_browsers_ask_for(
    settings: Settings,
) -> None:
    """So that a browser that sends no Origin, or an extension that removes it, changes nothing."""
    written = {(m, p.format(**dict.fromkeys(PATH_NAMES, "x"))) for m, p in SCOPES if m != "GET"}
    assert written == set(CHANGES)
    with Running(settings) as api:
        for method, path in CHANGES:
            for kind in SIMPLE_TYPES:
                response = api.http.request(method, path, headers={"content-type": kind})
                assert response.status_code == 422, (path, kind)
                assert "content-type" in response.json()["detail"], (path, kind)
            keyed = bearer("any") | {"content-type": "text/plain"}
            for headers in ({"content-type": "application/json"}, keyed):
                response = api.http.request(method, path, headers=headers)
                assert "needs content-type" not in response.text, (path, headers)


def test_an_open_api_answers_under_loopback_and_allowed_hosts_only(settings: Settings) -> None:
    """Also while a gateway is missing, as in compose: against DNS rebinding."""
    serving = ServingSettings(open=True, allowed_hosts=("Shop.example",))
    with Running(settings.model_copy(update={"serving": serving})) as api:
        rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
        shop = {"host": "shop.example:8000", "origin": "http://shop.example:8000"}
        for method, path in (operation for operation, scope in SCOPES.items() if scope):
            real = path.format(**dict.fromkeys(PATH_NAMES, "x"))
            closed = path.startswith(ADMIN_WRITE_PATHS) or (method == "DELETE" and "user" in path)
            assert api.http.request(method, real, headers=rebound).status_code == 403, path
            for headers in (shop, {}):
                response = api.http.request(method, real, headers=headers)
                assert (response.status_code == 403) is closed, (method, path, headers)
            if method != "GET":
                foreign = shop | {"origin": "http://evil.example:8000"}
                assert api.http.request(method, real, headers=foreign).status_code == 403, path
        sockets = {host: _socket_status(api, host) for host in ("evil.example", "shop.example")}
        assert sockets == {"evil.example": 403, "shop.example": 101}


def test_malformed_headers_are_never_a_server_error(settings: Settings) -> None:
    secret = "s" * 32
    secured = guarded(settings, token_secret=secret)
    with Running(settings) as keyless, Running(secured) as api:
        for host in ("[", "[x]", "a]b", "\u2100.example"):
            raw = {b"host": host.encode("utf-8")}
            assert keyless.http.get("/popular", headers=raw).status_code in {400, 403}
        for value in (b"", b"Bearer", b"\xff\xfe", b"Bearer \xff.\xff.\xff", b"a.b.c"):
            response = api.http.get("/popular", headers={b"authorization": value})
            assert response.status_code == 401, value
        for origin in ("http://[", "http://a]b", "::"):
            headers = bearer("a-key") | {"origin": origin}
            response = api.http.post("/keys", json={"name": "k"}, headers=headers)
            assert response.status_code in {400, 403}, origin
        assert api.http.get("/keys", headers=bearer("a-key")).json() == {"keys": []}


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


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        ((), [401] * 5 + [429] * 2),  # a client cannot choose the address it counts by
        (("127.0.0.0/8",), [401] * 7),
        (("10.0.0.0/8",), [401] * 5 + [429] * 2),
    ],
    ids=["trusts-nobody", "trusts-this-machine", "trusts-others"],
)
def test_forwarded_addresses_count_only_behind_a_trusted_proxy(
    settings: Settings, proxies: tuple[str, ...], expected: list[int]
) -> None:
    with Running(guarded(settings, limit="5/minute", proxies=proxies)) as api:
        headers = [{"x-forwarded-for": f"203.0.113.{n}"} for n in range(7)]
        assert [api.http.get("/popular", headers=h).status_code for h in headers] == expected


def test_clients_behind_a_trusted_proxy_are_limited_by_their_own_address(
    settings: Settings,
) -> None:
    with Running(guarded(settings, limit="5/minute", proxies=("127.0.0.1",))) as api:
        spoofed = [{"x-forwarded-for": f"198.51.100.{n}, 203.0.113.7"} for n in range(7)]
        found = [api.http.get("/popular", headers=headers).status_code for headers in spoofed]
    assert found == [401] * 5 + [429] * 2, "what a client sends itself stands before its address"


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
