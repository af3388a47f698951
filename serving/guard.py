"""Who may ask: API keys with scopes, a rate limit per caller, and WebSockets from this origin only.

Keys are settings: a name, the SHA-256 of the key, and its scopes. Without any key the service answers
everyone, and therefore listens on loopback only (see `check_address`).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from afterclick.errors import BadInput
from afterclick.settings import ApiScope, ServingSettings
from serving.problems import problem

OPEN_PATHS = ("/health/live", "/health/ready", "/docs", "/openapi.json", "/redoc")
ADMIN_PATHS = ("/metrics", "/exposure", "/models", "/dead-letters", "/ws/live")
ADMIN_PREFIX = "/explain/"
Headers = dict[bytes, bytes]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    detail: str
    headers: dict[str, str] | None = None


class Guard:
    """ASGI middleware: 401 without a known key, 403 without its scope, 429 over the limit."""

    def __init__(self, app: ASGIApp, settings: ServingSettings) -> None:
        self.app, self._settings = app, settings
        self._limit: RateLimitItem | None = parse(settings.limit) if settings.limit else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        refusal = self._key_refusal(scope, headers) or _origin_refusal(scope, headers, self._settings.origins)
        refusal = refusal or await self._limit_refusal(scope, headers)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
        else:
            response = problem(refusal.status, refusal.detail, refusal.headers)
            await response(scope, receive, send)

    def _key_refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        if not self._settings.keys:
            return None
        scopes = self._scopes(_given_key(headers))
        if scopes is None:
            challenge = {"www-authenticate": 'Bearer realm="afterclick"'}
            return Refusal(
                HTTPStatus.UNAUTHORIZED, "an API key is needed: Authorization: Bearer …", challenge
            )
        needed = scope_of(scope.get("method", "GET"), scope["path"])
        if needed not in scopes and "admin" not in scopes:
            return Refusal(HTTPStatus.FORBIDDEN, f"this key has no scope `{needed}`")
        return None

    def _scopes(self, key: bytes) -> Iterable[ApiScope] | None:
        """The scopes of a key, None for an unknown one. Compares with every key, each in constant time."""
        digest, found = hashlib.sha256(key).hexdigest(), None
        for known in self._settings.keys.values():
            if hmac.compare_digest(known.sha256, digest):
                found = known.scopes
        return found

    async def _limit_refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        if self._limit is None:
            return None
        address = (scope.get("client") or ("unknown",))[0]
        caller = hashlib.sha256(_given_key(headers)).hexdigest() if self._settings.keys else address
        if await self._limiter.hit(self._limit, caller):
            return None
        wait = {"retry-after": str(self._limit.get_expiry())}
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"more than {self._limit}", wait)


def scope_of(method: str, path: str) -> ApiScope:
    """The scope a request needs."""
    if path in ADMIN_PATHS or path.startswith(ADMIN_PREFIX):
        return "admin"
    return "feedback" if method == "POST" and path == "/feedback" else "recommend"


def check_address(settings: ServingSettings) -> None:
    """Refuse to listen beyond this machine without keys. Raises BadInput."""
    if settings.keys or settings.open or _is_loopback(settings.host):
        return
    raise BadInput(
        f"{settings.host} is reachable by others and there are no API keys: make one with "
        "`afterclick api-key`, or set AFTERCLICK_SERVING__OPEN=true behind a gateway that checks"
    )


def new_key() -> tuple[str, str]:
    """A new key and its SHA-256: the key is shown once, the hash is what is kept."""
    key = f"ac_{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def _given_key(headers: Headers) -> bytes:
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _origin_refusal(scope: Scope, headers: Headers, allowed: tuple[str, ...]) -> Refusal | None:
    """Browsers let any page open a WebSocket to any host and send its origin: refuse foreign ones."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    if scope["type"] != "websocket" or not origin:
        return None
    if origin in allowed or urlsplit(origin).netloc.encode() == headers.get(b"host", b""):
        return None
    return Refusal(HTTPStatus.FORBIDDEN, "this origin may not connect")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
