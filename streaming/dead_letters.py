"""Look at dead letters, and send them to their topics again once what refused them is mended.

reads   topic  <topic>.dlq
writes  topic  reviews, feedback (redrive)

Redriving is safe to repeat: it goes on where the last one stopped, an event that did count is known by id,
and one that is still poison becomes a dead letter again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

_GROUP = "afterclick-redrive"
_TIMEOUT_MS = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was refused, where it stood, and why."""

    topic: str
    partition: int
    offset: int
    stage: str
    error: str
    time_ms: int
    dlq_offset: int
    key: bytes | None
    value: bytes | None


def read(kafka: KafkaSettings) -> Iterator[DeadLetter]:
    """Every dead letter held, oldest first per topic. Raises Unavailable."""
    with _consumer(kafka) as consumer:
        for place in _places(kafka):
            for record in _records(consumer, place, consumer.beginning_offsets([place])[place]):
                yield _letter(record)


def count(letters: Iterator[DeadLetter]) -> dict[str, Counter[str]]:
    """How many per topic and error."""
    found: dict[str, Counter[str]] = {}
    for letter in letters:
        found.setdefault(letter.topic, Counter())[letter.error] += 1
    return found


def redrive(kafka: KafkaSettings, containing: str = "") -> int:
    """Send the dead letters that no redrive has sent yet, whose error contains a text; returns how many.

    Those left out by the text stay left out. Raises Unavailable.
    """
    sent = 0
    with _consumer(kafka, _GROUP) as consumer:
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap.split(","), acks="all")
        for place in _places(kafka):
            first = max(consumer.beginning_offsets([place])[place], consumer.committed(place) or 0)
            for record in _records(consumer, place, first):
                letter = _letter(record)
                if containing in letter.error:
                    producer.send(letter.topic, value=letter.value, key=letter.key).get(timeout=30)
                    sent += 1
            consumer.commit()
        producer.close()
    return sent


def _places(kafka: KafkaSettings) -> list[TopicPartition]:
    return [TopicPartition(dlq(topic), 0) for topic in kafka.topics.interactions]


@contextmanager
def _consumer(kafka: KafkaSettings, group: str | None = None) -> Iterator[KafkaConsumer]:
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=kafka.bootstrap.split(","), group_id=group, enable_auto_commit=False
        )
        try:
            yield consumer
        finally:
            consumer.close()
    except KafkaError as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error}") from None


def _records(consumer: KafkaConsumer, place: TopicPartition, first: int) -> Iterator[Any]:
    """The records of a partition from an offset to its present end."""
    end = consumer.end_offsets([place])[place]
    consumer.assign([place])
    consumer.seek(place, first)
    while consumer.position(place) < end:
        for records in consumer.poll(timeout_ms=_TIMEOUT_MS).values():
            yield from records


def _letter(record: Any) -> DeadLetter:
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
    )
