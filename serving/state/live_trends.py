"""Trends and applied positions in memory, kept up to date behind the stream.

reads   redis  {p:<topic>:<partition>}:position, :counts, :ratings, :trends; approved items
writes  redis  approved items
        topic  state-changes

Each partition's trends are read in one transaction, so they belong to its position. Changes come
from `state-changes`, from where that topic ended before the read. Changes at or below the position
are already in the trends but still forwarded: WebSocket watchers have not seen them. All trends
are read again periodically, after a gap (a notification lost in a crash), and after a change whose
compensations are too many to be sent (`resync`), in a thread; changes go on meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np
import structlog
from confluent_kafka import Message
from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from afterclick.errors import BadEvent, Unavailable
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis, redis_reason, redis_unavailable
from afterclick.settings import Settings
from afterclick.state import LogPosition, StarCounts, StateChange, TopicPartition
from afterclick.trends import HALF_LIVES_MS, TrendTable
from serving.state.kafka_reader import TopicReader

log = structlog.get_logger()
Listener = Callable[[Sequence[StateChange]], None]
RELOAD_S = 600.0
GAP_RELOAD_S = 15.0
RETRY_S = 1.0
MAX_NEW_ITEMS = 100_000
"""Items added since the trends were read, from which they are read again: the stream removes
unknown items from Redis."""
KAFKA_TIMEOUT_S = 5.0
_COLUMNS = 1 + 2 * len(HALF_LIVES_MS)


class StoredTrends(NamedTuple):
    """The trends of all partitions, as stored in Redis."""

    table: TrendTable
    positions: dict[str, int]
    """topic/partition → last applied offset."""
    approved: frozenset[str]
    """Items exempt from quarantine."""


class TrendState:
    """The trend table and its positions. Other threads read both under `lock`."""

    def __init__(self) -> None:
        self.table = TrendTable()
        self.positions: dict[str, int] = {}
        self.approved: frozenset[str] = frozenset()
        self.lock = threading.Lock()
        self.changes = 0
        """Counts modifications."""
        self.gaps = 0
        self.gap_at: float | None = None
        self.loaded_at: float | None = None
        self._forwarded: dict[str, int] = {}
        self._pending: list[StateChange] | None = None

    @property
    def loaded(self) -> bool:
        """Whether trends were read from Redis."""
        return self.loaded_at is not None

    def apply(self, changes: Sequence[StateChange]) -> list[StateChange]:
        """Apply changes; returns those not forwarded before: a restarted stream repeats some."""
        with self.lock:
            if self._pending is not None:
                self._pending += changes
            for change in changes:
                self._apply(change, self.table, self.positions)
            return [change for change in changes if self._is_new(change)]

    def load(self, read: Callable[[], StoredTrends]) -> None:
        """Replace the state by what `read` returns; changes applied meanwhile are applied to it
        too."""
        with self.lock:
            self._pending = []
        try:
            stored = read()
        except BaseException:
            with self.lock:
                self._pending = None
            raise
        with self.lock:
            self.gap_at = None
            for change in self._pending or ():
                self._apply(change, stored.table, stored.positions)
            self._pending = None
            self.table, self.positions, self.approved = stored
            # a recreated log has lower offsets, and its changes are new
            self._forwarded = {
                name: min(offset, stored.positions.get(name, -1))
                for name, offset in self._forwarded.items()
            }
            self.changes += 1
        self.loaded_at = time.monotonic()

    def _apply(self, change: StateChange, table: TrendTable, positions: dict[str, int]) -> None:
        """Apply one change unless the table contains it."""
        partition = f"{change.topic}/{change.partition}"
        position = positions.get(partition, -1)
        if change.offset <= position:
            return
        previous = change.offset - 1 if change.previous_offset is None else change.previous_offset
        if previous > position or change.resync:
            self.gaps += 1
            self.gap_at = self.gap_at or time.monotonic()
        positions[partition] = change.offset
        if change.effect.counts:
            table.apply(change)
        self.changes += 1

    def _is_new(self, change: StateChange) -> bool:
        partition = f"{change.topic}/{change.partition}"
        is_new = change.offset > self._forwarded.get(partition, -1)
        if is_new:
            self._forwarded[partition] = change.offset
        return is_new


class TrendFeed(TrendState):
    """Follows `state-changes`, forwards new changes to `listener`, and reloads the trends when
    due."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        read: Callable[[], StoredTrends] | None = None,
    ) -> None:
        super().__init__()
        self._settings, self._listener = settings, listener
        self.read: Callable[[], StoredTrends] = read or self._read
        self._log = KafkaLog(settings.kafka, KAFKA_TIMEOUT_S)
        self._partitions: list[TopicPartition] = []
        self._tried_at, self._loaded_items = float("-inf"), 0
        self._next: dict[int, int] = {}
        self._loader: threading.Thread | None = None
        self._approving = threading.Lock()
        """Held from a read of the approved items to taking it over: none replaces a newer one."""
        self.reader = TopicReader(
            settings.kafka,
            settings.kafka.topics.state_changes,
            self.on_records,
            self.start_offsets,
            idle=self._reload_if_due,
        )
        self.heartbeat = self.reader.heartbeat

    def start(self) -> None:
        self.reader.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        self.reader.stop(timeout_s)
        if self._loader is not None:
            self._loader.join(timeout_s)
        self._log.close()

    def approve(self, item_id: str, approved: bool) -> None:
        """Exempt an item from quarantine, or no longer. Raises Unavailable.

        Other processes see it within seconds, by `read_approved`.
        """
        key = self._settings.redis.keys.approved
        try:
            with self._approving, closing(_connect(self._settings)) as client:
                (client.sadd if approved else client.srem)(key, item_id)
                self._approve(_names(client.smembers(key)))
        except (RedisError, OSError) as error:
            raise redis_unavailable(error) from None

    def read_approved(self, client: Redis | RedisCluster) -> None:
        """Take over what other processes have approved; nothing while Redis is away."""
        with suppress(RedisError, OSError), self._approving:
            self._approve(_names(client.smembers(self._settings.redis.keys.approved)))

    def _approve(self, approved: frozenset[str]) -> None:
        with self.lock:
            self.changes += approved != self.approved
            self.approved = approved

    def start_offsets(self, ends: Mapping[int, int]) -> Mapping[int, int]:
        """Where to read from: at first from the end, later after the last record read before.

        A partition that was added meanwhile is read from its beginning.
        """
        if self._loader is not None:
            self._loader.join()
        self.reload()
        known = self._next
        self._next = {
            partition: min(end, known.get(partition, 0 if known else end))
            for partition, end in ends.items()
        }
        return dict(self._next)

    def on_records(self, messages: Sequence[Message]) -> None:
        """Apply records of `state-changes` and forward the new ones."""
        changes = []
        for message in messages:
            self._next[message.partition() or 0] = (message.offset() or 0) + 1
            try:
                changes.append(StateChange.decode(message.value() or b""))
            except BadEvent as error:
                log.warning("invalid state change", offset=message.offset(), error=str(error))
        new = self.apply(changes)
        if new:
            self._listener(new)
        self._reload_if_due()

    def reload(self) -> None:
        """Read all trends; keeps the old ones if Redis or Kafka is unavailable."""
        began = time.monotonic()
        try:
            self.load(self.read)
        except (RedisError, OSError, Unavailable) as error:
            log.warning("trends not loaded; trying again", error=redis_reason(error))
            return
        self._loaded_items = len(self.table)
        seconds = round(time.monotonic() - began, 3)
        log.info("trends loaded", items=len(self.table), seconds=seconds)

    def _read(self) -> StoredTrends:
        """The trends of the partitions that the topics have now, or had while Kafka is away."""
        try:
            self._partitions = self._log.partitions(*self._settings.kafka.topics.interactions)
        except Unavailable:
            if not self._partitions:
                raise
        return read_trends(self._settings, self._partitions)

    def _reload_if_due(self) -> None:
        now = time.monotonic()
        stale = self.loaded_at is None or now - self.loaded_at > RELOAD_S
        due = stale or (self.gap_at is not None and now - self.gap_at > GAP_RELOAD_S)
        if len(self.table) - self._loaded_items > MAX_NEW_ITEMS:
            due |= now - self._tried_at > GAP_RELOAD_S
        loading = self._loader is not None and self._loader.is_alive()
        if due and not loading and now - self._tried_at > RETRY_S:
            self._tried_at = now
            self._loader = threading.Thread(target=self.reload, name="trends", daemon=True)
            self._loader.start()


def read_trends(settings: Settings, partitions: Iterable[TopicPartition]) -> StoredTrends:
    """Read the trends of these partitions from Redis. Raises RedisError."""
    table, positions = TrendTable(), {}
    with closing(_connect(settings)) as client:
        for partition in partitions:
            position = _read_partition(client, settings, partition, table)
            if position is not None:
                positions[str(partition)] = position
        approved: Any = client.smembers(settings.redis.keys.approved)
    return StoredTrends(table, positions, _names(approved))


def _names(members: Any) -> frozenset[str]:
    """A set of Redis as text."""
    return frozenset(item.decode() for item in members)


def _read_partition(
    client: Redis | RedisCluster,
    settings: Settings,
    partition: TopicPartition,
    table: TrendTable,
) -> int | None:
    """Merge one partition into the table; returns its position."""
    keys = settings.redis.keys
    pipe = client.pipeline(transaction=True)
    pipe.get(keys.applied_offset(*partition))
    pipe.hgetall(keys.counts(*partition))
    pipe.hgetall(keys.ratings(*partition))
    pipe.hgetall(keys.trends(*partition))
    position, counts, ratings, trends = pipe.execute()
    names = list(trends.keys() | counts.keys())
    values = np.zeros((len(names), _COLUMNS))
    known = [row for row, name in enumerate(names) if name in trends]
    if known:
        raw = b"".join(trends[names[row]] for row in known)
        values[known] = np.frombuffer(raw, "<f8").reshape(-1, _COLUMNS)
    numbers = np.array([int(counts.get(name, 0)) for name in names], np.int64)
    stars = np.zeros((len(names), len(StarCounts._fields)), np.int32)
    for row, name in enumerate(names):
        if name in ratings:
            stars[row] = StarCounts.decode(ratings[name])
    ids = [name.decode() for name in names]
    table.merge_many(ids, values[:, 0], values[:, 1:], numbers, stars)
    return None if position is None else int(position)


def _connect(settings: Settings) -> Redis | RedisCluster:
    return create_redis(settings.redis, socket_timeout=10, socket_connect_timeout=2, protocol=2)


class PositionWaiters:
    """Requests that wait for a log position. Event loop only."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting: dict[LogPosition, set[asyncio.Future[None]]] = {}

    async def reached(self, position: LogPosition, applied: Mapping[str, int]) -> bool:
        """Whether the applied offsets reach `position`, now or within the timeout."""
        if _reached(position, applied):
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(position, set())
        waiting.add(future)
        try:
            async with asyncio.timeout(self.timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(position) is waiting:
                del self._waiting[position]
        return True

    def advance(self, applied: Mapping[str, int]) -> None:
        """Wake the requests whose position is reached."""
        for position, futures in list(self._waiting.items()):
            if _reached(position, applied):
                for future in futures:
                    if not future.done():
                        future.set_result(None)


def _reached(position: LogPosition, applied: Mapping[str, int]) -> bool:
    """`applied`: topic/partition → the last applied offset."""
    return applied.get(f"{position.topic}/{position.partition}", -1) >= position.offset
