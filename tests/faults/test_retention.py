"""Retention has deleted unapplied events: the job names their number and stops."""

from __future__ import annotations

from typing import cast

import pytest
import redis
from confluent_kafka import Consumer, TopicPartition
from pyspark.sql import SparkSession

from afterclick.errors import LogTruncated
from afterclick.settings import Settings
from infra.benchmarks.faults.broker_faults import truncate_past_position
from infra.benchmarks.faults.fault_case import events, produce
from streaming.connection import load_functions
from streaming.handover import Context, MicroBatch, RealTime


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
