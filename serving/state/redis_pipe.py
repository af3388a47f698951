"""One pipelined connection to a Redis server, for the request path.

All commands of one event-loop iteration go out in one write, and hiredis parses the replies as
they arrive: a fifth of the CPU time of a pooled client. An unresponsive server costs a caller
`timeout_s`; a delayed event loop is not mistaken for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
from redis.connection import parse_url

from afterclick.errors import Unavailable

MAX_PENDING = 2000
"""Commands awaiting a reply; further ones fail immediately."""
SILENT_S = 2.0
"""Reconnect if the server sends nothing for this long while commands wait."""
GRACE_S = 0.02
"""Added to the timeout: one more loop iteration, to read a reply that is in the socket already."""


def is_plain(url: str) -> bool:
    """Whether the URL needs no TLS, for which redis-py is used."""
    return urlsplit(url).scheme in ("redis", "unix")


class RedisPipe:
    """Connects on first use and again after a loss."""

    def __init__(self, url: str, timeout_s: float, silent_s: float = SILENT_S) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._connection: _Connection | None = None
        self._attempt: asyncio.Task[_Connection] | None = None

    async def call(self, *command: str | bytes | int) -> Any:
        """The reply to a command. Raises Unavailable without a reply in time, or for an error."""
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._connected()
        return await connection.call(*command)

    async def close(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> _Connection:
        """A new connection; concurrent callers share one attempt. Raises Unavailable."""
        if self._attempt is None:
            self._attempt = asyncio.ensure_future(self._connect())
            self._attempt.add_done_callback(self._attempted)
        return await asyncio.shield(self._attempt)

    def _attempted(self, attempt: asyncio.Task[_Connection]) -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # retrieved, so that asyncio does not log it

    async def _connect(self) -> _Connection:
        fresh = _Connection(self._timeout_s, self._silent_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._open(fresh)
            self._connection = fresh
            return fresh
        except OSError as error:  # a TimeoutError is one
            reason = str(error) or "no reply in time"
            raise Unavailable(f"cannot connect to Redis: {reason}") from error
        finally:
            if self._connection is not fresh:
                fresh.close()

    async def _open(self, fresh: _Connection) -> None:
        loop, options = asyncio.get_running_loop(), self._options
        if "path" in options:
            await loop.create_unix_connection(lambda: fresh, options["path"])
        else:
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            await loop.create_connection(lambda: fresh, host, port)
        if "password" in options:
            user = [options["username"]] if "username" in options else []
            await fresh.call("AUTH", *user, options["password"])
        if options.get("db"):
            await fresh.call("SELECT", int(options["db"]))


class _Connection(asyncio.Protocol):
    """One connection: its commands and, in the same order, the futures of their replies.

    Each connection has its own futures, so that a reply cannot reach a command of another
    connection.
    """

    def __init__(self, timeout_s: float, silent_s: float) -> None:
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._silent_since = 0.0
        self._out: list[bytes] = []

    @property
    def lost(self) -> bool:
        return self._transport is None

    async def call(self, *command: str | bytes | int) -> Any:
        """The reply to a command. Raises Unavailable."""
        if self._transport is None:
            raise Unavailable("the connection to Redis was lost")
        if len(self._waiting) >= MAX_PENDING:
            raise Unavailable("too many commands are waiting for Redis")
        answer = await self._send(command)
        if isinstance(answer, hiredis.HiredisError):
            raise Unavailable(f"Redis error: {answer}")
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send(self, command: tuple[str | bytes | int, ...]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            self._silent_since = loop.time()
        self._waiting.append(future)
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast(Any, command)))
        timer = loop.call_later(self._timeout_s, self._overdue, future)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _overdue(self, future: asyncio.Future[Any]) -> None:
        asyncio.get_running_loop().call_later(GRACE_S, self._fail, future)

    def _fail(self, future: asyncio.Future[Any]) -> None:
        if not future.done():  # it stays in the queue, for the late reply
            future.set_exception(Unavailable("Redis did not reply in time"))
            silent_s = asyncio.get_running_loop().time() - self._silent_since
            if silent_s > self._silent_s and self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._silent_since = asyncio.get_running_loop().time()
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(Unavailable("the connection to Redis was lost"))
