"""Rebuild the state from the archives under other keys, then swap it in. The stream resumes
there.

reads   delta  <archive>, <archive>-impressions
writes  redis  forgotten, {u:<user>}:*, {p:<topic>:<partition>}:*, weights
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import redis

from afterclick.errors import StateLocked
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming import positions
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection, load_functions, redis_client
from streaming.exposures import ExposureApplier, ExposureConfig
from streaming.forgotten_users import restore_forgotten
from streaming.lease import NO_LEASE, Lease, hold_lease
from streaming.proof.archive_log import archived_rows, impression_record, record_of
from streaming.weights import record_weights

_BLOCK = 5000


@dataclass(frozen=True)
class Rebuilt:
    """Events applied from the log, and the applied offset per `topic/partition`."""

    events: int
    positions: dict[str, int]


def rebuild(settings: Settings) -> Rebuilt:
    """Rebuild the state.

    Raises StateLocked while a stream job runs, and StateConflict if there is no log.
    """
    with closing(redis_client(settings)) as client:
        load_functions(client)
        keys = settings.redis.keys
        with hold_lease(client, keys, settings.stream.lease_s) as lease:
            archive = EventArchive.open(settings.archive)
            staged = Keys(f"{settings.redis.prefix}rebuilding:")
            _delete(client, staged, "u")
            _delete(client, staged, "p")
            client.delete(staged.forgotten_users)
            restore_forgotten(client, staged, settings.kafka)
            config = replace(ApplyConfig.of(settings, 1), keys=staged, lease=lease)
            applier = Applier(
                config, NodeConnection(settings.redis.client_url), log_holds=no_record
            )
            partitions = positions.topic_partitions(settings.kafka)
            counting = replace(ExposureConfig.of(settings, lease), keys=staged)
            counter = ExposureApplier(counting, NodeConnection(settings.redis.client_url))
            _count_lists(counter, settings)
            events = sum(_apply(applier, counter, archive, partition) for partition in partitions)
            _skip_deleted(client, staged, settings, archive)
            swap(client, staged, keys, lease)
            record_weights(client, keys, settings.stream.signals)
            applied = positions.applied_offsets(client, keys, partitions)
    return Rebuilt(events, {str(name): offset for name, offset in applied.items() if offset >= 0})


def _count_lists(counter: ExposureApplier, settings: Settings) -> None:
    """Count the lists of the archive, before the reactions to them."""
    with suppress(MissingArchive):
        archive = EventArchive.open(settings.impression_archive)
        with KafkaLog(settings.kafka) as log:
            partitions = log.partitions(settings.kafka.topics.impressions)
        for partition in partitions:
            rows = archived_rows(archive, partition)
            while block := list(islice(rows, _BLOCK)):
                counter.apply(partition, [impression_record(row) for row in block])


def _apply(
    applier: Applier, counter: ExposureApplier, archive: EventArchive, partition: TopicPartition
) -> int:
    """Apply one partition's part of the archive; returns the number of its events."""
    topic, number = partition
    rows, count = archived_rows(archive, partition), 0
    while block := list(islice(rows, _BLOCK)):
        count += len(block)
        records = [record_of(row) for row in block]
        for _ in applier.apply(topic, number, records):
            pass
        counter.apply(partition, records)
    return count


def _skip_deleted(
    client: redis.Redis, keys: Keys, settings: Settings, archive: EventArchive
) -> None:
    """Move the offsets past records without a row that the topics no longer hold."""
    with KafkaLog(settings.kafka) as log:
        ranges = log.ranges(*settings.kafka.topics.logged)
    for name, held in ranges.items():
        skipped = {keys.exposed_offset(*name): held.begin - 1}
        if name.topic in settings.kafka.topics.interactions:
            skipped[keys.applied_offset(*name)] = min(archive.offset(name), held.begin - 1)
        for key, offset in skipped.items():
            if offset >= 0:
                client.fcall("afterclick_raise_to", 1, key, str(offset))


def no_record(_: TopicPartition, __: OffsetRange) -> bool:
    """The archive has no row at the offset of a dead letter."""
    return False


def swap(client: redis.Redis, new: Keys, old: Keys, lease: Lease = NO_LEASE) -> None:
    """Replace the state under `old` with the one under `new`.

    The state stays exact if killed at any moment: the keys of one user or partition move in one
    transaction, and no partition has an applied offset before every user has moved, so that the
    next stream starts at the beginning of the log.
    """
    _delete(client, old, "p", lease)
    _delete(client, old, "u", lease)
    client.unlink(old.forgotten_users)
    for kind in "up":
        for keys in _key_groups(client, new, kind):
            names = [key.removeprefix(new.prefix.encode()) for key in keys]
            _move(client, keys, [old.prefix.encode() + name for name in names], lease)
    if client.exists(new.forgotten_users):
        client.rename(new.forgotten_users, old.forgotten_users)


def _delete(client: redis.Redis, keys: Keys, kind: str, lease: Lease = NO_LEASE) -> None:
    for group in _key_groups(client, keys, kind):
        _move(client, group, [b""] * len(group), lease)


def _move(client: redis.Redis, keys: list[bytes], names: list[bytes], lease: Lease) -> None:
    """Rename the keys in one transaction; an empty name deletes. Raises StateLocked."""
    try:
        arguments: Any = (lease.key, *keys, lease.owner, *names)
        client.fcall("afterclick_move", len(keys) + 1, *arguments)
    except redis.ResponseError as error:
        if not str(error).startswith("LEASE"):
            raise
        raise StateLocked(
            "another stream job took the lease: stop it, and run `afterclick rebuild` again"
        ) from None


def _key_groups(client: redis.Redis, keys: Keys, kind: str) -> Iterable[list[bytes]]:
    """The keys of each user (kind u) or partition (kind p)."""
    prefix = "".join(f"\\{c}" if c in "*?[]\\" else c for c in keys.prefix)
    groups: dict[bytes, list[bytes]] = {}
    for key in client.scan_iter(match=f"{prefix}{{{kind}:*", count=5000):
        groups.setdefault(key.rpartition(b"}")[0], []).append(key)
    return groups.values()
