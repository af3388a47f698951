"""Heartbeats of processes without HTTP: they write them to Redis, the API and health checks read
them.

reads, writes  redis  heartbeats

Stored is when the next turn of a loop is due: the age of a suspended process grows, too.
A process that ends in order removes its heartbeats; one that was killed leaves them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import redis

from afterclick.errors import Unavailable
from afterclick.io.background import BackgroundLoop, Heartbeat, HeartbeatMonitor
from afterclick.io.redis_clients import create_redis, redis_unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import Settings

_WRITE_S = 1.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class StoredHeartbeat:
    """A loop of another process, as of when it last wrote."""

    name: str
    """`process/loop`."""
    due: float | None
    """Epoch seconds at which its next turn is due; None: not until it is woken."""
    limit_s: float

    @property
    def age_s(self) -> float:
        """Seconds since the next turn was due; 0 while none is."""
        return 0.0 if self.due is None else max(0.0, time.time() - self.due)

    @property
    def frozen(self) -> bool:
        return self.age_s > self.limit_s


class HeartbeatWriter:
    """Logs frozen loops of this process, and writes their heartbeats once a second."""

    def __init__(self, settings: Settings, process: str, heartbeats: Sequence[Heartbeat]) -> None:
        self._key, self._process = settings.redis.keys.heartbeats, process
        self._client = create_redis(
            settings.redis, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        self.monitor = HeartbeatMonitor(heartbeats)
        self._loop = BackgroundLoop("heartbeats", self.write, _WRITE_S)
        self.start = self._loop.start

    def write(self) -> None:
        """Write all heartbeats. Raises Unavailable."""
        self.monitor.check()
        now = time.time()
        loops = {
            beat.name: (None if math.isinf(beat.due_in_s) else now + beat.due_in_s, beat.limit_s)
            for beat in self.monitor.heartbeats
        }
        try:
            self._client.hset(self._key, self._process, orjson.dumps(loops).decode())
        except redis.RedisError as error:
            raise redis_unavailable(error) from None

    def close(self) -> None:
        """Stop, and remove the heartbeats: the process ends in order."""
        self._loop.stop()
        with suppress(redis.RedisError):
            self._client.hdel(self._key, self._process)
        self._client.close()


def read_heartbeats(client: redis.Redis, keys: Keys) -> list[StoredHeartbeat]:
    """The loops of all processes that write heartbeats. Raises Unavailable."""
    try:
        stored: Any = client.hgetall(keys.heartbeats)
    except redis.RedisError as error:
        raise redis_unavailable(error) from None
    try:
        return [
            StoredHeartbeat(f"{process.decode()}/{name}", due, limit_s)
            for process, loops in sorted(stored.items())
            for name, (due, limit_s) in orjson.loads(loops).items()
        ]
    except (ValueError, AttributeError) as error:
        raise Unavailable(f"heartbeats in Redis cannot be read: {error}") from None
