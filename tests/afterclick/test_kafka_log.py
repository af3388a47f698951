"""Offsets and records of the topics of a running Kafka."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from afterclick.errors import Unavailable
from afterclick.io.kafka_log import KafkaLog, OffsetRange, lag, read_compacted
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import LogPosition, TopicPartition
from infra.embedded.kafka import ensure_topics


@pytest.fixture
def kafka(settings: Settings) -> KafkaSettings:
    ensure_topics(settings)
    return settings.kafka


def _write(kafka: KafkaSettings, topic: str, *records: tuple[str, str | None, int]) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for key, value, partition in records:
        producer.produce(topic, value, key, partition)
    assert producer.flush(30) == 0


def test_the_ranges_of_a_topic_grow_with_its_records(kafka: KafkaSettings) -> None:
    topic = kafka.topics.reviews
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with KafkaLog(kafka) as log:
        assert log.partitions(topic) == [first, second]
        assert log.ranges(topic) == {first: OffsetRange(0, 0), second: OffsetRange(0, 0)}
        _write(kafka, topic, ("a", "1", 0), ("b", "2", 0), ("c", "3", 1))
        ranges = log.ranges(topic)
        assert ranges == {first: OffsetRange(0, 2), second: OffsetRange(0, 1)}
    assert lag(ranges, {first: 0}) == 2
    assert lag(ranges, {first: 1, second: 0}) == 0


def test_the_records_of_a_range_are_read_in_order(kafka: KafkaSettings) -> None:
    topic = kafka.topics.reviews
    _write(kafka, topic, *((str(n), str(n), n % 2) for n in range(10)))
    with KafkaLog(kafka) as log:
        part = {TopicPartition(topic, 0): OffsetRange(1, 4)}
        assert [m.value() for m in log.read(part)] == [b"2", b"4", b"6"]
        everything = [m.value() for m in log.read(log.ranges(topic))]
        assert set(everything) == {str(n).encode() for n in range(10)}
        assert everything == list(
            dict.fromkeys(everything)
        )  # the connection starts each read afresh


def test_a_read_may_be_abandoned(kafka: KafkaSettings) -> None:
    topic = kafka.topics.reviews
    _write(kafka, topic, ("a", "1", 0), ("b", "2", 0))
    with KafkaLog(kafka) as log:
        records = log.read(log.ranges(topic))
        assert next(records).value() == b"1"
        log.close()
        records.close()  # type: ignore[attr-defined]
        assert [m.value() for m in log.read(log.ranges(topic))] == [b"1", b"2"]


def test_the_newest_records_come_from_every_partition(kafka: KafkaSettings) -> None:
    topic = kafka.topics.reviews
    with KafkaLog(kafka) as log:
        assert log.last(topic, 4) == []
        _write(kafka, topic, *((str(n), str(n), n % 2) for n in range(10)))
        assert {m.value() for m in log.last(topic, 4)} == {b"6", b"7", b"8", b"9"}


def test_a_compacted_topic_gives_the_newest_record_of_each_key(kafka: KafkaSettings) -> None:
    topic = kafka.topics.items
    assert read_compacted(kafka, topic) == {}
    _write(kafka, topic, ("a", "1", 0), ("b", "1", 0), ("a", "2", 0), ("b", None, 0))
    assert read_compacted(kafka, topic) == {b"a": b"2"}


def test_a_missing_topic_is_named(kafka: KafkaSettings) -> None:
    assert read_compacted(kafka, f"{kafka.prefix}missing") == {}
    with KafkaLog(kafka) as log, pytest.raises(Unavailable, match="missing does not exist"):
        log.ranges(f"{kafka.prefix}missing")


def test_without_kafka_the_address_is_named() -> None:
    kafka = KafkaSettings(bootstrap="127.0.0.1:1")
    with KafkaLog(kafka, timeout_s=0.5) as log, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        log.ranges("reviews")


def test_a_position_is_written_as_it_is_read() -> None:
    position = LogPosition("shop/reviews", 3, 17)
    assert LogPosition.parse(str(position)) == position
    assert str(position.topic_partition) == "shop/reviews/3"
    for text in ("", "reviews", "reviews/1", "/1/2", "reviews/-1/2", "reviews/1/x"):
        with pytest.raises(ValueError, match="topic/partition/offset"):
            LogPosition.parse(text)
