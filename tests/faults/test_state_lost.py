"""Redis killed, truncated, flushed or full: the state ends exact, because it holds its own offset.

The control of each is a reader that trusts its memory of its offset, like a stream checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from afterclick.state import TopicPartition
from infra.embedded.server import ValkeyServer
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection, load_functions
from streaming.fault_points import FaultPoints
from streaming.positions import applied_offsets
from tests.streaming.builders import State, apply_config, event, expected, log_of, stored

PLACE = ("reviews", 0)
USERS = [f"user-{n}" for n in range(20)]
EVENTS = [
    event(USERS[n % 20], f"item-{n % 30}", "like", at=n, event_id=str(n)) for n in range(3000)
]
LOG = log_of(EVENTS)
BATCH = 100


@pytest.fixture
def config(own_redis: ValkeyServer) -> ApplyConfig:
    return apply_config(own_redis.address)


@dataclass
class Reader:
    """A minimal stream job: applies a log in batches, restarts after each failure."""

    config: ApplyConfig
    trusts_memory: bool = False
    """Resume from its own memory instead of the applied offset in Redis."""
    at: int = 0

    def start(self) -> Applier:
        with redis.Redis.from_url(self.config.url) as client:
            load_functions(client)
            if not self.trusts_memory:
                partition = TopicPartition(*PLACE)
                applied = applied_offsets(client, self.config.keys, [partition])
                self.at = applied[partition] + 1
        return Applier(self.config, NodeConnection(self.config.url))

    def read(self, until: int, after_batch: Callable[[int], None] = lambda _: None) -> None:
        """Apply up to an offset despite failures; `after_batch` gets the next offset."""
        applier: Applier | None = None
        while self.at < until:
            try:
                applier = applier or self.start()
                list(applier.apply(*PLACE, LOG[self.at : min(self.at + BATCH, until)]))
                self.at = min(self.at + BATCH, until)
            except (redis.RedisError, OSError):
                applier = None
                continue
            after_batch(self.at)


def kill_and_start(server: ValkeyServer) -> None:
    server.kill()
    server.start()


def cut_tail(server: ValkeyServer) -> None:
    """Truncate the last third of the append-only file."""
    server.kill()
    newest = max(
        (server.folder / "data").rglob("*.incr.aof"), key=lambda path: path.stat().st_mtime
    )
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size * 2 // 3)
    server.start()


def flush(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.address) as client:
        client.flushall()


def state(config: ApplyConfig) -> State:
    with redis.Redis.from_url(config.url) as client:
        return stored(client, config.keys, USERS)


def test_five_kills_of_redis_change_nothing(own_redis: ValkeyServer, config: ApplyConfig) -> None:
    kills: list[int] = []

    def kill(at: int) -> None:
        if at // 500 > len(kills) and len(kills) < 5:
            kills.append(at)
            kill_and_start(own_redis)

    Reader(config).read(len(LOG), kill)
    assert len(kills) == 5
    state(config).same_as(expected(EVENTS))


@pytest.mark.parametrize("lose", [cut_tail, flush])
def test_lost_writes_are_applied_again(
    own_redis: ValkeyServer, config: ApplyConfig, lose: Callable[[ValkeyServer], None]
) -> None:
    reader = Reader(config)
    reader.read(2000)
    lose(own_redis)
    reader.read(len(LOG))
    state(config).same_as(expected(EVENTS))


@pytest.mark.parametrize("lose", [cut_tail, flush])
def test_a_reader_that_trusts_its_memory_loses_them(
    own_redis: ValkeyServer, lose: Callable[[ValkeyServer], None]
) -> None:
    unfenced = apply_config(own_redis.address, faults=FaultPoints(fence=False))
    reader = Reader(unfenced, trusts_memory=True)
    reader.read(2000)
    lose(own_redis)
    reader.read(len(LOG))
    assert state(unfenced).counts.total() < len(EVENTS)


@pytest.fixture
def full(own_redis: ValkeyServer, config: ApplyConfig) -> Iterator[redis.Redis]:
    """A Redis with half of the log and no memory left."""
    Reader(config).read(1500)
    with redis.Redis.from_url(own_redis.address) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        yield client


def test_a_full_redis_loses_nothing_once_it_has_memory(
    full: redis.Redis, config: ApplyConfig
) -> None:
    applier = Applier(config, NodeConnection(config.url))
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        list(applier.apply(*PLACE, LOG[1500:]))
    full.config_set("maxmemory", 0)
    Reader(config).read(len(LOG))
    state(config).same_as(expected(EVENTS))


def test_a_reader_that_skips_a_rejected_write_loses_it(
    full: redis.Redis, own_redis: ValkeyServer
) -> None:
    unfenced = apply_config(own_redis.address, faults=FaultPoints(fence=False))
    applier = Applier(unfenced, NodeConnection(unfenced.url))
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        list(applier.apply(*PLACE, LOG[:1500]))
    full.config_set("maxmemory", 0)
    list(applier.apply(*PLACE, LOG[1500:]))
    assert state(unfenced).counts.total() < len(EVENTS)
