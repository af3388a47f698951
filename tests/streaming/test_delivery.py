"""Outputs of the stream arrive at least once, wherever the worker dies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import redis

from afterclick.io.kafka_log import OffsetRange
from afterclick.settings import KafkaSettings
from afterclick.state import StateChange, TopicPartition
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.positions import (
    applied_offsets,
    mark_published,
    published_offsets,
    resume_offsets,
    starting_offsets,
)
from streaming.records import Output, Record
from streaming.worker import RowApplier
from tests.streaming.builders import (
    Crash,
    CrashingConnection,
    Outbox,
    apply_config,
    event,
    log_of,
)

PLACE = TopicPartition("reviews", 0)


@pytest.fixture
def config(redis_url: str) -> ApplyConfig:
    return apply_config(redis_url)


def with_malformed(count: int) -> list[Record]:
    """A log in which every third record is malformed."""
    return [
        Record(one.offset, b"key", b"poison", one.log_ms) if one.offset % 3 == 1 else one
        for one in log_of([event(item=f"item-{n}") for n in range(count)])
    ]


def position(client: redis.Redis, config: ApplyConfig) -> int:
    return applied_offsets(client, config.keys, [PLACE])[PLACE]


@pytest.mark.parametrize("call_number", [1, 2])
@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_dead_letter_survives_a_crash_at_any_step(
    client: redis.Redis,
    redis_url: str,
    config: ApplyConfig,
    call_number: int,
    reached: bool,
    acknowledged: bool,
) -> None:
    """Without acknowledgement first, the dead letters of a counted chunk are lost."""
    topic: list[Output] = []

    def send_to_dlq(dead_letters: Sequence[Output]) -> None:
        topic.extend(dead_letters)

    send = send_to_dlq if acknowledged else None
    connection = NodeConnection(redis_url)
    log = with_malformed(9)
    crashing = CrashingConnection(connection, call_number, reached)
    with pytest.raises(Crash):
        list(Applier(config, crashing, send).apply(*PLACE, log))
    rest = log[position(client, config) + 1 :]
    outputs = list(Applier(config, connection, send).apply(*PLACE, rest))
    if not acknowledged:
        topic += [output for output in outputs if output.headers]
    offsets = {int(dict(letter.headers)["offset"]) for letter in topic}
    lost_without = not acknowledged and (call_number, reached) == (2, True)
    assert offsets == (set() if lost_without else {1, 4, 7})


@pytest.mark.parametrize("protected", [True, False])
def test_changes_unpublished_before_a_crash_are_published_after_it(
    client: redis.Redis, redis_url: str, config: ApplyConfig, protected: bool
) -> None:
    """Without the protection (start at the applied offset) changes are never published."""
    log = log_of([event(item=f"item-{n}") for n in range(10)])
    applier = Applier(config, NodeConnection(redis_url))
    sent: list[Output] = []
    at = {PLACE: -1}
    assert published_offsets(client, config.keys, at) == {PLACE: -1}
    sent += applier.apply(*PLACE, log[:4])
    mark_published(client, config.keys, {PLACE: 3})
    list(
        applier.apply(*PLACE, log[4:8])
    )  # in the state, but the worker died before its outputs were sent
    at = {PLACE: position(client, config)}
    spans = {PLACE: OffsetRange(0, 10)}
    known = published_offsets(client, config.keys, at)
    offsets = resume_offsets(at, known, spans) if protected else starting_offsets(at, spans)
    sent += applier.apply(*PLACE, log[offsets["reviews"][0] :])
    changes = [StateChange.decode(output.value or b"") for output in sent]
    effects = {change.offset: str(change.effect) for change in changes}
    expected = [0, 1, 2, 3, *([4, 5, 6, 7] if protected else []), 8, 9]
    assert [change.offset for change in changes] == expected
    if protected:
        assert {effects[n] for n in range(4, 8)} == {"replayed"}
    assert client.hlen(config.keys.counts(*PLACE)) == 10


def test_the_changes_of_the_first_batch_are_published_again_too(
    client: redis.Redis, redis_url: str, config: ApplyConfig
) -> None:
    assert published_offsets(client, config.keys, {PLACE: -1}) == {PLACE: -1}  # a job begins
    list(
        Applier(config, NodeConnection(redis_url)).apply(*PLACE, log_of([event(), event()]))
    )  # and dies
    at = {PLACE: position(client, config)}
    assert at == {PLACE: 1}
    spans = {PLACE: OffsetRange(0, 2)}
    assert resume_offsets(at, published_offsets(client, config.keys, at), spans) == {
        "reviews": {0: 0}
    }


def test_the_published_offset_never_decreases(client: redis.Redis, config: ApplyConfig) -> None:
    mark_published(client, config.keys, {PLACE: 7})
    mark_published(client, config.keys, {PLACE: 3})
    assert published_offsets(client, config.keys, {PLACE: 9}) == {PLACE: 7}


def test_a_state_without_published_offsets_starts_at_its_applied_offset(
    client: redis.Redis, config: ApplyConfig
) -> None:
    at, spans = {PLACE: 5}, {PLACE: OffsetRange(0, 10)}
    assert resume_offsets(at, published_offsets(client, config.keys, at), spans) == {
        "reviews": {0: 6}
    }
    later = {PLACE: 8}
    assert resume_offsets(later, published_offsets(client, config.keys, later), spans) == {
        "reviews": {0: 6}
    }


def test_changes_of_deleted_records_cannot_be_published_again(
    client: redis.Redis, config: ApplyConfig
) -> None:
    mark_published(client, config.keys, {PLACE: 2})
    at, spans = {PLACE: 8}, {PLACE: OffsetRange(6, 10)}
    assert resume_offsets(at, published_offsets(client, config.keys, at), spans) == {
        "reviews": {0: 6}
    }


@pytest.mark.parametrize(("applied", "published", "first"), [(6, 4, 4), (3, 5, 3), (6, 0, 0)])
def test_a_successor_skips_what_is_both_applied_and_published(
    client: redis.Redis,
    redis_url: str,
    config: ApplyConfig,
    applied: int,
    published: int,
    first: int,
) -> None:
    """The last case is the control: nothing is known to be published, so all of it is repeated."""
    log = log_of([event(item=f"item-{n}") for n in range(10)])
    connection, outbox = NodeConnection(redis_url), Outbox()
    list(Applier(config, connection).apply(*PLACE, log[:applied]))
    mark_published(client, config.keys, {PLACE: published - 1})
    applier = Applier(config, connection, outbox.send_to_dlq)
    apply_row = RowApplier(config, KafkaSettings(), applier, outbox)  # type: ignore[arg-type]
    for record in log:
        apply_row(record.key, record.value, *PLACE, record.offset, int(record.log_ms * 1000))
    offsets = [StateChange.decode(output.value or b"").offset for output in outbox.outputs]
    assert offsets == list(range(first, 10))
    assert set(client.hvals(config.keys.counts(*PLACE))) == {b"1"}
    assert client.hlen(config.keys.counts(*PLACE)) == 10
