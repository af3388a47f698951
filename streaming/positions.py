"""Where the state stands and where the log begins and ends: from these a job knows where to start.

reads   redis  {p:<topic>:<partition>}:position, :announced
writes  redis  {p:<topic>:<partition>}:announced
        topic  reviews, feedback (offsets only)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from afterclick.errors import LogTruncated, StateConflict, Unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings
from streaming.kafka_source import Offsets

_TIMEOUT_S = 10.0
_ELECTION = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)


@dataclass(frozen=True, slots=True)
class Span:
    """What the log still holds of a partition: `begin` is its first offset, `end` the next to be written."""

    begin: int
    end: int


Place = tuple[str, int]
"""Topic and partition."""
Spans = dict[Place, Span]


def places(kafka: KafkaSettings) -> list[Place]:
    """Every partition of the interaction topics. Raises Unavailable."""
    with _consumer(kafka) as consumer:
        return [
            (topic, n) for topic in kafka.topics.interactions for n in _partitions(consumer, topic)
        ]


def read_log(kafka: KafkaSettings) -> Spans:
    """First and next offset of each partition of the interaction topics. Raises Unavailable."""
    with _consumer(kafka) as consumer:
        spans = {}
        for topic in kafka.topics.interactions:
            for partition in _partitions(consumer, topic):
                place = TopicPartition(topic, partition)
                spans[topic, partition] = Span(*_watermarks(consumer, place))
        return spans


def _watermarks(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    """First and next offset. A new topic's broker may not know for a moment that it leads it: ask again."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
            return int(low), int(high)
        except KafkaException as error:
            if error.args[0].code() not in _ELECTION or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic has. Raises Unavailable where there is no such topic."""
    with _consumer(kafka) as consumer:
        return len(_partitions(consumer, topic))


@contextmanager
def _consumer(kafka: KafkaSettings) -> Iterator[Consumer]:
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": "positions", "log_level": 2}
    )
    try:
        yield consumer
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if found.error or not found.partitions:
        raise Unavailable(f"topic {topic} does not exist; `afterclick up` or `ingest` creates it")
    return list(found.partitions)


def read_positions(client: redis.Redis, keys: Keys, of: Iterable[Place]) -> dict[Place, int]:
    """The last applied offset of each partition, −1 where there is none. Raises Unavailable."""
    try:
        values = {place: client.get(keys.applied_offset(*place)) for place in of}
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None
    return {place: -1 if value is None else int(value) for place, value in values.items()}


def announced(client: redis.Redis, keys: Keys, positions: dict[Place, int]) -> dict[Place, int]:
    """The offset of each partition up to which `state-changes` has its changes. Raises Unavailable.

    Where nobody has said so yet, its position: from now on it is known.
    """
    try:
        values = {place: client.get(keys.published_offset(*place)) for place in positions}
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None
    new = {place: positions[place] for place, value in values.items() if value is None}
    announce(client, keys, new)
    return new | {place: int(value) for place, value in values.items() if value is not None}


def announce(client: redis.Redis, keys: Keys, offsets: dict[Place, int]) -> None:
    """Say that `state-changes` has the changes of each partition up to an offset. Raises Unavailable."""
    try:
        for place, offset in offsets.items():
            client.fcall("afterclick_raise_to", 1, keys.published_offset(*place), str(offset))
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None


def lag(positions: dict[Place, int], spans: Spans) -> int:
    """How many records of the log the state has not applied yet."""
    return sum(
        span.end - 1 - max(positions[place], span.begin - 1) for place, span in spans.items()
    )


def starting_offsets(positions: dict[Place, int], spans: Spans) -> Offsets:
    """The next offset to apply of each partition.

    Raises LogTruncated where the log no longer reaches back to a position, and StateConflict where it ends
    before one.
    """
    offsets: Offsets = {}
    missing = {}
    for (topic, partition), span in spans.items():
        start = positions[topic, partition] + 1
        offsets.setdefault(topic, {})[partition] = start
        if start < span.begin:
            missing[topic, partition] = span.begin - start
        if start > span.end:
            raise StateConflict(
                f"{topic}/{partition} ends at offset {span.end}, but the state has applied {start - 1}: the "
                "topic was made anew; run `afterclick rebuild`, or take an empty Redis"
            )
    if missing:
        where = ", ".join(
            f"{count} of {topic}/{partition}" for (topic, partition), count in missing.items()
        )
        raise LogTruncated(
            f"{sum(missing.values())} events are missing: the log no longer reaches back to the state "
            f"({where}); run `afterclick rebuild`"
        )
    return offsets


def resume_offsets(
    positions: dict[Place, int], announced: dict[Place, int], spans: Spans
) -> Offsets:
    """The offset to read each partition from: before its position where `state-changes` may lack changes.

    What stands between is applied again, which changes nothing in the state; its changes are sent again.
    Raises what starting_offsets raises.
    """
    offsets = starting_offsets(positions, spans)
    for (topic, partition), span in spans.items():
        again = max(announced[topic, partition] + 1, span.begin)
        offsets[topic][partition] = min(offsets[topic][partition], again)
    return offsets
