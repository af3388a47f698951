"""The stream's connection to Redis: many commands out in one write, their answers back.

reads   redis  whatever the commands read
writes  redis  whatever the commands write
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from afterclick.errors import Unavailable

Command = tuple[str | bytes | int, ...]

# generous: a server that loads its file must not look dead, a dead one must not hang the job for ever
_TIMEOUT_S = 30.0


class Connection(Protocol):
    """Where commands go. One command's answer never waits for another caller's."""

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """The answer of each command, bytes for strings. Raises redis.RedisError for the first failed."""


class NodeConnection:
    """One server. Commands are packed by hiredis and sent in one write; after an error it connects anew."""

    def __init__(self, url: str) -> None:
        retry = Retry(NoBackoff(), 0)
        options = {
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "retry": retry,
        }
        self._connection: Any = redis.ConnectionPool.from_url(url, **options).make_connection()

    def call(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        try:
            connection.send_packed_command([_pack(commands)])
            answers = [_answer(connection) for _ in commands]
        except BaseException:
            connection.disconnect()
            raise
        for answer in answers:
            if isinstance(answer, redis.ResponseError):
                raise answer
        return answers


class ClusterConnection:
    """A Redis Cluster, by redis-py's own routing."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.RedisCluster.from_url(url, socket_timeout=_TIMEOUT_S)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute())


@cache
def connect(url: str, cluster: bool = False) -> Connection:
    """This process's connection to a server. Spark's Python workers live on, and so does their connection."""
    return ClusterConnection(url) if cluster else NodeConnection(url)


def load_functions(client: redis.Redis, source: str) -> None:
    """Put the function library on every primary of the server. Raises Unavailable where it cannot."""
    try:
        if isinstance(client, redis.RedisCluster):
            for node in client.get_primaries():
                client.execute_command("FUNCTION LOAD", "REPLACE", source, target_nodes=node)
        else:
            client.function_load(source, replace=True)
    except redis.RedisError as error:
        raise Unavailable(f"Redis cannot load the stream's functions: {error}") from None


def _pack(commands: Sequence[Command]) -> bytes:
    pack: Any = hiredis.pack_command  # its stub misses most of what it takes
    return b"".join(map(pack, commands))


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error
