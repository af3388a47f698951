"""Who may ask: API keys with scopes, tokens of users, a limit per caller, WebSockets from known origins only.

Keys are looked up in the `KeyRing`. Tokens are good for one user, the request's `scope["subject"]`, which
routes hold every user id against. Without keys and token secret the service answers everyone, and therefore
listens on loopback only (see `check_address`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from afterclick.errors import BadInput
from afterclick.settings import ApiScope, ServingSettings
from serving.control.api_keys import Found, KeyRing
from serving.control.call_limit import CallLimit
from serving.control.tokens import SCOPES, is_token, user_of
from serving.routes.problems import problem

OPEN_PATHS = ("/health/live", "/health/ready", "/docs", "/openapi.json", "/redoc")
ADMIN_PATHS = ("/metrics", "/exposure", "/models", "/dead-letters", "/requests", "/ws/live")
ADMIN_PREFIXES = ("/explain/", "/admin/", "/rules", "/experiments", "/tokens", "/keys")
STEERING = ("/admin/", "/keys")
"""What no foreign page may ask for, and nobody but this machine where there are no keys."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
BEARER = b"bearer."
Headers = dict[bytes, bytes]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    detail: str
    headers: dict[str, str] | None = None


_UNSURE = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "the database has not said yet which API keys there are",
    {"retry-after": "1"},
)


class Guard:
    """ASGI middleware: 401 without a known key, 403 without its scope, 429 over the limit.

    Who is refused is counted by address, so that nobody guesses keys at any rate. A WebSocket asks
    `scope["admitted"]` whether what opened it still would.
    """

    def __init__(
        self, app: ASGIApp, settings: ServingSettings, keys: KeyRing, limit: CallLimit | None = None
    ) -> None:
        self.app, self._settings, self._keys, self._limit = app, settings, keys, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        refusal = self._key_refusal(scope, headers) or _origin_refusal(
            scope, headers, self._settings.origins
        )
        caller = _address(scope) if refusal else _caller(scope)
        refusal = await self._limit_refusal(caller) or refusal
        if scope["type"] == "websocket":
            scope["admitted"] = lambda: self._key_refusal(scope, headers) is None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
        else:
            response = problem(refusal.status, refusal.detail, refusal.headers)
            await response(scope, receive, send)

    def _key_refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        if not self._keys.needed:
            return (
                _UNSURE if self._keys.unsure else _unkeyed_refusal(scope, headers, self._settings)
            )
        name, scopes = self._admitted(scope, _given_key(headers))
        scope["caller"] = name
        if scopes is None and self._keys.unsure:
            return _UNSURE
        if scopes is None:
            challenge = {"www-authenticate": 'Bearer realm="afterclick"'}
            needed = "an API key or a token that has not ended is needed: Authorization: Bearer …"
            return Refusal(HTTPStatus.UNAUTHORIZED, needed, challenge)
        needed = scope_of(scope.get("method", "GET"), scope["path"])
        if needed not in scopes and "admin" not in scopes:
            return Refusal(HTTPStatus.FORBIDDEN, f"this key has no scope `{needed}`")
        return _subject_refusal(scope)

    def _admitted(self, scope: Scope, key: bytes) -> Found:
        """Name and scopes of a key or a token; a token's user becomes the request's subject."""
        if not self._settings.token_secret or not is_token(key):
            return self._keys.find(key)
        user_id = user_of(self._settings.token_secret, key)
        if user_id is None:
            return None, None
        scope["subject"] = user_id
        return "token", SCOPES

    async def _limit_refusal(self, caller: str) -> Refusal | None:
        if self._limit is None or await self._limit.allows(caller):
            return None
        item = self._limit.item
        wait = {"retry-after": str(item.get_expiry())}
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"more than {item}", wait)


def scope_of(method: str, path: str) -> ApiScope:
    """The scope a request needs."""
    if path in ADMIN_PATHS or path.startswith(ADMIN_PREFIXES):
        return "admin"
    tells = path == "/feedback" if method == "POST" else method == "PUT"
    return "feedback" if tells else "recommend"


def check_address(settings: ServingSettings, has_keys: Callable[[], bool] = lambda: False) -> None:
    """Refuse to listen beyond this machine without keys; SQL is asked last. Raises BadInput."""
    if (
        settings.keys
        or settings.token_secret
        or settings.open
        or _is_loopback(settings.host)
        or has_keys()
    ):
        return
    raise BadInput(
        f"{settings.host} is reachable by others and there are no API keys: make one with "
        "`afterclick api-key add`, or set AFTERCLICK_SERVING__OPEN=true behind a gateway that checks"
    )


def _given_key(headers: Headers) -> bytes:
    """What a request shows. A browser's WebSocket has no headers: it offers the protocol `bearer.TOKEN`."""
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    for protocol in headers.get(b"sec-websocket-protocol", b"").split(b","):
        if protocol.strip().startswith(BEARER):
            return protocol.strip().removeprefix(BEARER)
    return headers.get(b"x-api-key", b"")


def _caller(scope: Scope) -> str:
    """Whose requests are counted together: a token's user, a key, else an address."""
    if subject := scope.get("subject"):
        return f"user:{subject}"
    if name := scope.get("caller"):
        return f"key:{name}"
    return _address(scope)


def _address(scope: Scope) -> str:
    return f"address:{(scope.get('client') or ('unknown',))[0]}"


def _subject_refusal(scope: Scope) -> Refusal | None:
    """A token asks for its own user in the query; `routing` looks at paths and bodies."""
    subject = scope.get("subject")
    if subject is None:
        return None
    for name, value in parse_qsl(
        scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True
    ):
        if name == "user_id" and value != subject:
            return Refusal(HTTPStatus.FORBIDDEN, "this token is for another user")
    return None


def _origin_refusal(scope: Scope, headers: Headers, allowed: tuple[str, ...]) -> Refusal | None:
    """Browsers let any page open a WebSocket to any host, or post to it, and send the page's origin.

    Foreign ones are refused, for WebSockets and for what an administrator may do.
    """
    origin = headers.get(b"origin", b"").decode("latin-1")
    steers = scope["path"].startswith(STEERING) and scope.get("method") not in SAFE_METHODS
    if not origin or not (steers or scope["type"] == "websocket"):
        return None
    if origin in allowed or urlsplit(origin).netloc.encode() == headers.get(b"host", b""):
        return None
    return Refusal(HTTPStatus.FORBIDDEN, "this origin may not connect")


def _unkeyed_refusal(scope: Scope, headers: Headers, settings: ServingSettings) -> Refusal | None:
    """Without keys an administrator is whoever sits at this machine, and names it as such."""
    if not scope["path"].startswith(STEERING):
        return None
    host = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname or ""
    if not settings.open and _is_loopback(host):
        return None
    return Refusal(HTTPStatus.FORBIDDEN, "without API keys only this machine may do that")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
