"""Clients of Redis with the user, the password and TLS of the settings.

`RedisSettings.client_url` carries all of them. Two modules create clients of another kind from it:
`streaming.connection` for Spark's workers and `serving.state.history` for one pipelined connection.

reads, writes  redis  whatever the commands read and write
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from afterclick.errors import Unavailable
from afterclick.settings import RedisSettings

_REFUSED = ("WRONGPASS", "NOAUTH", "AUTH ")


def create_redis(settings: RedisSettings, **options: Any) -> redis.Redis:
    """A client of the server or the cluster, with these options of redis-py."""
    kind: Any = redis.RedisCluster if settings.cluster else redis.Redis
    client: redis.Redis = kind.from_url(settings.client_url, **options)
    return client


def create_async_redis(
    settings: RedisSettings, **options: Any
) -> redis.asyncio.Redis | redis.asyncio.RedisCluster:
    """The same for asyncio."""
    kind: Any = redis.asyncio.RedisCluster if settings.cluster else redis.asyncio.Redis
    client: redis.asyncio.Redis | redis.asyncio.RedisCluster = kind.from_url(
        settings.client_url, **options
    )
    return client


def redis_unavailable(error: Exception) -> Unavailable:
    """The error of a command or a connection, with the setting to check after a refusal."""
    return Unavailable(f"Redis: {redis_reason(error)}")


def redis_reason(error: Exception) -> str:
    """What went wrong, and the setting to check if Redis refused the client."""
    text = str(error) or type(error).__name__
    if isinstance(error, redis.AuthenticationError) or text.startswith(_REFUSED):
        return f"it rejects the user name or the password ({text}): check AFTERCLICK_REDIS__URL"
    if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith("NOPERM"):
        return f"{text}: give the user the permissions in docs/operations.md"
    if "certificate verify failed" in text.lower():
        return "its certificate is not trusted: check AFTERCLICK_REDIS__CA_FILE"
    return text
