"""Histories from Redis: one round trip, bounded in time, with a circuit breaker.

reads   redis  {u:<user>}:history
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from afterclick.errors import Unavailable
from afterclick.settings import RedisSettings
from afterclick.state import HistoryEntry
from serving.state.redis_pipe import RedisPipe, is_plain

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


class OnlineStore:
    """Reads per-user history."""

    def __init__(self, settings: RedisSettings, history_length: int) -> None:
        self._keys, self._length = settings.keys, history_length
        plain = not settings.cluster and is_plain(settings.url)
        self._client = (
            RedisPipe(settings.url, settings.timeout_s) if plain else _FullClient(settings)
        )
        self.breaker = CircuitBreaker("Redis")

    async def history(self, user_id: str, n: int | None = None) -> list[HistoryEntry]:
        """A user's events, newest first. Raises Unavailable if Redis does not answer in time."""
        return entries(await self.rows(user_id, n))

    async def rows(self, user_id: str, n: int | None = None) -> Rows:
        """A user's history as stored, to compare with an earlier one. Raises Unavailable."""
        last = (n or self._length) - 1
        rows: Rows = await self._call(
            "ZRANGE", self._keys.history(user_id), 0, last, "REV", "WITHSCORES"
        )
        return rows

    async def ping(self) -> bool:
        """Whether Redis answers in time."""
        try:
            await self._client.call("PING")
        except Unavailable:
            return False
        self.breaker.on_success()
        return True

    async def close(self) -> None:
        await self._client.close()

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
        self._client: Redis | RedisCluster = (
            RedisCluster.from_url(settings.url, **options)
            if settings.cluster
            else Redis.from_url(settings.url, max_connections=64, **options)
        )

    async def call(self, *command: str | int) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._client.execute_command(*command)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"Redis is unavailable: {error}") from error
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
