"""Authentication: API keys with scopes, user tokens, rate limits, allowed origins.

A user token is valid for one user, the `subject` of the ASGI scope; routes compare every user id
with it. Without keys and token secret the API needs no authentication, and therefore listens on
loopback only (`check_address`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from afterclick.errors import BadInput
from afterclick.io.connections import is_cross_origin, is_loopback, network_of
from afterclick.settings import ApiScope, ServingSettings
from serving.control.api_keys import ApiKeyStore, KeyOwner
from serving.control.rate_limit import RateLimit
from serving.control.user_tokens import UserTokens
from serving.problems import is_json, problem
from serving.request import CALLER

DOCS_ASSETS = "/docs/assets"
DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")
OPEN_PATHS = frozenset(
    {
        "/",
        "/health/live",
        "/health/ready",
        "/docs",
        "/openapi.json",
        "/redoc",
        *(f"{DOCS_ASSETS}/{name}" for name in DOCS_FILES),
    }
)
ADMIN_PATHS = ("/metrics", "/exposure", "/models", "/dead-letters", "/requests", "/ws/live")
ADMIN_PREFIXES = ("/explain/", "/admin/", "/rules", "/experiments", "/tokens", "/keys")
ADMIN_WRITE_PATHS = ("/admin/", "/keys")
"""Closed to pages of other origins; without API keys, open to this machine only, even if the
settings open the API. So is erasing a user."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_BEARER = b"bearer."
_KEY_HEADERS: Final = {b"authorization", b"x-api-key"}
_TOKEN_SCOPES: Final[tuple[ApiScope, ...]] = ("recommend", "feedback")
Headers = dict[bytes, bytes]


@dataclass(frozen=True)
class Rejection:
    """Why a request is rejected."""

    status: int
    detail: str
    headers: dict[str, str] | None = None


_UNCERTAIN = Rejection(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "API keys have not been read from the database yet",
    {"retry-after": "1"},
)
_UNAUTHORIZED = Rejection(
    HTTPStatus.UNAUTHORIZED,
    "an API key or a valid token is required: Authorization: Bearer …",
    {"www-authenticate": 'Bearer realm="afterclick"'},
)
_OTHER_USER = Rejection(HTTPStatus.FORBIDDEN, "this token is for another user")
_OTHER_ORIGIN = Rejection(HTTPStatus.FORBIDDEN, "this origin is not allowed")
_LOCAL_ONLY = Rejection(
    HTTPStatus.FORBIDDEN,
    "without API keys, only this machine may do that: call a loopback address, such as 127.0.0.1",
)
_UNKNOWN_HOST = Rejection(
    HTTPStatus.FORBIDDEN, "unknown host: add it to AFTERCLICK_SERVING__ALLOWED_HOSTS"
)
_NOT_JSON = Rejection(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "without a key, a request that changes something needs content-type: application/json",
)
_MALFORMED = Rejection(HTTPStatus.BAD_REQUEST, "the header Host or Origin is malformed")


class AuthMiddleware:
    """ASGI middleware: 401 without a known key, 403 without its scope, 429 over the rate limit.

    Rejected requests count against their address, so that keys cannot be guessed at any rate. An
    open WebSocket calls `scope["admitted"]` to check that its credentials are still valid. A
    request for several lists calls `scope["charge"]` with the further requests it counts as.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServingSettings,
        keys: ApiKeyStore,
        tokens: UserTokens,
        limit: RateLimit | None = None,
    ) -> None:
        self.app, self._settings, self._limit = app, settings, limit
        self._keys, self._tokens = keys, tokens
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts if settings.open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        rejection = (
            self._check_key(scope, headers)
            or self._check_origin(scope, headers)
            or _check_preflight(scope, headers)
        )
        caller = _address(scope) if rejection else _caller(scope)
        rejection = await self._check_limit(caller) or rejection
        CALLER.set(caller)
        scope["charge"] = partial(self._check_limit, caller)
        if scope["type"] == "websocket":
            scope["admitted"] = lambda: self._check_key(scope, headers) is None
        scope["authenticated"] = rejection is None
        if rejection is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": rejection.detail})
        else:
            response = problem(rejection.status, rejection.detail, rejection.headers)
            await response(scope, receive, send)

    def _check_key(self, scope: Scope, headers: Headers) -> Rejection | None:
        if not self._keys.required:
            if self._keys.uncertain:
                return _UNCERTAIN
            return self._check_local(scope, headers)
        scope["caller"], scopes = self._owner(scope, _credentials(headers))
        if scopes is None:
            return _UNCERTAIN if self._keys.uncertain else _UNAUTHORIZED
        scope["admin"] = "admin" in scopes
        required = required_scope(scope.get("method", "GET"), scope["path"])
        own = _erases_user(scope) and "subject" in scope  # `fast_route` checks that it is the user
        if required not in scopes and "admin" not in scopes and not own:
            return Rejection(HTTPStatus.FORBIDDEN, f"this key has no scope `{required}`")
        return _check_subject(scope)

    def _check_local(self, scope: Scope, headers: Headers) -> Rejection | None:
        """Without keys, a request needs a loopback or allowed host: against DNS rebinding."""
        if self._settings.open and _needs_admin(scope):
            return _LOCAL_ONLY
        host = _split("//" + headers.get(b"host", b"").decode("latin-1"))
        if host is None:
            return _MALFORMED
        name = host.hostname or ""
        if is_loopback(name) or name in self._hosts:
            return None
        return _UNKNOWN_HOST if self._settings.open else _LOCAL_ONLY

    def _check_origin(self, scope: Scope, headers: Headers) -> Rejection | None:
        """Reject pages of other origins where browsers do not: WebSockets, requests without keys.

        Also reads: a list counts as shown.
        """
        keyless = not self._keys.required
        writes = _needs_admin(scope) and scope.get("method") not in SAFE_METHODS
        if not (keyless or writes or scope["type"] == "websocket"):
            return None
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin:
            return _OTHER_ORIGIN if keyless and is_cross_origin(headers) else None
        if origin in self._settings.origins:
            return None
        parts = _split(origin)
        if parts is None:
            return _MALFORMED
        own = parts.netloc.encode("latin-1") == headers.get(b"host", b"")
        return None if own else _OTHER_ORIGIN

    def _owner(self, scope: Scope, key: bytes) -> KeyOwner:
        """Name and scopes of a key or token; a token's user becomes the subject."""
        if not self._tokens.accepted or not _is_token(key):
            return self._keys.find(key)
        user_id = self._tokens.user_of(key)
        if user_id is None:
            return None, None
        scope["subject"] = user_id
        return "token", _TOKEN_SCOPES

    async def _check_limit(self, caller: str, further: int = 0) -> Rejection | None:
        """Count a request, or `further` ones that a request counts as besides the first."""
        if self._limit is None or await self._limit.allows(caller, further or 1):
            return None
        item = self._limit.item
        wait = {"retry-after": str(item.get_expiry())}
        counts = f"; this request counts as {further + 1}" if further else ""
        return Rejection(HTTPStatus.TOO_MANY_REQUESTS, f"more than {item}{counts}", wait)


def required_scope(method: str, path: str) -> ApiScope:
    """The scope that a request needs."""
    if method == "DELETE" or path in ADMIN_PATHS or path.startswith(ADMIN_PREFIXES):
        return "admin"
    changes = path == "/feedback" or path.startswith("/sessions/")
    writes = changes if method == "POST" else method == "PUT"
    return "feedback" if writes else "recommend"


def _erases_user(scope: Scope) -> bool:
    """Whether the request erases a user or ends the user's tokens."""
    return scope.get("method") == "DELETE" and scope["path"].startswith("/users/")


def _needs_admin(scope: Scope) -> bool:
    """Whether the request stays closed where the settings open the API."""
    return scope["path"].startswith(ADMIN_WRITE_PATHS) or _erases_user(scope)


def _check_preflight(scope: Scope, headers: Headers) -> Rejection | None:
    """Reject changes that a browser sends to another origin without asking it: no preflight.

    It asks before it sends JSON or the headers of keys and tokens.
    """
    if scope.get("method", "GET") in SAFE_METHODS or not headers.keys().isdisjoint(_KEY_HEADERS):
        return None
    return None if is_json(headers.get(b"content-type", b"").decode("latin-1")) else _NOT_JSON


def check_address(settings: ServingSettings, has_keys: Callable[[], bool] = lambda: False) -> None:
    """Raises BadInput for an address beyond loopback without keys; `has_keys` is called last."""
    safe = settings.keys or settings.token_secret or settings.require_keys or settings.open
    if safe or is_loopback(settings.host) or has_keys():
        return
    raise BadInput(
        f"{settings.host} is reachable from other machines and there are no API keys: create one "
        "with `afterclick api-key add NAME --setting`, or set AFTERCLICK_SERVING__OPEN=true behind "
        "a gateway that authenticates"
    )


def _credentials(headers: Headers) -> bytes:
    """The key or token. A browser's WebSocket sends no headers: it offers `bearer.TOKEN`."""
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    for protocol in headers.get(b"sec-websocket-protocol", b"").split(b","):
        if protocol.strip().startswith(_BEARER):
            return protocol.strip().removeprefix(_BEARER)
    return headers.get(b"x-api-key", b"")


def _is_token(key: bytes) -> bool:
    """Whether it has the form of a JSON Web Token; API keys contain no dots."""
    return key.count(b".") == 2


def _caller(scope: Scope) -> str:
    """The unit of rate limiting: a token's user, a key, else an address."""
    if subject := scope.get("subject"):
        return f"user:{subject}"
    if name := scope.get("caller"):
        return f"key:{name}"
    return _address(scope)


def _address(scope: Scope) -> str:
    return f"address:{network_of((scope.get('client') or ('unknown',))[0])}"


def _check_subject(scope: Scope) -> Rejection | None:
    """Reject another `user_id` in the query than the token's; `fast_route` checks path and body."""
    subject = scope.get("subject")
    if subject is None:
        return None
    query = scope.get("query_string", b"").decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "user_id" and value != subject:
            return _OTHER_USER
    return None


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None for a malformed one."""
    try:
        return urlsplit(url)
    except ValueError:
        return None
