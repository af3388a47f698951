"""Trends and positions in memory, kept current behind the stream.

reads   redis  {p:<topic>:<partition>}:position, :counts, :trends; lifted
writes  redis  lifted
        topic  state-changes

The snapshot of a partition is read in one transaction, so its numbers belong to its position. Changes come
from `state-changes`, begun where that topic ended before the snapshot; those at or below the position are
in the snapshot already, and are heard of all the same: whoever watches has not seen them. The whole is read
again now and then, and after a gap (a dead letter, or a change whose notification was lost in a crash), in a
thread of its own: changes go on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import structlog
from confluent_kafka import Message
from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from afterclick.errors import BadEvent, Unavailable
from afterclick.settings import Settings
from afterclick.state import StateChange
from afterclick.trends import HALF_LIVES_MS, TrendTable
from serving.state.kafka_reader import TopicReader

log = structlog.get_logger()
Listener = Callable[[Sequence[StateChange]], None]
RESYNC_S = 600.0
GAP_RESYNC_S = 15.0
AGAIN_S = 1.0
_COLUMNS = 1 + 2 * len(HALF_LIVES_MS)


class TrendFeed:
    """Owns the TrendTable. `table` and `positions` are read under `lock` by other threads."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self._settings, self._listener = settings, listener
        self._topics, self._keys = settings.kafka.topics, settings.redis.keys
        self.table = TrendTable()
        self.positions: dict[str, int] = {}
        self.lifted: frozenset[str] = frozenset()
        self.lock = threading.Lock()
        self.changes = 0
        self.gaps = 0
        self._loaded_at: float | None = None
        self._gap_at: float | None = None
        self._tried_at = float("-inf")
        self._heard: dict[str, int] = {}
        self._next: dict[int, int] = {}
        self._meanwhile: list[StateChange] | None = None
        self._loader: threading.Thread | None = None
        self.reader = TopicReader(
            settings.kafka.bootstrap,
            self._topics.state_changes,
            self._read,
            self._start_at,
            idle=self._idle,
        )

    @property
    def loaded(self) -> bool:
        """Whether the state of Redis is in the table."""
        return self._loaded_at is not None

    def start(self) -> None:
        self.reader.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        self.reader.stop(timeout_s)
        if self._loader is not None:
            self._loader.join(timeout_s)

    def lift(self, item_id: str, lifted: bool) -> None:
        """Let new accounts' votes on an item count whatever they are, or no more. Raises Unavailable.

        Other processes see it with their next snapshot.
        """
        try:
            with closing(_connect(self._settings)) as client:
                (client.sadd if lifted else client.srem)(self._keys.approved, item_id)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}") from None
        with self.lock:
            self.lifted = self.lifted | {item_id} if lifted else self.lifted - {item_id}
            self.changes += 1

    def _start_at(self, ends: Mapping[int, int]) -> Mapping[int, int]:
        if self._loader is not None:
            self._loader.join()
        self._load()
        # not from the end where it has read before: what came while it did not is news to those who watch
        return {
            partition: min(end, self._next.get(partition, end)) for partition, end in ends.items()
        }

    def _idle(self) -> None:
        now = time.monotonic()
        stale = self._loaded_at is None or now - self._loaded_at > RESYNC_S
        due = stale or (self._gap_at is not None and now - self._gap_at > GAP_RESYNC_S)
        loading = self._loader is not None and self._loader.is_alive()
        if due and not loading and now - self._tried_at > AGAIN_S:
            self._tried_at = now
            self._loader = threading.Thread(target=self._load, name="trends", daemon=True)
            self._loader.start()

    def _read(self, messages: Sequence[Message]) -> None:
        fresh: list[StateChange] = []
        with self.lock:
            for message in messages:
                self._next[message.partition() or 0] = (message.offset() or 0) + 1
                try:
                    change = StateChange.decode(message.value() or b"")
                except BadEvent as error:
                    log.warning("no valid state change", offset=message.offset(), error=str(error))
                    continue
                if self._meanwhile is not None:
                    self._meanwhile.append(change)
                self._apply(change, self.table, self.positions)
                if self._is_news(change):
                    fresh.append(change)
        if fresh:
            self._listener(fresh)
        self._idle()

    def _is_news(self, change: StateChange) -> bool:
        """Whether it was not heard of before; a stream that crashed may tell it twice."""
        partition = f"{change.topic}/{change.partition}"
        news = change.offset > self._heard.get(partition, -1)
        if news:
            self._heard[partition] = change.offset
        return news

    def _apply(self, change: StateChange, table: TrendTable, positions: dict[str, int]) -> None:
        """Move the table by one change, if it is not in it already."""
        partition = f"{change.topic}/{change.partition}"
        position = positions.get(partition, -1)
        if change.offset <= position:
            return
        if change.offset > position + 1:
            self.gaps += 1
            self._gap_at = self._gap_at or time.monotonic()
        positions[partition] = change.offset
        if change.effect.counts:
            table.apply(change)
        self.changes += 1

    def _load(self) -> None:
        """Read the whole state. Leaves the old one where Redis does not answer."""
        began = time.monotonic()
        with self.lock:
            self._meanwhile = []
        try:
            table, positions, lifted = self._snapshot()
        except (RedisError, OSError) as error:
            with self.lock:
                self._meanwhile = None
            log.warning("trends not loaded; trying again", error=repr(error))
            return
        with self.lock:
            # not behind what the feed had applied when it began: the stream writes Redis first
            self._gap_at = None
            for change in self._meanwhile or ():
                self._apply(change, table, positions)
            self._meanwhile = None
            self.table, self.positions, self.lifted = table, positions, lifted
            # a log that was begun anew has lower offsets, and they are news
            self._heard = {p: min(heard, positions.get(p, -1)) for p, heard in self._heard.items()}
            self.changes += 1
        self._loaded_at = time.monotonic()
        log.info("trends loaded", items=len(table), seconds=round(time.monotonic() - began, 3))

    def _snapshot(self) -> tuple[TrendTable, dict[str, int], frozenset[str]]:
        table, positions = TrendTable(), {}
        client = _connect(self._settings)
        try:
            for topic in self._topics.interactions:
                for partition in range(self._settings.kafka.partitions):
                    position = self._read_partition(client, topic, partition, table)
                    if position is not None:
                        positions[f"{topic}/{partition}"] = position
            lifted: Any = client.smembers(self._keys.approved)
        finally:
            client.close()
        return table, positions, frozenset(item.decode() for item in lifted)

    def _read_partition(
        self, client: Redis | RedisCluster, topic: str, partition: int, table: TrendTable
    ) -> int | None:
        pipe = client.pipeline(transaction=True)
        pipe.get(self._keys.applied_offset(topic, partition))
        pipe.hgetall(self._keys.counts(topic, partition))
        pipe.hgetall(self._keys.trends(topic, partition))
        position, counts, trends = pipe.execute()
        names = list(trends.keys() | counts.keys())
        values = np.zeros((len(names), _COLUMNS))
        known = [i for i, name in enumerate(names) if name in trends]
        if known:
            raw = b"".join(trends[names[i]] for i in known)
            values[known] = np.frombuffer(raw, "<f8").reshape(-1, _COLUMNS)
        numbers = np.array([int(counts.get(name, 0)) for name in names], np.int64)
        table.merge_many([n.decode() for n in names], values[:, 0], values[:, 1:], numbers)
        return None if position is None else int(position)


def _connect(settings: Settings) -> Redis | RedisCluster:
    kind = RedisCluster if settings.redis.cluster else Redis
    return kind.from_url(
        settings.redis.url, socket_timeout=10, socket_connect_timeout=2, protocol=2
    )
