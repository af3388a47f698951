"""The live state of one user: one round trip to Redis, bounded in time, with a circuit breaker.

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
from serving.state.redis_pipe import RedisPipe, suits

log = structlog.get_logger()
Rows = list[bytes]
"""A history as it is stored: member, event time, member, …; newest first."""


def entries(rows: Rows) -> list[HistoryEntry]:
    """The events in stored rows."""
    return list(map(_entry, rows[::2], rows[1::2]))


@lru_cache(maxsize=16_384)
def _entry(member: bytes, time_ms: bytes) -> HistoryEntry:
    """ResponseCache: with each event of theirs, a user's whole history is read again."""
    return HistoryEntry.from_member(member, float(time_ms))


class OnlineStore:
    """Reads per-user history."""

    def __init__(self, settings: RedisSettings, history_length: int) -> None:
        self._keys, self._length = settings.keys, history_length
        plain = not settings.cluster and suits(settings.url)
        self._client = (
            RedisPipe(settings.url, settings.timeout_s) if plain else _FullClient(settings)
        )
        self.breaker = Breaker("Redis")

    async def history(self, user_id: str, newest: int | None = None) -> list[HistoryEntry]:
        """What the user did, newest first. Raises Unavailable if Redis does not answer in time."""
        return entries(await self.rows(user_id, newest))

    async def rows(self, user_id: str, newest: int | None = None) -> Rows:
        """The history as it is stored: for telling whether it has changed. Raises Unavailable."""
        last = (newest or self._length) - 1
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
        self.breaker.worked()
        return True

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, *command: str | int) -> Any:
        if not self.breaker.allows(time.monotonic()):
            raise Unavailable("Redis is away")
        try:
            answer = await self._client.call(*command)
        except Unavailable as error:
            self.breaker.failed(error)
            raise
        self.breaker.worked()
        return answer


class _FullClient:
    """redis-py, for TLS and clusters: the same call."""

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
                answer = await self._client.execute_command(*command)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"Redis does not answer: {error}") from error
        return _flat(answer)

    async def close(self) -> None:
        await self._client.aclose()


def _flat(answer: Any) -> Any:
    """Members with scores as the server sent them: redis-py may have paired them up."""
    if isinstance(answer, list) and answer and isinstance(answer[0], tuple | list):
        return [
            part if isinstance(part, bytes) else repr(part).encode()
            for pair in answer
            for part in pair
        ]
    return answer


AWAY_S = 1.0
"""How long it is left alone after it failed."""
FAILURES = 3
"""Failures in a row after which it is left alone."""


@dataclass
class Breaker:
    """Remembers that something failed. While open, one request per `AWAY_S` tries again."""

    name: str
    opened: float = 0.0
    failures: int = 0

    @property
    def open(self) -> bool:
        """Whether it is left alone."""
        return self.failures >= FAILURES

    def allows(self, now: float) -> bool:
        if not self.open:
            return True
        if now - self.opened < AWAY_S:
            return False
        self.opened = now  # this request is the probe; the others go on without
        return True

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.opened = time.monotonic()
        if self.failures == FAILURES:
            log.warning(f"{self.name} does not answer; going on without it", error=str(error))

    def gone(self, error: Exception) -> None:
        """It is known to be away: nobody has to find out."""
        self.failures = max(self.failures, FAILURES - 1)
        self.failed(error)

    def worked(self) -> None:
        if self.open:
            log.info(f"{self.name} answers again")
        self.failures = 0
