"""Limits on the connections of an HTTP server: their number, time and bytes of headers.

uvicorn limits none of them before a request is complete. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, ClassVar, Final, Self, cast

from pydantic.networks import IPvAnyNetwork
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from afterclick.settings import ServerSection

READ_S: Final = 30.0
"""How long a client may not read while a response waits for it."""
CLOSE_S: Final = 5.0
"""How long a closed connection may take to send what is left."""
MAX_HOST_LENGTH: Final = 253


def _response(status: HTTPStatus, text: str, headers: str = "") -> bytes:
    """A response of text, after which the connection closes."""
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(text)}\r\n{headers}connection: close\r\n\r\n{text}"
    ).encode()


_OWN_SITES: Final = (b"same-origin", b"none")
"""Values of Sec-Fetch-Site: from a page of the same origin, or from no page, as a bookmark."""
_LOGGER: Final = "uvicorn.error.clients"
_CLIENT_FAULTS: Final = ("Invalid HTTP", "Invalid UTF-8", "Unsupported upgrade")
_BUSY: Final = _response(
    HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", "retry-after: 5\r\n"
)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_TIMEOUT: Final = _response(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
_TOO_LARGE: Final = _response(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the target or the headers are too large"
)


class Slots:
    """How many of something are open: in total and per key, each kind of key with its limit."""

    def __init__(self, **limits: int) -> None:
        """`limits`: the most per key of a kind, as `address=100, total=1000`; 0 for no limit."""
        self._limits = limits
        self._open: Counter[tuple[str, str]] = Counter()
        self.refused = dict.fromkeys(limits, 0)
        """By the kind whose limit was reached."""

    def open(self, kind: str = "total", key: str = "") -> int:
        """How many are open under a key."""
        return self._open[kind, key]

    def take(self, **keys: str) -> str | None:
        """Open one under each key, or none; returns the kind whose limit is reached, if any."""
        for kind, key in keys.items():
            limit = self._limits[kind]
            if limit and self._open[kind, key] >= limit:
                self.refused[kind] += 1
                return kind
        self._open.update(keys.items())
        return None

    def release(self, **keys: str) -> None:
        """Close one under each key."""
        for place in keys.items():
            self._open[place] -= 1
            if not self._open[place]:
                del self._open[place]


@dataclass
class ConnectionLimits:
    """The limits of one server, and what they have refused."""

    slots: Slots
    proxies: tuple[IPvAnyNetwork, ...] = ()
    """Their connections count in total only: behind one address are many clients."""
    header_s: float = 10.0
    body_s: float = 10.0
    read_s: float = READ_S
    max_header_bytes: int = 65_536
    """Of the target and the headers of a request, or of its trailers."""
    timed_out: int = 0
    """Connections closed because the client was too slow."""
    malformed: int = 0
    """Requests that are not HTTP."""

    @classmethod
    def of(cls, server: ServerSection, proxies: tuple[IPvAnyNetwork, ...] = ()) -> Self:
        """The limits that the settings of a server name."""
        return cls(
            Slots(address=server.max_connections_per_address, total=server.max_connections),
            proxies,
            server.header_s,
            server.body_s,
            max_header_bytes=server.max_header_bytes,
        )

    def keys(self, transport: asyncio.BaseTransport) -> dict[str, str]:
        """Under which keys a connection counts."""
        client = get_remote_addr(cast(asyncio.Transport, transport))
        if client is None:  # a Unix socket
            return {"total": ""}
        if self.proxies and any(ipaddress.ip_address(client[0]) in each for each in self.proxies):
            return {"total": ""}
        return {"address": network_of(client[0]), "total": ""}

    def protocols(self) -> dict[str, Any]:
        """Arguments of `uvicorn.Config`: the HTTP and WebSocket protocols with these limits."""
        logger = logging.getLogger(_LOGGER)
        logger.setLevel(logging.WARNING)
        logger.addFilter(_concerns_server)
        return {
            "http": type("LimitedHttp", (LimitedHttpProtocol,), {"limits": self}),
            "ws": type("LimitedWebSocket", (LimitedWebSocketProtocol,), {"limits": self}),
        }


def _concerns_server(line: logging.LogRecord) -> bool:
    """Whether a log line is about the server; those about faults of clients could fill the log."""
    return not str(line.msg).startswith(_CLIENT_FAULTS)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    return len(host) <= MAX_HOST_LENGTH and _is_loopback(host)


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_cross_origin(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another origin makes the request: Sec-Fetch-Site.

    Browsers send it over HTTPS and to this machine.
    """
    return headers.get(b"sec-fetch-site", b"none") not in _OWN_SITES


def network_of(host: str) -> str:
    """The address; for IPv6 its /64 network, all of which one host may use."""
    if ":" in host:
        with suppress(ValueError):
            return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))
    return host


class ResponseWriter:
    """A transport of responses that sends the head together with what follows it.

    uvicorn writes the head and the body one after the other, and each write is a packet.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        """Not sent yet; empty once it is sent."""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Keep the head of a response; send it with the first part of the body."""
        if self._head is None and data != _CONTINUE:
            self._head = data
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)

    def end(self) -> None:
        """Send the head of a response without a body; the next one has a head again."""
        if self._head:
            self._transport.write(self._head)
        self._head = None

    def close(self) -> None:
        """Send what is kept, and close."""
        self.end()
        self._transport.close()


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; ends connections over the limits and those of slow clients.

    The headers of a request must arrive within `header_s` of its first byte, those of the first
    one within `header_s` of the connection, the body within `body_s` after that.

    The parser joins the parts of a header, so bytes are counted as they arrive. A read may hold
    bytes of the request before: the exact size counts once the headers are complete.
    """

    # beyond 30 attributes Python stores them of each instance apart, and every access is slower
    __slots__ = (
        "_arrived",
        "_discards",
        "_header_bytes",
        "_keys",
        "_read_timer",
        "_request_timer",
        "_writer",
    )
    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger(_LOGGER)
        self._keys: dict[str, str] | None = None
        self._arrived: object = None
        """The scope of the request that has arrived last; another one is still arriving."""
        self._header_bytes = 0
        """Received since the headers or a part of a body were last complete."""
        self._discards = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._writer = ResponseWriter(transport)
        keys = self.limits.keys(transport)
        if self.limits.slots.take(**keys) is not None:
            self._close(_BUSY)
            return
        self._keys = keys
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._request_timer = _cancelled(self._request_timer)
        self._read_timer = _cancelled(self._read_timer)
        if self._keys is not None:
            self.limits.slots.release(**self._keys)

    def data_received(self, data: bytes) -> None:
        if self._discards:
            return
        self._header_bytes += len(data)
        began, idle_timer = self.scope, self.timeout_keep_alive_task
        self.timeout_keep_alive_task = None  # uvicorn would cancel it: bare CRLF begin no request
        super().data_received(data)
        if self.scope is began:
            self.timeout_keep_alive_task = idle_timer
        else:
            _cancelled(idle_timer)
        if self._header_bytes > self.limits.max_header_bytes:
            self._reject_headers()
        if self.scope is not self._arrived and self._request_timer is None:
            self._wait_for_request()

    def on_headers_complete(self) -> None:
        """Raises ValueError for too large ones: it ends the parser."""
        limit = self.limits.max_header_bytes
        if self._header_bytes > limit:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limit:
                raise ValueError("the headers are too large")
        self._header_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = cast(asyncio.Transport, self._writer)

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if self._header_bytes > self.limits.max_header_bytes:
            self._reject_headers()
        else:
            self.limits.malformed += 1
            super().send_400_response(msg)

    def on_message_complete(self) -> None:
        self._header_bytes = 0
        super().on_message_complete()
        self._arrived = self.scope
        if self._request_timer is not None:
            self._request_timer = _cancelled(self._request_timer)

    def on_response_complete(self) -> None:
        self._writer.end()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        self._arrived = self.scope
        self._request_timer = _cancelled(self._request_timer)
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(self.limits.read_s, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_timer = _cancelled(self._read_timer)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _wait_for_request(self) -> None:
        self._request_timer = self.loop.call_later(self.limits.header_s, self._without_request)

    def _without_request(self) -> None:
        self._request_timer = None
        arriving = self.scope is not self._arrived
        if arriving and "method" in self.scope:  # the headers are complete
            self._request_timer = self.loop.call_later(self.limits.body_s, self._abort)
            return
        self.limits.timed_out += 1
        self._close(b"" if self._is_responding() or not arriving else _TIMEOUT)

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _reject_headers(self) -> None:
        """Respond, and discard what follows: a client may read only after it has sent."""
        if self._is_responding():
            self._close()
        elif not (self._discards or self.transport.is_closing()):
            self._discards = True
            self.transport.write(_TOO_LARGE)
            self.transport.write_eof()
            self._abort_later()

    def _close(self, response: bytes = b"") -> None:
        """Close after a response and what is still buffered, in any case after `CLOSE_S`."""
        if not self.transport.is_closing():
            self.transport.write(response)
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        _cancelled(self._request_timer)
        self._request_timer = self.loop.call_later(CLOSE_S, self.transport.abort)

    def _abort(self) -> None:
        self.limits.timed_out += 1
        self.transport.abort()


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol; it takes over the slot of the connection that it upgrades."""

    limits: ClassVar[ConnectionLimits]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.logger = logging.getLogger(_LOGGER)
        self._keys = self.limits.keys(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.limits.slots.release(**self._keys)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, in place of a timer that is no longer needed."""
    if timer is not None:
        timer.cancel()
    return None
