"""The live state of one user: one round trip to Redis, bounded in time, with a circuit breaker.

reads   redis  {u:<user>}:history
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from afterclick.errors import Unavailable
from afterclick.settings import RedisSettings
from afterclick.state import HistoryEntry

log = structlog.get_logger()
AWAY_S = 1.0
"""How long Redis is left alone after it failed, so that requests need not each wait for it."""

Rows = list[tuple[bytes, float]]
"""Members of a history and their event times, newest first."""


@dataclass
class Breaker:
    """Remembers that Redis failed. While open, one request per `AWAY_S` tries again."""

    opened: float = 0.0
    failures: int = 0

    def allows(self, now: float) -> bool:
        if not self.failures:
            return True
        if now - self.opened < AWAY_S:
            return False
        self.opened = now  # this request is the probe; the others go on without Redis
        return True

    def failed(self, now: float) -> None:
        self.failures += 1
        self.opened = now

    def worked(self) -> None:
        self.failures = 0


def entries(rows: Rows) -> list[HistoryEntry]:
    """The events in stored rows."""
    return [HistoryEntry.from_member(member, score) for member, score in rows]


class OnlineStore:
    """Reads per-user history."""

    def __init__(self, settings: RedisSettings, history_length: int) -> None:
        self._settings, self._keys, self._length = settings, settings.keys, history_length
        self._client: Redis | RedisCluster = connect(settings)
        self.breaker = Breaker()

    async def history(self, user_id: str, newest: int | None = None) -> list[HistoryEntry]:
        """What the user did, newest first. Raises Unavailable if Redis does not answer in time."""
        return entries(await self.rows(user_id, newest))

    async def rows(self, user_id: str, newest: int | None = None) -> Rows:
        """The history as it is stored: for telling whether it has changed. Raises Unavailable."""
        if not self.breaker.allows(time.monotonic()):
            raise Unavailable("Redis is away")
        key, last = self._keys.history(user_id), (newest or self._length) - 1
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                rows: Any = await self._client.zrange(key, 0, last, desc=True, withscores=True)
        except (RedisError, OSError, TimeoutError) as error:
            if not self.breaker.failures:
                log.warning("Redis does not answer; going on without it", error=repr(error))
            self.breaker.failed(time.monotonic())
            raise Unavailable("Redis does not answer") from error
        if self.breaker.failures:
            log.info("Redis answers again")
            self.breaker.worked()
        return list(rows)

    async def ping(self) -> bool:
        """Whether Redis answers in time."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._client.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        self.breaker.worked()
        return True

    async def close(self) -> None:
        await self._client.aclose()


def connect(settings: RedisSettings) -> Redis | RedisCluster:
    """A client with its own bounded pool. Connects on first use."""
    common: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if settings.cluster:
        return RedisCluster.from_url(settings.url, **common)
    return Redis.from_url(settings.url, max_connections=64, **common)
