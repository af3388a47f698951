"""Where the state stands and where the log begins and ends: from these a job knows where to start.

reads   redis  {p:<topic>:<partition>}:position
        topic  reviews, feedback (offsets only)
"""

from __future__ import annotations

from dataclasses import dataclass

import redis
from confluent_kafka import Consumer, KafkaException, TopicPartition

from afterclick.errors import LogTruncated, StateConflict, Unavailable
from afterclick.keys import Keys
from afterclick.settings import KafkaSettings
from streaming.kafka_source import Offsets

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Span:
    """What the log still holds of a partition: `begin` is its first offset, `end` the next to be written."""

    begin: int
    end: int


Spans = dict[tuple[str, int], Span]


def read_log(kafka: KafkaSettings) -> Spans:
    """First and next offset of each partition of the interaction topics. Raises Unavailable."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "positions", "log_level": 2})
    try:
        spans = {}
        for topic in kafka.topics.interactions:
            for partition in _partitions(consumer, topic):
                begin, end = consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=_TIMEOUT_S
                )
                spans[topic, partition] = Span(begin, end)
        return spans
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic has. Raises Unavailable where there is no such topic."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "positions", "log_level": 2})
    try:
        return len(_partitions(consumer, topic))
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if found.error or not found.partitions:
        raise Unavailable(f"topic {topic} does not exist; `afterclick up` or `ingest` creates it")
    return list(found.partitions)


def read_positions(client: redis.Redis, keys: Keys, spans: Spans) -> dict[tuple[str, int], int]:
    """The last applied offset of each partition, −1 where there is none. Raises Unavailable."""
    try:
        values = [client.get(keys.position(*place)) for place in spans]
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None
    return {place: -1 if value is None else int(value) for place, value in zip(spans, values, strict=True)}


def starting_offsets(positions: dict[tuple[str, int], int], spans: Spans) -> Offsets:
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
        where = ", ".join(f"{count} of {topic}/{partition}" for (topic, partition), count in missing.items())
        raise LogTruncated(
            f"{sum(missing.values())} events are missing: the log no longer reaches back to the state "
            f"({where}); run `afterclick rebuild`"
        )
    return offsets
