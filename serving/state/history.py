"""Histories from Redis: one round trip, bounded in time, with a circuit breaker.

reads   redis  {u:<user>}:history, :forgotten, :erased

`RedisPipe` sends all commands of one event-loop iteration in one write over one connection, and
hiredis parses the replies as they arrive: a fifth of the CPU time of a pooled client. An
unresponsive server costs a caller `timeout_s`; a delayed event loop is not mistaken for one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import hiredis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisError

from afterclick.errors import Unavailable
from afterclick.io.redis_clients import create_async_redis, redis_reason
from afterclick.settings import RedisSettings
from afterclick.state import Forgetting, HistoryEntry

log = structlog.get_logger()
Rows = list[bytes]
"""A history as stored: member, event time, member, …; newest first."""
PROBE_INTERVAL_S = 1.0
"""How often an open circuit breaker lets one call through."""
MAX_FAILURES = 3
"""Failures in a row that open a circuit breaker."""


def entries(rows: Rows) -> list[HistoryEntry]:
    """The events in stored rows."""
    return list(map(_entry, rows[::2], rows[1::2]))


@lru_cache(maxsize=16_384)
def _entry(member: bytes, time_ms: bytes) -> HistoryEntry:
    """Cached: each request of a user decodes the same events again."""
    return HistoryEntry.from_member(member, float(time_ms))


def forget_entries() -> None:
    """Drop the decoded events of all users."""
    _entry.cache_clear()


@dataclass
class CircuitBreaker:
    """Opens after `MAX_FAILURES` failures in a row; then one call per `PROBE_INTERVAL_S` is
    allowed."""

    name: str
    failures: int = 0
    _opened_at: float = 0.0

    @property
    def open(self) -> bool:
        return self.failures >= MAX_FAILURES

    def allows(self, now: float) -> bool:
        """Whether to make a call at `now`; while open, the call is the probe."""
        if not self.open:
            return True
        if now - self._opened_at < PROBE_INTERVAL_S:
            return False
        self._opened_at = now
        return True

    def on_failure(self, error: Exception) -> None:
        self.failures += 1
        self._opened_at = time.monotonic()
        if self.failures == MAX_FAILURES:
            log.warning(f"{self.name} is unavailable; continuing without", error=str(error))

    def trip(self, error: Exception) -> None:
        """Open now: the dependency is known to be unavailable."""
        self.failures = max(self.failures, MAX_FAILURES - 1)
        self.on_failure(error)

    def on_success(self) -> None:
        if self.open:
            log.info(f"{self.name} is available again")
        self.failures = 0


class HistorySource(Protocol):
    """Supplies what the request path knows of users."""

    async def rows(self, user_id: str) -> Rows:
        """A user's history as stored. Raises Unavailable."""
        ...


class OnlineStore:
    """Reads per-user history."""

    def __init__(
        self,
        settings: RedisSettings,
        history_length: int,
        forgotten: Mapping[str, int] | None = None,
    ) -> None:
        """`forgotten`: users and the event time ms up to which their events are not returned."""
        self._keys, self._length = settings.keys, history_length
        self._forgotten = {} if forgotten is None else forgotten
        plain = not settings.cluster and is_plain(settings.url)
        self._client = (
            RedisPipe(settings.client_url, settings.timeout_s) if plain else _FullClient(settings)
        )
        self.breaker = CircuitBreaker("Redis")
        self._pinging: asyncio.Future[bool] | None = None
        """The newest PING; its result is kept."""
        self._pinged_at = 0.0

    async def history(self, user_id: str, n: int | None = None) -> list[HistoryEntry]:
        """A user's events, newest first. Raises Unavailable if Redis does not answer in time."""
        return entries(await self.rows(user_id, n))

    async def rows(self, user_id: str, n: int | None = None) -> Rows:
        """A user's history as stored, to compare with an earlier one. Raises Unavailable."""
        last = (n or self._length) - 1
        rows: Rows = await self._call(
            "ZRANGE", self._keys.history(user_id), 0, last, "REV", "WITHSCORES"
        )
        until_ms = self._forgotten.get(user_id)
        return rows if until_ms is None else _since(rows, until_ms)

    async def forgetting(self, user_id: str) -> tuple[int | None, Forgetting | None]:
        """The event time ms up to which a user is forgotten, and the last report. Raises
        Unavailable."""
        names = (self._keys.forgotten(user_id), self._keys.erased(user_id))
        until_ms, report = await self._call("MGET", *names)
        return (
            None if until_ms is None else int(until_ms),
            None if report is None else Forgetting.model_validate_json(report),
        )

    async def _call(self, *command: str | int) -> Any:
        if not self.breaker.allows(time.monotonic()):
            raise Unavailable("Redis is unavailable")
        try:
            reply = await self._client.call(*command)
        except Unavailable as error:
            self.breaker.on_failure(error)
            raise
        self.breaker.on_success()
        return reply

    async def ping(self, max_age_s: float = PROBE_INTERVAL_S) -> bool:
        """Whether Redis answers in time: one PING for all calls within `max_age_s`."""
        now = time.monotonic()
        if self._pinging is None or now - self._pinged_at >= max_age_s:
            self._pinged_at, self._pinging = now, asyncio.ensure_future(self._ping())
        return await asyncio.shield(self._pinging)

    async def _ping(self) -> bool:
        try:
            await self._client.call("PING")
        except Unavailable:
            return False
        self.breaker.on_success()
        return True

    async def close(self) -> None:
        await self._client.close()


def _since(rows: Rows, until_ms: int) -> Rows:
    """The events after a time: rows are newest first."""
    newer = sum(float(time_ms) > until_ms for time_ms in rows[1::2])
    return rows[: 2 * newer]


class _FullClient:
    """redis-py, for TLS and clusters, with the interface of RedisPipe."""

    def __init__(self, settings: RedisSettings) -> None:
        options: dict[str, Any] = {
            "socket_timeout": settings.timeout_s,
            "socket_connect_timeout": settings.timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self._timeout_s = settings.timeout_s
        if not settings.cluster:
            options["max_connections"] = 64
        self._client = create_async_redis(settings, **options)

    async def call(self, *command: str | int) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._client.execute_command(*command)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"Redis is unavailable: {redis_reason(error)}") from error
        return _flat(reply)

    async def close(self) -> None:
        await self._client.aclose()


def _flat(reply: Any) -> Any:
    """Members with scores as the server sends them: redis-py may have paired them."""
    if isinstance(reply, list) and reply and isinstance(reply[0], tuple | list):
        return [
            part if isinstance(part, bytes) else repr(part).encode()
            for pair in reply
            for part in pair
        ]
    return reply


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
    """One pipelined connection, opened on first use and again after a loss."""

    def __init__(self, url: str, timeout_s: float, silent_s: float = SILENT_S) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._connection: RedisConnection | None = None
        self._attempt: asyncio.Task[RedisConnection] | None = None

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

    async def _connected(self) -> RedisConnection:
        """A new connection; concurrent callers share one attempt. Raises Unavailable."""
        if self._attempt is None:
            self._attempt = asyncio.ensure_future(self._connect())
            self._attempt.add_done_callback(self._attempted)
        return await asyncio.shield(self._attempt)

    def _attempted(self, attempt: asyncio.Task[RedisConnection]) -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # retrieved, so that asyncio does not log it

    async def _connect(self) -> RedisConnection:
        fresh = RedisConnection(self._timeout_s, self._silent_s)
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

    async def _open(self, fresh: RedisConnection) -> None:
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


class RedisConnection(asyncio.Protocol):
    """One connection: its commands and, in the same order, the futures of their replies.

    Each connection has its own futures, so that a reply cannot reach a command of another
    connection.
    """

    def __init__(self, timeout_s: float, silent_s: float) -> None:
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        """With the time at which a reply is overdue, which only increases."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the oldest command: a timer per command would take a good part of a call's time."""
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
            raise Unavailable(f"Redis error: {redis_reason(answer)}")
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send(self, command: tuple[str | bytes | int, ...]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        due = loop.time() + self._timeout_s
        if not self._waiting:
            self._silent_since = loop.time()
        self._waiting.append((future, due))
        if self._timer is None:
            self._timer = loop.call_at(due, self._overdue)
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast(Any, command)))
        return future

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _overdue(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GRACE_S, self._fail, loop.time())

    def _fail(self, now: float) -> None:
        """Fail the commands overdue at `now`; they stay in the queue, for their late replies."""
        loop, self._timer = asyncio.get_running_loop(), None
        for future, due in self._waiting:
            if due > now:
                self._timer = loop.call_at(due, self._overdue)
                break
            if not future.done():
                future.set_exception(Unavailable("Redis did not reply in time"))
                silent_s = loop.time() - self._silent_since
                if silent_s > self._silent_s and self._transport is not None:
                    self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._silent_since = asyncio.get_running_loop().time()
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(Unavailable("the connection to Redis was lost"))
