"""Redis connections: pipelined calls for Spark workers, a client and the function library for the
job.

reads, writes  redis  whatever the commands read and write
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from afterclick.errors import BadInput
from afterclick.io.redis_clients import create_redis, redis_unavailable
from afterclick.settings import Settings

Command = tuple[str | bytes | int, ...]

# long enough for a server that loads its file, short enough that a dead one does not hang the job
_TIMEOUT_S = 30.0


class Connection(Protocol):
    """Executes commands in one round trip."""

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """The reply of each command, strings as bytes. Raises redis.RedisError."""


class NodeConnection:
    """One server. hiredis packs the commands, one write sends them; reconnects after an error."""

    def __init__(self, url: str) -> None:
        options = {
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
        }
        self._connection: Any = redis.ConnectionPool.from_url(url, **options).make_connection()

    def call(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        try:
            connection.send_packed_command([_pack(commands)])
            replies = [_read_reply(connection) for _ in commands]
        except BaseException:
            connection.disconnect()
            raise
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies


class ClusterConnection:
    """A Redis Cluster, routed by redis-py."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.RedisCluster.from_url(url, socket_timeout=_TIMEOUT_S)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute())


@cache
def connect(url: str, cluster: bool = False) -> Connection:
    """The process's connection to a server. Spark reuses its Python workers, so they reuse this."""
    return ClusterConnection(url) if cluster else NodeConnection(url)


def redis_client(settings: Settings) -> redis.Redis:
    """A client for the job's own commands; times out after 30 s. Raises BadInput for a cluster."""
    refuse_cluster(settings)
    return create_redis(settings.redis, socket_timeout=_TIMEOUT_S, socket_connect_timeout=5)


def refuse_cluster(settings: Settings) -> None:
    """Raise BadInput for a Redis Cluster.

    Exactness rests on one server, whose writes survive a failure in their order: on two shards the
    applied offset of a partition may survive a failover that a user's ledger does not.
    """
    if settings.redis.cluster:
        raise BadInput(
            "AFTERCLICK_REDIS__CLUSTER: the stream writes to one Redis or Valkey server only, "
            "because a cluster may lose writes of one shard; remove the setting and let "
            "AFTERCLICK_REDIS__URL name one server"
        )


def load_functions(client: redis.Redis) -> None:
    """Load both function libraries into every primary of the server. Raises Unavailable."""
    try:
        for name in ("functions.lua", "exposures.lua"):
            source = (files("streaming") / name).read_text()
            if isinstance(client, redis.RedisCluster):
                for node in client.get_primaries():
                    client.execute_command("FUNCTION LOAD", "REPLACE", source, target_nodes=node)
            else:
                client.function_load(source, replace=True)
    except redis.RedisError as error:
        raise redis_unavailable(error) from None


def _pack(commands: Sequence[Command]) -> bytes:
    pack: Any = hiredis.pack_command  # its stub lacks most accepted types
    return b"".join(map(pack, commands))


def _read_reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error
