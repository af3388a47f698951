"""Read dead letters, and send them to their topics again once the cause is fixed.

reads   topic  <topic>.dlq
writes  topic  reviews, feedback, impressions (redrive)

Redriving is safe to repeat: it continues after the last one, an event that was applied is
recognised by its id, and one that is still malformed becomes a dead letter again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from afterclick.io.kafka_clients import python_consumer, python_producer, python_unavailable
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

_GROUP = "afterclick-redrive"
_TIMEOUT_MS = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected record, its position and the reason."""

    topic: str
    partition: int
    offset: int
    stage: str
    error: str
    time_ms: int
    dlq_offset: int
    key: bytes | None
    value: bytes | None
    sha256: str | None = None
    """Of the rejected value, where this is a stub with its first KB."""


def read_dead_letters(kafka: KafkaSettings) -> Iterator[DeadLetter]:
    """Every dead letter, oldest first per topic. Raises Unavailable."""
    with _consumer(kafka) as consumer:
        for partition in _partitions(kafka):
            first = consumer.beginning_offsets([partition])[partition]
            for record in _records(consumer, partition, first):
                yield _dead_letter(record)


def count_by_error(dead_letters: Iterator[DeadLetter]) -> dict[str, Counter[str]]:
    """Topic → error → number of dead letters."""
    counts: dict[str, Counter[str]] = {}
    for dead_letter in dead_letters:
        counts.setdefault(dead_letter.topic, Counter())[dead_letter.error] += 1
    return counts


def redrive(kafka: KafkaSettings, containing: str = "") -> int:
    """Send the dead letters since the last redrive whose error contains a text; returns their
    number.

    Those filtered out are not sent by a later redrive either, nor are stubs. Raises Unavailable.
    """
    sent = 0
    with _consumer(kafka, _GROUP) as consumer:
        producer = python_producer(kafka, acks="all")
        for partition in _partitions(kafka):
            begin = consumer.beginning_offsets([partition])[partition]
            first = max(begin, consumer.committed(partition) or 0)
            for record in _records(consumer, partition, first):
                dead_letter = _dead_letter(record)
                if containing in dead_letter.error and dead_letter.sha256 is None:
                    producer.send(
                        dead_letter.topic, value=dead_letter.value, key=dead_letter.key
                    ).get(timeout=30)
                    sent += 1
            consumer.commit()
        producer.close()
    return sent


def _partitions(kafka: KafkaSettings) -> list[TopicPartition]:
    return [TopicPartition(dlq(topic), 0) for topic in kafka.topics.logged]


@contextmanager
def _consumer(kafka: KafkaSettings, group: str | None = None) -> Iterator[KafkaConsumer]:
    try:
        consumer = python_consumer(kafka, group_id=group, enable_auto_commit=False)
        try:
            yield consumer
        finally:
            consumer.close()
    except KafkaError as error:
        raise python_unavailable(kafka, error) from None


def _records(consumer: KafkaConsumer, partition: TopicPartition, first: int) -> Iterator[Any]:
    """The records of a partition from an offset to its current end."""
    end = consumer.end_offsets([partition])[partition]
    consumer.assign([partition])
    consumer.seek(partition, first)
    while consumer.position(partition) < end:
        for records in consumer.poll(timeout_ms=_TIMEOUT_MS).values():
            yield from records


def _dead_letter(record: Any) -> DeadLetter:
    headers = {name: value.decode() for name, value in record.headers}
    return DeadLetter(
        topic=headers["topic"],
        partition=int(headers["partition"]),
        offset=int(headers["offset"]),
        stage=headers["stage"],
        error=headers["error"],
        time_ms=record.timestamp,
        dlq_offset=record.offset,
        key=record.key,
        value=record.value,
        sha256=headers.get("sha256"),
    )
