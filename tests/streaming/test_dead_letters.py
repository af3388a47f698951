"""Dead letters can be counted, read and sent again."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition

from afterclick.settings import Settings
from streaming.apply import Record, dead_letter
from streaming.proof.dead_letters import count_by_error, read_dead_letters, redrive


@pytest.fixture
def refused(settings: Settings) -> Settings:
    """Three dead letters on feedback: two of one error, one of another."""
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


def test_they_are_counted_by_error_and_say_where_they_stood(refused: Settings) -> None:
    letters = list(read_dead_letters(refused.kafka))
    topic = refused.kafka.topics.feedback
    assert count_by_error(iter(letters)) == {topic: {"time: too far": 2, "id: missing": 1}}
    assert [(one.topic, one.partition, one.offset, one.value) for one in letters] == [
        (topic, 1, n, b"raw-%d" % n) for n in range(3)
    ]


def test_redrive_sends_each_once(refused: Settings) -> None:
    assert redrive(refused.kafka) == 3
    assert redrive(refused.kafka) == 0
    assert sent_again(refused) == {b"raw-0", b"raw-1", b"raw-2"}


def test_redrive_can_choose_by_error(refused: Settings) -> None:
    assert redrive(refused.kafka, "time") == 2
    assert sent_again(refused) == {b"raw-0", b"raw-1"}
