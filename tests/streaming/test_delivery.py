"""What the stream has to tell others arrives at least once, wherever the worker dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import redis

from afterclick.state import StateChange
from streaming.apply import Applier, Output, Plan, Record
from streaming.connection import NodeConnection, load_functions
from streaming.job import function_library
from streaming.positions import (
    Span,
    announce,
    announced,
    read_positions,
    resume_offsets,
    starting_offsets,
)
from tests.streaming.builders import event, log_of, plan
from tests.streaming.test_apply import Crash, CrashingConnection

PLACE = ("reviews", 0)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client, function_library())
        yield client


@pytest.fixture
def a_plan(redis_url: str) -> Plan:
    return plan(redis_url)


def with_poison(number: int) -> list[Record]:
    """A log whose every third record cannot be read."""
    return [
        Record(one.offset, b"key", b"poison", one.log_ms) if one.offset % 3 == 1 else one
        for one in log_of([event(item=f"item-{n}") for n in range(number)])
    ]


def position(client: redis.Redis, the_plan: Plan) -> int:
    return read_positions(client, the_plan.keys, [PLACE])[PLACE]


@pytest.mark.parametrize("call_number", [1, 2])
@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("buries", [True, False])
def test_a_dead_letter_survives_a_crash_at_any_step(
    client: redis.Redis, redis_url: str, a_plan: Plan, call_number: int, reached: bool, buries: bool
) -> None:
    """Without burying, the letters of a chunk that the state has passed are lost with the worker."""
    topic: list[Output] = []

    def bury(letters: Sequence[Output]) -> None:
        topic.extend(letters)

    connection = NodeConnection(redis_url)
    log = with_poison(9)
    crashing = CrashingConnection(connection, call_number, reached)
    with pytest.raises(Crash):
        list(Applier(a_plan, crashing, bury if buries else None).apply(*PLACE, log))
    rest = log[position(client, a_plan) + 1 :]
    outputs = list(Applier(a_plan, connection, bury if buries else None).apply(*PLACE, rest))
    if not buries:
        topic += [output for output in outputs if output.headers]
    offsets = {int(dict(letter.headers)["offset"]) for letter in topic}
    lost_without = not buries and (call_number, reached) == (2, True)
    assert offsets == (set() if lost_without else {1, 4, 7})


@pytest.mark.parametrize("protected", [True, False])
def test_changes_that_were_not_sent_before_a_crash_are_sent_after_it(
    client: redis.Redis, redis_url: str, a_plan: Plan, protected: bool
) -> None:
    """Begun at the position, as without protection, the changes of the last batch are missing for ever."""
    log = log_of([event(item=f"item-{n}") for n in range(10)])
    applier = Applier(a_plan, NodeConnection(redis_url))
    sent: list[Output] = []
    at = {PLACE: -1}
    assert announced(client, a_plan.keys, at) == {PLACE: -1}
    sent += applier.apply(*PLACE, log[:4])
    announce(client, a_plan.keys, {PLACE: 3})
    list(
        applier.apply(*PLACE, log[4:8])
    )  # in the state, but the worker died before its outputs were sent
    at = {PLACE: position(client, a_plan)}
    spans = {PLACE: Span(0, 10)}
    known = announced(client, a_plan.keys, at)
    offsets = resume_offsets(at, known, spans) if protected else starting_offsets(at, spans)
    sent += applier.apply(*PLACE, log[offsets["reviews"][0] :])
    changes = [StateChange.decode(output.value or b"") for output in sent]
    effects = {change.offset: str(change.effect) for change in changes}
    told = [0, 1, 2, 3, *([4, 5, 6, 7] if protected else []), 8, 9]
    assert [change.offset for change in changes] == told
    if protected:
        assert {effects[n] for n in range(4, 8)} == {"replayed"}
    assert client.hlen(a_plan.keys.counts(*PLACE)) == 10


def test_the_changes_of_the_very_first_batch_are_sent_again_too(
    client: redis.Redis, redis_url: str, a_plan: Plan
) -> None:
    assert announced(client, a_plan.keys, {PLACE: -1}) == {PLACE: -1}  # a job begins
    list(
        Applier(a_plan, NodeConnection(redis_url)).apply(*PLACE, log_of([event(), event()]))
    )  # and dies
    at = {PLACE: position(client, a_plan)}
    assert at == {PLACE: 1}
    spans = {PLACE: Span(0, 2)}
    assert resume_offsets(at, announced(client, a_plan.keys, at), spans) == {"reviews": {0: 0}}


def test_what_was_announced_never_goes_back(client: redis.Redis, a_plan: Plan) -> None:
    announce(client, a_plan.keys, {PLACE: 7})
    announce(client, a_plan.keys, {PLACE: 3})
    assert announced(client, a_plan.keys, {PLACE: 9}) == {PLACE: 7}


def test_a_state_without_announcements_begins_at_its_position(
    client: redis.Redis, a_plan: Plan
) -> None:
    at, spans = {PLACE: 5}, {PLACE: Span(0, 10)}
    assert resume_offsets(at, announced(client, a_plan.keys, at), spans) == {"reviews": {0: 6}}
    later = {PLACE: 8}
    assert resume_offsets(later, announced(client, a_plan.keys, later), spans) == {
        "reviews": {0: 6}
    }


def test_what_retention_took_cannot_be_sent_again(client: redis.Redis, a_plan: Plan) -> None:
    announce(client, a_plan.keys, {PLACE: 2})
    at, spans = {PLACE: 8}, {PLACE: Span(6, 10)}
    assert resume_offsets(at, announced(client, a_plan.keys, at), spans) == {"reviews": {0: 6}}
