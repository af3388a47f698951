"""What the stream has to tell others arrives at least once, wherever the worker dies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import redis

from afterclick.io.kafka_log import OffsetRange
from afterclick.state import StateChange, TopicPartition
from streaming.apply import Applier, ApplyConfig, Output, Record
from streaming.connection import NodeConnection
from streaming.positions import (
    applied_offsets,
    mark_published,
    published_offsets,
    resume_offsets,
    starting_offsets,
)
from tests.streaming.builders import Crash, CrashingConnection, apply_config, event, log_of

PLACE = TopicPartition("reviews", 0)


@pytest.fixture
def config(redis_url: str) -> ApplyConfig:
    return apply_config(redis_url)


def with_poison(number: int) -> list[Record]:
    """A log whose every third record cannot be read."""
    return [
        Record(one.offset, b"key", b"poison", one.log_ms) if one.offset % 3 == 1 else one
        for one in log_of([event(item=f"item-{n}") for n in range(number)])
    ]


def position(client: redis.Redis, config: ApplyConfig) -> int:
    return applied_offsets(client, config.keys, [PLACE])[PLACE]


@pytest.mark.parametrize("call_number", [1, 2])
@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("buries", [True, False])
def test_a_dead_letter_survives_a_crash_at_any_step(
    client: redis.Redis,
    redis_url: str,
    config: ApplyConfig,
    call_number: int,
    reached: bool,
    buries: bool,
) -> None:
    """Without acknowledgement first, the dead letters of a counted chunk are lost."""
    topic: list[Output] = []

    def bury(letters: Sequence[Output]) -> None:
        topic.extend(letters)

    connection = NodeConnection(redis_url)
    log = with_poison(9)
    crashing = CrashingConnection(connection, call_number, reached)
    with pytest.raises(Crash):
        list(Applier(config, crashing, bury if buries else None).apply(*PLACE, log))
    rest = log[position(client, config) + 1 :]
    outputs = list(Applier(config, connection, bury if buries else None).apply(*PLACE, rest))
    if not buries:
        topic += [output for output in outputs if output.headers]
    offsets = {int(dict(letter.headers)["offset"]) for letter in topic}
    lost_without = not buries and (call_number, reached) == (2, True)
    assert offsets == (set() if lost_without else {1, 4, 7})


@pytest.mark.parametrize("protected", [True, False])
def test_changes_that_were_not_sent_before_a_crash_are_sent_after_it(
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
    told = [0, 1, 2, 3, *([4, 5, 6, 7] if protected else []), 8, 9]
    assert [change.offset for change in changes] == told
    if protected:
        assert {effects[n] for n in range(4, 8)} == {"replayed"}
    assert client.hlen(config.keys.counts(*PLACE)) == 10


def test_the_changes_of_the_very_first_batch_are_sent_again_too(
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


def test_what_was_announced_never_goes_back(client: redis.Redis, config: ApplyConfig) -> None:
    mark_published(client, config.keys, {PLACE: 7})
    mark_published(client, config.keys, {PLACE: 3})
    assert published_offsets(client, config.keys, {PLACE: 9}) == {PLACE: 7}


def test_a_state_without_announcements_begins_at_its_position(
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


def test_what_retention_took_cannot_be_sent_again(client: redis.Redis, config: ApplyConfig) -> None:
    mark_published(client, config.keys, {PLACE: 2})
    at, spans = {PLACE: 8}, {PLACE: OffsetRange(6, 10)}
    assert resume_offsets(at, published_offsets(client, config.keys, at), spans) == {
        "reviews": {0: 6}
    }
