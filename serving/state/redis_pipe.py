"""One pipelined connection to a Redis server, for the request path.

All requests of a loop iteration go out in one write, and their answers are parsed by hiredis as they come:
a fifth of the processor time of a pooled client. A wedged server costs a caller `timeout_s`; an event loop
that is late is not taken for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
from redis.connection import parse_url

from afterclick.errors import Unavailable

PENDING = 2000
"""Commands that may wait for their answers; more are refused at once."""
SILENT_S = 2.0
"""A server that says nothing for so long while commands wait may be gone for good: another connection."""
GRACE_S = 0.02
"""After the timeout: one more turn of the loop, in which an answer that lies in the socket is read."""


def suits(url: str) -> bool:
    """Whether the URL is a plain server: TLS and clusters need the full client."""
    return urlsplit(url).scheme in ("redis", "unix")


class RedisPipe:
    """Connects on first use and again after a loss."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._attempt: asyncio.Task[_Connection] | None = None

    async def call(self, *command: str | bytes | int) -> Any:
        """The answer to a command. Raises Unavailable where there is none in time, or an error instead."""
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
        """A new connection: one attempt for all who wait for it, with one outcome. Raises Unavailable."""
        if self._attempt is None:
            self._attempt = asyncio.ensure_future(self._connect())
            self._attempt.add_done_callback(self._attempted)
        return await asyncio.shield(self._attempt)

    def _attempted(self, attempt: asyncio.Task[_Connection]) -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # looked at, also where nobody waits any more

    async def _connect(self) -> _Connection:
        fresh = _Connection(self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._open(fresh)
            self._connection = fresh
            return fresh
        except OSError as error:  # a TimeoutError is one
            raise Unavailable(
                f"Redis cannot be reached: {str(error) or 'no answer in time'}"
            ) from error
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
    """One connection, once: its commands and, in the same order, who waits for their answers.

    A connection after it has its own, so that no answer can reach somebody who asked another one.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._silent_since = 0.0
        self._out: list[bytes] = []

    @property
    def lost(self) -> bool:
        return self._transport is None

    async def call(self, *command: str | bytes | int) -> Any:
        """The answer to a command. Raises Unavailable."""
        if self._transport is None:
            raise Unavailable("the connection to Redis was lost")
        if len(self._waiting) >= PENDING:
            raise Unavailable("Redis is behind: too many commands wait")
        answer = await self._send(command)
        if isinstance(answer, hiredis.HiredisError):
            raise Unavailable(f"Redis refuses: {answer}")
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
        if not future.done():  # its place in the queue stays: the late answer belongs to it
            future.set_exception(Unavailable("Redis does not answer in time"))
            silent_s = asyncio.get_running_loop().time() - self._silent_since
            if silent_s > SILENT_S and self._transport is not None:
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
