"""Records of unusual size, and offsets without a record: transaction markers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import redis
from confluent_kafka import KafkaError, KafkaException

from afterclick.errors import Unavailable
from afterclick.events import IMPORT_SOURCE, Action, Interaction, encode, interaction_event
from afterclick.io.kafka_clients import create_producer
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import Compensation, Effect, StateChange, TopicPartition
from afterclick.topics import MAX_RECORD_BYTES, dlq
from infra.benchmarks.faults.fault_case import (
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    Row,
    events,
    lost_events,
    produce,
    row,
)
from infra.benchmarks.harness import Stack, own_stack
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.positions import applied_offsets, has_unapplied, log_ranges
from streaming.proof.dead_letters import read_dead_letters
from streaming.proof.reconcile import reconcile
from streaming.records import Record

VIEWS = 7000
"""Items that one new user views before an event of its past arrives."""
LONG_IDS = 190
"""Items of the longest ids that one user views: few enough for an older event to change them."""
_PAST = datetime(2020, 1, 1, tzinfo=UTC)
_LARGE: dict[str, Any] = {"message.max.bytes": 2 * MAX_RECORD_BYTES}
_HEADERS_BYTES = 120
"""What Kafka adds to a record of one batch, at most."""


def oversize_change(load: FaultLoad, settings: Settings) -> FaultCase:
    """One event changes more votes of its user than a record can describe."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        stack.job.start()
        produce(stack.settings, _aging_users())
        produce(stack.settings, events(load.events, 0))
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        cut = sum(change.resync for change in _changes(stack.settings))
        unbroken = "query failed" not in stack.job.printed()
        size, refused = _refused_change(stack.settings)
    return FaultCase(
        name="oversize change",
        kills=0,
        events=report.events,
        lost=lost_events(report) if unbroken and cut else report.events,
        double=report.double,
        control_differs=refused,
        recovery_s=round(recovery_s, 1),
        note=f"{cut} changes sent as resync; control: a change of {size:,} bytes, "
        f"refused by the producer: {refused}",
    )


def _aging_users() -> Iterator[Row]:
    """Two new users with many votes, each with an event of 2020 at last."""
    wedge = [f"{n:06d}-{'x' * 121}" for n in range(VIEWS)]
    long = [f"{n:03d}-{'😀' * 124}" for n in range(LONG_IDS)]
    for user, items in (("wedge", wedge), ("long", long)):
        for n, item in enumerate(items):
            yield row(user, item, "view", f"{user}-{n}")
        yield _past_view(user)


def _past_view(user: str) -> Row:
    """A view of 2020 by a source that is trusted with the past."""
    view = Interaction(user_id=user, item_id="past", action=Action.VIEW)
    source = f"{IMPORT_SOURCE}bench"
    event = interaction_event(view, event_id=f"{user}-past", time=_PAST, source=source)
    return user, encode(event)


def _changes(settings: Settings) -> Iterator[StateChange]:
    with KafkaLog(settings.kafka) as log:
        for message in log.read(log.ranges(settings.kafka.topics.state_changes)):
            yield StateChange.decode(message.value() or b"")


def _refused_change(settings: Settings) -> tuple[int, bool]:
    """Size of a change with a compensation for each view, and whether Kafka's producer refuses
    it."""
    compensations = tuple(Compensation(f"{n:06d}-{'x' * 121}", 0, 0.0, 1.0) for n in range(VIEWS))
    change = StateChange(
        user_id="wedge",
        item_id="past",
        action=Action.VIEW,
        event_id="wedge-past",
        time_ms=0,
        topic=settings.kafka.topics.feedback,
        partition=0,
        offset=0,
        effect=Effect.APPLIED,
        weight=0.0,
        first_user_item=True,
        compensations=compensations,
        log_ms=0.0,
        read_ms=0.0,
        applied_ms=0.0,
    )
    value = change.encode()
    producer = create_producer(settings.kafka, {})
    try:
        producer.produce(settings.kafka.topics.state_changes, value)
    except KafkaException as error:
        return len(value), error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    return len(value), False


def oversize_record(load: FaultLoad, settings: Settings) -> FaultCase:
    """Malformed records, some as large as a topic takes. A dead letter with all of one is not."""
    large = [
        b'{"type":"' + b"A" * 500_000 + b'"}',
        b"x" * 999_900,
        b"x" * (MAX_RECORD_BYTES - _HEADERS_BYTES),
    ]
    with own_stack(settings, SMALL_BATCHES) as stack:
        stack.job.start()
        produce(stack.settings, [(f"large-{n}", value) for n, value in enumerate(large)], **_LARGE)
        produce(stack.settings, events(load.events, 0))
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        dead = sum(1 for _ in read_dead_letters(stack.settings.kafka))
        unbroken = "query failed" not in stack.job.printed()
        refused = sum(not _takes_whole(stack.settings, value) for value in large)
    return FaultCase(
        name="oversize record",
        kills=0,
        events=report.events,
        lost=abs(len(large) - dead) + lost_events(report) if unbroken else report.events,
        double=report.double,
        control_differs=refused > 0,
        recovery_s=round(recovery_s, 1),
        note=f"{dead} of {len(large)} in the dead-letter topic; control: "
        f"{refused} whole records with their reason refused",
    )


def _takes_whole(settings: Settings, value: bytes) -> bool:
    """Whether the dead-letter topic takes the record with its whole reason, which repeats it."""
    errors: list[KafkaError | None] = []
    producer = create_producer(settings.kafka, {})
    try:
        producer.produce(
            dlq(settings.kafka.topics.feedback),
            value,
            headers=[("error", value)],
            on_delivery=lambda error, _: errors.append(error),
        )
    except KafkaException:
        return False
    producer.flush(60)
    return errors == [None]


def transaction_markers(load: FaultLoad, settings: Settings) -> FaultCase:
    """Transactions, every third aborted: their markers are offsets without a record."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        stack.job.start()
        transactions = max(load.events // 100, 10)
        committed = _write_transactions(stack.settings, transactions)
        recovery_s = stack.wait(lambda: _all_applied(stack), "the committed events to be applied")
        report = reconcile(stack.settings)
        unbroken = "query failed" not in stack.job.printed()
        left = _left_at_a_marker(stack.settings)
    return FaultCase(
        name="transaction markers",
        kills=0,
        events=committed,
        lost=abs(committed - report.counted_in_state) + lost_events(report)
        if unbroken
        else committed,
        double=report.double,
        control_differs=left > 0,
        recovery_s=round(recovery_s, 1),
        note=f"{transactions} transactions; control: {left} events behind the first marker",
    )


def _write_transactions(settings: Settings, count: int) -> int:
    """Transactions of ten likes each; the number of committed events."""
    producer = create_producer(settings.kafka, {"transactional.id": "bench"})
    producer.init_transactions(60)
    committed = 0
    for n in range(count):
        producer.begin_transaction()
        for m in range(10):
            user, value = row(f"user-{m}", f"item-{n % 50}", "like", f"{n}-{m}")
            producer.produce(settings.kafka.topics.feedback, value, user)
        if n % 3 == 2:
            producer.flush(60)
            producer.abort_transaction(60)
        else:
            producer.commit_transaction(60)
            committed += 10
    return committed


def _all_applied(stack: Stack) -> bool:
    """Whether no record is left; the lag would count the marker at the end of the log."""
    kafka = stack.settings.kafka
    try:
        ranges = log_ranges(kafka)
        with stack.client() as client:
            applied = applied_offsets(client, stack.settings.redis.keys, ranges)
        return not has_unapplied(kafka, ranges, applied)
    except Unavailable:
        return False


def _left_at_a_marker(settings: Settings) -> int:
    """Events not applied by a reader that never asks the log, into a state of its own."""
    own = settings.model_copy(
        update={"redis": settings.redis.model_copy(update={"prefix": "control:"})}
    )
    config, left = ApplyConfig.of(own, 1), 0
    for place, records in _records(settings).items():
        for n, record in enumerate(records):
            applier = Applier(config, NodeConnection(own.redis.url))
            try:
                list(applier.apply(*place, [record]))
            except redis.ResponseError:
                left += len(records) - n
                break
    return left


def _records(settings: Settings) -> dict[TopicPartition, list[Record]]:
    found: dict[TopicPartition, list[Record]] = {}
    with KafkaLog(settings.kafka) as log:
        for message in log.read(log.ranges(settings.kafka.topics.feedback)):
            place = TopicPartition(message.topic() or "", message.partition() or 0)
            record = Record(
                message.offset() or 0,
                message.key(),
                message.value(),
                float(message.timestamp()[1]),
            )
            found.setdefault(place, []).append(record)
    return found
