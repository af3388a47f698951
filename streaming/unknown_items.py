"""Remove items that are not in the catalogue from counts and trends, some time after their events.

reads   topic  items
reads   redis  {p:<topic>:<partition>}:trends
writes  redis  {p:<topic>:<partition>}:counts, :uniques, :ratings, :trends, removed

Clients name items freely: without it every made-up item would stay for ever. Without a catalogue
the items are those of the events, and nothing is removed.
"""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any

import redis
import structlog

from afterclick.io.background import BackgroundLoop
from afterclick.io.kafka_log import read_compacted_keys
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import DAY_MS, Trend
from streaming.connection import redis_client
from streaming.lease import Lease
from streaming.positions import redis_errors, topic_partitions

log = structlog.get_logger()

MAX_REMOVED = 100_000
"""Removed items that are remembered for `reconcile`, the newest."""
_CHECK_S = 60.0
_EVERY_S = 3600.0
_LIMIT_S = 600.0
_SCAN = 1000
_BATCH = 500


class UnknownItems:
    """Removes them while a stream job runs: every hour, and sooner from a partition with many."""

    def __init__(self, settings: Settings, lease: Lease) -> None:
        self._settings, self._lease = settings, lease
        self._client = redis_client(settings)
        self._n_known, self._next_at = 0, -math.inf
        self._loop = BackgroundLoop("unknown-items", self.work, _CHECK_S, limit_s=_LIMIT_S)
        self.start, self.heartbeat = self._loop.start, self._loop.heartbeat

    def close(self) -> None:
        self._loop.stop()
        self._client.close()

    def work(self) -> None:
        """Remove what is due. Raises Unavailable."""
        kafka, keys = self._settings.kafka, self._settings.redis.keys
        partitions = topic_partitions(kafka)
        with redis_errors():
            largest = max(self._client.hlen(keys.trends(*name)) for name in partitions)
        room = self._n_known + self._settings.stream.max_unknown_items
        if time.monotonic() < self._next_at and largest <= room:
            return
        self._next_at = time.monotonic() + _EVERY_S
        known = read_catalogue_ids(self._settings)
        self._n_known = len(known)
        if removed := remove_unknown_items(self._settings, self._client, self._lease, known):
            log.info("unknown items removed", items=removed)


def read_catalogue_ids(settings: Settings) -> set[str]:
    """Ids of the catalogue's items; empty where unknown items are shown. Raises Unavailable."""
    if settings.serving.unknown_items:
        return set()
    keys = read_compacted_keys(settings.kafka, settings.kafka.topics.items)
    return {key.decode(errors="replace") for key in keys}


def removed_items(client: redis.Redis, keys: Keys) -> set[str]:
    """Items that were removed from a partition at some time. Raises redis.RedisError."""
    items: Any = client.zrange(keys.removed_items, 0, -1)
    return {item.decode() for item in items}


def remove_unknown_items(
    settings: Settings, client: redis.Redis, lease: Lease, known: set[str]
) -> int:
    """Remove what is due from every partition; the number of rows. Raises Unavailable.

    `known`: ids of the catalogue; without any nothing is removed. Due are items without an event
    for `stream.unknown_item_days`, and beyond `stream.max_unknown_items` of a partition those whose
    newest event is oldest.
    """
    if not known:
        return 0
    with redis_errors():
        return sum(
            _remove(client, settings.redis.keys, (name, due), lease)
            for name in topic_partitions(settings.kafka)
            if (due := _due(settings, client, name, known))
        )


def _due(
    settings: Settings, client: redis.Redis, name: TopicPartition, known: set[str]
) -> dict[bytes, bytes]:
    """The items to remove from a partition, with their packed trends."""
    stream = settings.stream
    rows: Any = client.hscan_iter(settings.redis.keys.trends(*name), count=_SCAN)
    unknown = {item: row for item, row in rows if item.decode() not in known}
    newest = {item: Trend.unpack(packed).time_ms for item, packed in unknown.items()}
    oldest_first = sorted(unknown, key=lambda item: newest[item])
    excess = len(unknown) - stream.max_unknown_items
    until_ms = time.time() * 1000 - stream.unknown_item_days * DAY_MS
    return {
        item: unknown[item]
        for rank, item in enumerate(oldest_first)
        if rank < excess or newest[item] < until_ms
    }


def _remove(
    client: redis.Redis, keys: Keys, due: tuple[TopicPartition, dict[bytes, bytes]], lease: Lease
) -> int:
    """Remove rows unless an event has changed them meanwhile; remembers the items first."""
    (name, rows), removed = due, 0
    counts, uniques, trends = keys.counts(*name), keys.uniques(*name), keys.trends(*name)
    names = (counts, uniques, trends, lease.key, keys.ratings(*name))
    rest = iter(rows.items())
    while batch := list(islice(rest, _BATCH)):
        client.zadd(keys.removed_items, {item: time.time() for item, _ in batch})
        arguments = [part for row in batch for part in row]
        reply: Any = client.fcall(
            "afterclick_remove_items", len(names), *names, lease.owner, *arguments
        )
        removed += int(reply)
    client.zremrangebyrank(keys.removed_items, 0, -MAX_REMOVED - 1)
    return removed
