"""Dead letters are counted, read and redriven."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition

from afterclick.settings import Settings
from streaming.proof.dead_letters import count_by_error, read_dead_letters, redrive
from streaming.records import Record, dead_letter


@pytest.fixture
def rejected(settings: Settings) -> Settings:
    """Three dead letters of feedback: two with one error, one with another."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    topic = settings.kafka.topics.feedback
    for offset, error in enumerate(("time: too far", "time: too far", "id: missing")):
        letter = dead_letter(topic, 1, Record(offset, b"key", b"raw-%d" % offset, 1.0), error)
        producer.produce(
            letter.topic, key=letter.key, value=letter.value, headers=list(letter.headers)
        )
    assert producer.flush(20) == 0
    return settings


def sent_again(settings: Settings) -> set[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, group_id=None)
    places = [TopicPartition(settings.kafka.topics.feedback, n) for n in range(2)]
    consumer.assign(places)
    consumer.seek_to_beginning()
    left, values = sum(consumer.end_offsets(places).values()), set()
    while left:
        for records in consumer.poll(timeout_ms=500).values():
            values |= {record.value for record in records}
            left -= len(records)
    consumer.close()
    return values


def test_dead_letters_are_counted_by_error_and_name_their_position(rejected: Settings) -> None:
    dead_letters = list(read_dead_letters(rejected.kafka))
    topic = rejected.kafka.topics.feedback
    assert count_by_error(iter(dead_letters)) == {topic: {"time: too far": 2, "id: missing": 1}}
    assert [(each.topic, each.partition, each.offset, each.value) for each in dead_letters] == [
        (topic, 1, n, b"raw-%d" % n) for n in range(3)
    ]


def test_redrive_sends_each_once(rejected: Settings) -> None:
    assert redrive(rejected.kafka) == 3
    assert redrive(rejected.kafka) == 0
    assert sent_again(rejected) == {b"raw-0", b"raw-1", b"raw-2"}


def test_redrive_can_filter_by_error(rejected: Settings) -> None:
    assert redrive(rejected.kafka, "time") == 2
    assert sent_again(rejected) == {b"raw-0", b"raw-1"}
