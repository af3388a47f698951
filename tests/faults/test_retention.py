"""Retention deletes events: applied ones are in the archive, of others the job names the number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import cast

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from afterclick.errors import LogTruncated
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.topics import DAY_MS, dlq
from infra.benchmarks.faults.broker_faults import truncate_past_position
from infra.benchmarks.faults.fault_case import events, produce
from streaming.connection import load_functions
from streaming.handover import Context, MicroBatch, RealTime
from streaming.positions import applied_offsets, log_ranges, starting_offsets
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import event
from tests.streaming.stream_process import produce as write
from tests.streaming.topic_log import apply_log, archive_log

OLD_MS = 1_400_000_000_000


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        yield client


@pytest.fixture
def missing(settings: Settings) -> int:
    """The number of deleted events of a log without applied events."""
    produce(settings, events(3000, 0))
    return truncate_past_position(settings)


@pytest.mark.parametrize("kind", [MicroBatch, RealTime])
def test_a_query_names_the_missing_events_and_does_not_start(
    settings: Settings, missing: int, kind: type[MicroBatch] | type[RealTime]
) -> None:
    no_spark = cast(SparkSession, None)  # not reached
    with redis.Redis.from_url(settings.redis.url) as client:
        load_functions(client)
        query = kind(Context(settings, client, no_spark))
        with pytest.raises(LogTruncated, match=f"^{missing} events are missing"):
            query.start()
    assert query.queries() == []
    assert missing > 0


def test_a_plain_consumer_skips_the_missing_events_silently(
    settings: Settings, missing: int
) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "group.id": "control",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    topic, partitions = settings.kafka.topics.feedback, range(settings.kafka.partitions)
    consumer.assign([TopicPartition(topic, n, 0) for n in partitions])
    seen, ends = 0, 0
    while ends < len(partitions):
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            ends += 1
        else:
            seen += 1
    consumer.close()
    assert seen == 3000 - missing


@pytest.fixture
def shortened(settings: Settings, client: redis.Redis) -> Settings:
    """A log that is applied and archived, whose first half retention has deleted."""
    made = [
        event(f"user-{n % 9}", f"item-{n % 7}", "like", at=n, event_id=str(n)) for n in range(80)
    ]
    write(settings, [*made[:40], b"poison", *made[40:]])
    apply_log(settings)
    archive_log(settings)
    ranges = log_ranges(settings.kafka)
    firsts = [TopicPartition(*name, held.end // 2) for name, held in ranges.items()]
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap})
    for deleted in admin.delete_records(firsts).values():
        deleted.result(60)
    return settings


def test_the_state_is_verified_with_the_archive(shortened: Settings, client: redis.Redis) -> None:
    report = reconcile(shortened)
    assert (report.differences, report.counted_in_log, report.counted_in_state) == (0, 80, 80)
    keys = client.keys(f"{shortened.redis.prefix}*:counts")
    client.hincrby(keys[0], "item-1", 1)
    assert reconcile(shortened).by_kind == {"count": 1}
    shutil.rmtree(shortened.archive)  # the control: without it, nothing can be said
    with pytest.raises(LogTruncated, match="there is no archive"):
        reconcile(shortened)


def test_the_state_is_rebuilt_and_the_stream_goes_on(
    shortened: Settings, client: redis.Redis
) -> None:
    for key in client.scan_iter(f"{shortened.redis.prefix}*"):
        client.delete(key)
    rebuild(shortened)
    write(shortened, [event("user-1", "item-1", "like", at=99, event_id="later")])
    apply_log(shortened)
    report = reconcile(shortened)
    assert (report.differences, report.counted_in_state) == (0, 81)
    offsets = applied_offsets(client, shortened.redis.keys, log_ranges(shortened.kafka))
    starting_offsets(offsets, log_ranges(shortened.kafka))  # no error


def test_a_replay_of_old_events_is_kept_from_its_arrival_on(settings: Settings) -> None:
    """Control: in a topic with the producer's time, retention would delete them at once."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    topics = settings.kafka.topics
    for topic in (topics.reviews, dlq(topics.reviews)):
        producer.produce(topic, b"old", partition=0, timestamp=OLD_MS)
    assert producer.flush(30) == 0
    with KafkaLog(settings.kafka) as log:
        times = {
            topic: next(log.read(log.ranges(topic))).timestamp()[1]
            for topic in (topics.reviews, dlq(topics.reviews))
        }
    assert times[topics.reviews] > OLD_MS + DAY_MS
    assert times[dlq(topics.reviews)] == OLD_MS
