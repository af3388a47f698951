"""Which requests the pages accept: under their own names, and from their own pages.

The pages act with the API key of the settings for whoever opens them. A page of another site must
therefore neither reach them through a name of its own (DNS rebinding), nor open their socket, nor
show them in a frame. What a page changes, it changes over its socket. Opening a page counts a view
or lists, so a link of another site leads to the page by a link of its own.
"""

from __future__ import annotations

from html import escape
from typing import Final
from urllib.parse import SplitResult, urlsplit

from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterclick.errors import BadInput
from afterclick.io.connections import is_cross_origin, is_loopback
from afterclick.settings import UiSettings

HEALTH: Final = "/health/live"
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        # NiceGUI: scripts inside the page, and Vue templates compiled in the browser
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

_CONTINUE: Final = '<!doctype html><title>Afterclick</title><a href="{}">Continue to Afterclick</a>'


def check_page_address(settings: UiSettings) -> None:
    """Raises BadInput for an address beyond loopback without allowed hosts."""
    if is_loopback(settings.host) or settings.allowed_hosts:
        return
    raise BadInput(
        f"{settings.host} is reachable from other machines, and whoever reaches the pages acts "
        "with their API key: list the host names of the pages in AFTERCLICK_UI__ALLOWED_HOSTS, "
        'such as ["shop.example"], behind a proxy that authenticates'
    )


class PageAccess:
    """ASGI middleware: 403 for another host or origin; security headers on every response."""

    def __init__(self, app: ASGIApp, allowed_hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == HEALTH:
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        headers = dict(scope["headers"])
        reason = self._rejection(headers)
        if reason is None and scope["type"] == "http" and is_cross_origin(headers):
            await HTMLResponse(_link_to(scope), 403)(scope, receive, send_with_headers)
        elif reason is None:
            await self.app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send_with_headers)

    def _rejection(self, headers: dict[bytes, bytes]) -> str | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        parts = _split(f"//{host}")
        name = (parts.hostname if parts else None) or ""
        if name not in self._hosts and not is_loopback(name):
            return "unknown host: add it to AFTERCLICK_UI__ALLOWED_HOSTS"
        origin = headers.get(b"origin")
        if origin is None:
            return None
        page = _split(origin.decode("latin-1").lower())
        return None if page and page.netloc == host else "the pages accept only their own origin"


def _link_to(scope: Scope) -> str:
    """A page with a link to the requested one."""
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    url = "/" + path.lstrip("/\\") + (f"?{query}" if query else "")  # of this host only
    return _CONTINUE.format(escape(url))


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None for a malformed one."""
    try:
        return urlsplit(url)
    except ValueError:
        return None
