"""The rate limit: requests of each caller, in this process or in Redis for all processes.

reads, writes  redis  limits:* (with AFTERCLICK_SERVING__LIMIT_SHARED, or several workers)

While Redis is down each process limits its own requests.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from afterclick.errors import BadInput
from afterclick.settings import RedisSettings

REDIS_RETRY_S: Final = 1.0
MAX_CALLERS: Final = 200_000
"""Callers counted at a time, some 50 MB; beyond that the caller idle longest is forgotten."""
_EXPIRED_PER_CALL: Final = 2
"""Idle callers removed per call: more than a call adds, so that the counters shrink again."""


class RateLimit:
    """A moving window per caller. The time of a call does not depend on the number of callers."""

    def __init__(self, limit: str, shared: RedisSettings | None = None) -> None:
        """Raises BadInput for a malformed limit; expected e.g. `600/minute`."""
        try:
            self.item: RateLimitItem = parse(limit)
        except ValueError as error:
            raise BadInput(
                f"AFTERCLICK_SERVING__LIMIT: {error}; expected e.g. 600/minute"
            ) from None
        self._local = CallerWindows(self.item.amount, self.item.get_expiry())
        self._shared = MovingWindowRateLimiter(_redis_storage(shared)) if shared else None
        self._retry_at = 0.0

    async def allows(self, caller: str, cost: int = 1) -> bool:
        """Count a request as `cost` requests; whether it is within the limit."""
        if self._shared is not None and time.monotonic() >= self._retry_at:
            try:
                return await self._shared.hit(self.item, caller, cost=cost)
            except StorageError:
                self._retry_at = time.monotonic() + REDIS_RETRY_S
        return self._local.hit(caller, cost)


@dataclass(slots=True)
class _Window:
    """What a caller did in the window from `began` on, and in the one before."""

    began: float
    count: int = 0
    previous: int = 0


class CallerWindows:
    """Sliding window counters: two counts per caller, of at most `max_callers` callers.

    The requests of the last `seconds` are estimated as those of the current window plus the share
    of the previous one that still lies in the last `seconds`, as if they were evenly spread.
    """

    def __init__(
        self,
        amount: int,
        seconds: float,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._amount, self._seconds = amount, seconds
        self._max_callers, self._clock = max_callers, clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, caller: str, cost: int = 1) -> bool:
        """Count `cost` requests if they are within the limit; whether they are."""
        now = self._clock()
        window = self._windows.get(caller)
        if window is None:
            self._make_room(now)
            window = self._windows[caller] = _Window(now)
        else:
            self._windows.move_to_end(caller)
            self._advance(window, now)
        share = 1.0 - (now - window.began) / self._seconds
        if window.previous * share + window.count + cost > self._amount:
            return False
        window.count += cost
        return True

    def _advance(self, window: _Window, now: float) -> None:
        passed = int((now - window.began) / self._seconds)
        if passed:
            window.previous = window.count if passed == 1 else 0
            window.count = 0
            window.began += passed * self._seconds

    def _make_room(self, now: float) -> None:
        """Remove callers that no longer count, and the caller idle longest if all do."""
        for _ in range(_EXPIRED_PER_CALL):
            oldest = next(iter(self._windows.values()), None)
            if oldest is None:
                return
            idle = now - oldest.began >= 2 * self._seconds
            if not idle and len(self._windows) < self._max_callers:
                return
            self._windows.popitem(last=False)


def _redis_storage(redis: RedisSettings) -> RedisStorage:
    if redis.cluster:
        raise BadInput(
            "a rate limit of several processes (AFTERCLICK_SERVING__LIMIT_SHARED, or "
            "AFTERCLICK_SERVING__WORKERS above 1) needs a single Redis, not a cluster"
        )
    return RedisStorage(
        f"async+{redis.client_url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=f"{redis.prefix}limits",
        socket_timeout=redis.timeout_s,
        socket_connect_timeout=redis.timeout_s,
    )
