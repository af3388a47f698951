"""How many requests a caller may make: counted in this process, or in Redis for all processes together.

reads, writes  redis  limits:* (only where AFTERCLICK_SERVING__LIMIT_SHARED is set)

While Redis is away each process counts for itself.
"""

from __future__ import annotations

import time

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from afterclick.errors import BadInput
from afterclick.settings import RedisSettings

AWAY_S = 1.0
"""How long Redis is left alone after it failed."""


class CallLimit:
    """A moving window per caller."""

    def __init__(self, limit: str, shared: RedisSettings | None = None) -> None:
        """Raises BadInput for a limit that is none, as in 600/minute."""
        try:
            self.item: RateLimitItem = parse(limit)
        except ValueError as error:
            raise BadInput(f"AFTERCLICK_SERVING__LIMIT: {error}; write it as 600/minute") from None
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._shared = MovingWindowRateLimiter(_storage(shared)) if shared else None
        self._away_until = 0.0

    async def allows(self, caller: str) -> bool:
        """Count a request; whether it is within the limit."""
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                return await self._shared.hit(self.item, caller)
            except StorageError:
                self._away_until = time.monotonic() + AWAY_S
        return await self._own.hit(self.item, caller)


def _storage(redis: RedisSettings) -> RedisStorage:
    if redis.cluster:
        raise BadInput("AFTERCLICK_SERVING__LIMIT_SHARED works with one Redis, not with a cluster")
    return RedisStorage(
        f"async+{redis.url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=f"{redis.prefix}limits",
        socket_timeout=redis.timeout_s,
        socket_connect_timeout=redis.timeout_s,
    )
