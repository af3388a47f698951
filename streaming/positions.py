"""Progress of the stream: offset ranges of the log, applied and published offsets.

reads, writes  redis  {p:<topic>:<partition>}:position, :announced, topics, aside, archived
reads          redis  {p:<topic>:<partition>}:attempt
reads          topic  reviews, feedback (offsets only)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from afterclick.errors import LogTruncated, StateConflict
from afterclick.io.kafka_log import KafkaLog, OffsetRange, OffsetRanges
from afterclick.io.redis_clients import redis_unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings
from afterclick.state import LogPosition, TopicPartition

Offsets = dict[str, dict[int, int]]
"""Topic → partition → offset, as Spark's Kafka source takes it."""
AppliedOffsets = dict[TopicPartition, int]
"""Offset of the last applied record; -1: none."""

_START_ANEW = (
    "its offsets now mean other records. To compute the state from the new topic, stop the stream, "
    "empty Redis and move the event archive away"
)


def topic_partitions(kafka: KafkaSettings) -> list[TopicPartition]:
    """Every partition of the interaction topics. Raises Unavailable."""
    with KafkaLog(kafka) as kafka_log:
        return kafka_log.partitions(*kafka.topics.interactions)


def topic_ids(kafka: KafkaSettings) -> dict[str, str]:
    """The id that Kafka gave each interaction topic. Raises Unavailable."""
    with KafkaLog(kafka) as kafka_log:
        return kafka_log.topic_ids(*kafka.topics.interactions)


def log_ranges(kafka: KafkaSettings) -> OffsetRanges:
    """The offsets that each partition of the interaction topics holds. Raises Unavailable."""
    with KafkaLog(kafka) as kafka_log:
        return kafka_log.ranges(*kafka.topics.interactions)


def has_unapplied(kafka: KafkaSettings, ranges: OffsetRanges, applied: AppliedOffsets) -> bool:
    """Whether the ranges hold a record after the applied offsets. Raises Unavailable.

    The lag counts offsets instead, and a transaction's marker is an offset without a record.
    """
    after = {
        name: OffsetRange(max(applied.get(name, -1) + 1, held.begin), held.end)
        for name, held in ranges.items()
    }
    with KafkaLog(kafka) as kafka_log:
        return any(True for _ in kafka_log.read(after))


def partition_count(kafka: KafkaSettings, topic: str) -> int:
    """Number of partitions of a topic. Raises Unavailable if it does not exist."""
    with KafkaLog(kafka) as kafka_log:
        return len(kafka_log.partitions(topic))


def last_attempt(client: redis.Redis, keys: Keys, name: TopicPartition) -> tuple[int, float]:
    """Offset with which a worker last began, and when (epoch seconds). Raises Unavailable."""
    with redis_errors():
        value: Any = client.get(keys.attempt(*name))
    offset, ms = (value or b"-1 0").split()
    return int(offset), int(ms) / 1000


def set_aside(client: redis.Redis, keys: Keys, record: LogPosition) -> None:
    """Let the stream write this record to the dead letters unread. Raises Unavailable."""
    with redis_errors():
        client.sadd(keys.set_aside, str(record))


def set_aside_records(client: redis.Redis, keys: Keys) -> frozenset[LogPosition]:
    """The records that were set aside. Raises Unavailable."""
    with redis_errors():
        members: Any = client.smembers(keys.set_aside)
    return frozenset(LogPosition.parse(member.decode()) for member in members)


def mark_archived(client: redis.Redis, keys: Keys, offsets: AppliedOffsets) -> None:
    """Publish the offset of each partition's last archived record. Raises Unavailable."""
    with redis_errors():
        client.hset(keys.archived, mapping={str(name): at for name, at in offsets.items()})


def check_topics(client: redis.Redis, keys: Keys, kafka: KafkaSettings) -> None:
    """Raise StateConflict if a topic was created anew since its records were applied.

    Stores the id of a topic that is not known yet. Raises Unavailable.
    """
    with KafkaLog(kafka) as kafka_log, redis_errors():
        for topic, topic_id in kafka_log.topic_ids(*kafka.topics.interactions).items():
            known: Any = client.hget(keys.topic_ids, topic)
            if known is None:
                client.hset(keys.topic_ids, topic, topic_id)
            elif known.decode() != topic_id:
                raise StateConflict(f"the topic {topic} was created anew; {_START_ANEW}")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise Unavailable instead of redis.RedisError."""
    try:
        yield
    except redis.RedisError as error:
        raise redis_unavailable(error) from None


def applied_offsets(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition]
) -> AppliedOffsets:
    """The last applied offset of each partition. Raises Unavailable."""
    with redis_errors():
        values = {name: client.get(keys.applied_offset(*name)) for name in partitions}
    return {name: -1 if value is None else int(value) for name, value in values.items()}


def published_offsets(
    client: redis.Redis, keys: Keys, applied: AppliedOffsets
) -> dict[TopicPartition, int]:
    """The offset of each partition up to which `state-changes` has its changes. Raises Unavailable.

    Defaults to the applied offset and stores it.
    """
    with redis_errors():
        values = {name: client.get(keys.published_offset(*name)) for name in applied}
    unknown = {name: applied[name] for name, value in values.items() if value is None}
    mark_published(client, keys, unknown)
    return unknown | {name: int(value) for name, value in values.items() if value is not None}


def mark_published(client: redis.Redis, keys: Keys, offsets: dict[TopicPartition, int]) -> None:
    """Raise each partition's published offset to at least `offsets`. Raises Unavailable."""
    with redis_errors():
        for name, offset in offsets.items():
            client.fcall("afterclick_raise_to", 1, keys.published_offset(*name), str(offset))


def starting_offsets(applied: AppliedOffsets, ranges: OffsetRanges) -> Offsets:
    """The next offset to apply of each partition.

    Raises LogTruncated if retention has deleted unapplied records, and StateConflict if the log
    ends before an applied offset.
    """
    offsets: Offsets = {}
    missing = {}
    for name, held in ranges.items():
        start = applied[name] + 1
        offsets.setdefault(name.topic, {})[name.partition] = start
        if start < held.begin:
            missing[name] = held.begin - start
        if start > held.end:
            raise StateConflict(
                f"{name} ends at offset {held.end}, but the state has applied {start - 1}: "
                f"the topic was created anew or has lost records; {_START_ANEW}"
            )
    if missing:
        counts = ", ".join(f"{count} of {name}" for name, count in missing.items())
        raise LogTruncated(
            f"{sum(missing.values())} events are missing: the log no longer reaches back to "
            f"the state ({counts}); run `afterclick rebuild`"
        )
    return offsets


def resume_offsets(
    applied: AppliedOffsets, published: dict[TopicPartition, int], ranges: OffsetRanges
) -> Offsets:
    """The offset to read each partition from: earlier than the next to apply if changes are
    unpublished.

    Records in between are applied again, which leaves the state unchanged and publishes their
    changes. Raises what starting_offsets raises.
    """
    offsets = starting_offsets(applied, ranges)
    for name, held in ranges.items():
        unpublished = max(published[name] + 1, held.begin)
        offsets[name.topic][name.partition] = min(offsets[name.topic][name.partition], unpublished)
    return offsets
