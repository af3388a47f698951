"""Offsets without a record (transaction markers, aborted transactions) are no lost events."""

from __future__ import annotations

from functools import partial

import pytest
import redis
from confluent_kafka import Producer

from afterclick.events import encode
from afterclick.settings import Settings
from afterclick.state import StateChange, TopicPartition
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.positions import applied_offsets, has_unapplied, log_ranges
from streaming.proof.reconcile import reconcile
from streaming.worker import log_holds_records
from tests.streaming.builders import event
from tests.streaming.topic_log import archive_log, partition_logs


@pytest.fixture
def transactions(settings: Settings, client: redis.Redis) -> TopicPartition:
    """Four transactions of two events each, the third one aborted: offsets 0 1 3 4 9 10."""
    place = TopicPartition(settings.kafka.topics.feedback, 0)
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "transactional.id": place.topic}
    )
    producer.init_transactions(30)
    for transaction in range(4):
        producer.begin_transaction()
        for n in range(2):
            value = encode(event(item=f"item-{transaction}", event_id=f"{transaction}-{n}"))
            producer.produce(place.topic, value, b"alice", place.partition)
        producer.flush(30)
        (producer.abort_transaction if transaction == 2 else producer.commit_transaction)(30)
    return place


def apply_each(settings: Settings, place: TopicPartition, *, ask_log: bool) -> list[StateChange]:
    """Apply the records one by one, each in a new task: a micro-batch may end anywhere."""
    log_holds = partial(log_holds_records, settings.kafka) if ask_log else None
    changes = []
    for record in dict(partition_logs(settings))[place]:
        config, connection = ApplyConfig.of(settings, 1), NodeConnection(settings.redis.url)
        applier = Applier(config, connection, log_holds=log_holds)
        changes += [
            StateChange.decode(output.value or b"") for output in applier.apply(*place, [record])
        ]
    return changes


def test_a_transaction_marker_does_not_stop_the_stream(
    settings: Settings, transactions: TopicPartition
) -> None:
    changes = apply_each(settings, transactions, ask_log=True)
    assert [change.offset for change in changes] == [0, 1, 3, 4, 9, 10]
    assert [change.previous_offset for change in changes] == [-1, 0, 1, 3, 4, 9]
    archive_log(settings)
    report = reconcile(settings, wait_s=30)
    assert (report.differences, report.counted_in_state, report.behind) == (0, 6, 0)


def test_without_asking_the_log_the_first_marker_stops_the_stream(
    settings: Settings, transactions: TopicPartition
) -> None:
    with pytest.raises(redis.ResponseError, match="GAP the applied offset is 1"):
        apply_each(settings, transactions, ask_log=False)


def test_one_task_passes_markers_without_asking(
    settings: Settings, transactions: TopicPartition
) -> None:
    applier = Applier(ApplyConfig.of(settings, 1), NodeConnection(settings.redis.url))
    for record in dict(partition_logs(settings))[transactions]:
        list(applier.apply(*transactions, [record]))
    assert reconcile(settings).differences == 0


def test_lost_writes_are_still_detected_next_to_a_marker(
    settings: Settings, client: redis.Redis, transactions: TopicPartition
) -> None:
    apply_each(settings, transactions, ask_log=True)
    client.set(settings.redis.keys.applied_offset(*transactions), 3)  # 4 is lost, 5 a marker
    applier = Applier(
        ApplyConfig.of(settings, 1),
        NodeConnection(settings.redis.url),
        log_holds=partial(log_holds_records, settings.kafka),
    )
    last = dict(partition_logs(settings))[transactions][-2:]
    with pytest.raises(redis.ResponseError, match="GAP"):
        list(applier.apply(*transactions, last))


def test_a_marker_at_the_end_of_the_log_is_no_lag(
    settings: Settings, client: redis.Redis, transactions: TopicPartition
) -> None:
    apply_each(settings, transactions, ask_log=True)
    ranges = log_ranges(settings.kafka)
    applied = applied_offsets(client, settings.redis.keys, ranges)
    assert ranges[transactions].end > applied[transactions] + 1
    assert not has_unapplied(settings.kafka, ranges, applied)
    assert has_unapplied(settings.kafka, ranges, applied | {transactions: 9})
