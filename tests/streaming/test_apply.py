"""Each event takes effect once, whatever the order, the repeats, the batches and the crashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from afterclick.errors import BadEvent
from afterclick.state import Effect, StateChange
from streaming.apply import Applier, Output, Plan, Record
from streaming.connection import Command, NodeConnection, load_functions
from streaming.job import function_library
from tests.streaming.builders import DAY_S, event, expected, log_of, plan, stored

USERS = ("alice", "bob", "chloé", "{d:1}")


class Crash(Exception):
    """The process died here."""


@dataclass
class CrashingConnection:
    """A connection that dies at its n-th call: before it reached the server, or after."""

    inner: NodeConnection
    call_number: int
    reached: bool

    def call(self, commands: Sequence[Command]) -> list[Any]:
        self.call_number -= 1
        if self.call_number == 0 and not self.reached:
            raise Crash
        answers = self.inner.call(commands)
        if self.call_number == 0:
            raise Crash
        return answers


@pytest.fixture(scope="module")
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client, function_library())
        yield client


@pytest.fixture(scope="module")
def connection(client: redis.Redis, redis_url: str) -> NodeConnection:
    return NodeConnection(redis_url)


def apply(
    connection: Any, the_plan: Plan, records: list[Record], topic: str = "reviews"
) -> list[Output]:
    return list(Applier(the_plan, connection).apply(topic, 0, records))


def position(client: redis.Redis, the_plan: Plan, topic: str) -> int:
    value = client.get(the_plan.keys.applied_offset(topic, 0))
    return -1 if value is None else int(value)


def test_without_the_fence_a_replay_counts_again(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    unfenced = plan(redis_url, fence=False)
    log = log_of([event(item="camera"), event(item="lens")])
    apply(connection, unfenced, log)
    apply(connection, unfenced, log)
    assert stored(client, unfenced.keys, ["alice"]).counts == {"camera": 2, "lens": 2}


@pytest.mark.parametrize("call_number", [1, 2])
@pytest.mark.parametrize("reached", [False, True])
def test_a_crash_at_either_step_counts_once_and_stays_novel(
    client: redis.Redis, connection: NodeConnection, redis_url: str, call_number: int, reached: bool
) -> None:
    the_plan = plan(redis_url)
    log = log_of([event(action="like")])
    with pytest.raises(Crash):
        apply(CrashingConnection(connection, call_number, reached), the_plan, log)
    (output,) = apply(connection, the_plan, log)
    change = StateChange.decode(output.value or b"")
    assert change.first_user_item
    assert change.effect is (
        Effect.REPLAYED if (call_number, reached) == (2, True) else Effect.APPLIED
    )
    state = stored(client, the_plan.keys, ["alice"])
    assert (state.counts, state.uniques) == ({"camera": 1}, {"camera": 1})


def test_a_resent_event_is_a_duplicate_on_its_own_topic_and_on_the_other(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url)
    same = event(event_id="sent-thrice")
    outputs = apply(connection, the_plan, log_of([same, same])) + apply(
        connection, the_plan, log_of([same]), "feedback"
    )
    effects = [StateChange.decode(output.value or b"").effect for output in outputs]
    assert effects == [Effect.APPLIED, Effect.DUPLICATE, Effect.DUPLICATE]
    assert stored(client, the_plan.keys, ["alice"]).counts == {"camera": 1}


def test_the_same_id_from_two_users_is_two_events(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url)
    apply(connection, the_plan, log_of([event("alice", event_id="1"), event("bob", event_id="1")]))
    assert stored(client, the_plan.keys, USERS).counts == {"camera": 2}


def test_a_skip_lowers_the_trend_and_is_not_popularity(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url)
    apply(connection, the_plan, log_of([event(action="skip")]))
    state = stored(client, the_plan.keys, ["alice"])
    assert (state.counts, state.uniques) == ({}, {})
    assert state.trends["camera"].sums == (-1.0,) * 6
    assert len(state.histories["alice"]) == 1


def test_history_keeps_the_newest_by_event_time(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url, history_length=3)
    events = [event(item=f"item-{at}", at=at) for at in (5, 1, 4, 2, 3)]
    apply(connection, the_plan, log_of(events))
    stored(client, the_plan.keys, ["alice"]).same_as(expected(events, history_length=3))


def test_the_ledger_is_bounded_but_never_forgets_what_is_still_under_way(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url, ledger_length=10)
    log = log_of([event(item=f"item-{n}", action="like") for n in range(60)])
    with pytest.raises(Crash):
        apply(CrashingConnection(connection, 2, reached=False), the_plan, log[:50])
    apply(connection, the_plan, log[:50])
    assert stored(client, the_plan.keys, ["alice"]).uniques.total() == 50
    apply(connection, the_plan, log[50:])
    assert client.zcard(the_plan.keys.ledger("alice", "reviews")) == 10


def test_a_server_that_lost_its_newest_writes_is_noticed(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url)
    log = log_of([event(item=f"item-{n}") for n in range(6)])
    apply(connection, the_plan, log[:4])
    client.set(the_plan.keys.applied_offset("reviews", 0), 1)
    with pytest.raises(redis.ResponseError, match="GAP"):
        apply(connection, the_plan, log[4:])


POISON = {
    "nothing": None,
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"id": "\xff\xfe"}',
    "not an object": b"[1, 2]",
    "another type": b'{"specversion":"1.0","type":"x"}',
    "no payload": b'{"specversion":"1.0","type":"afterclick.review.v1","id":"1"}',
    "NaN": b'{"specversion":"1.0","rating":NaN}',
    "a lone surrogate": b'{"id":"\\ud800"}',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", POISON)
def test_poison_becomes_a_dead_letter_and_the_position_moves_on(
    client: redis.Redis, connection: NodeConnection, redis_url: str, name: str
) -> None:
    the_plan = plan(redis_url)
    good = log_of([event(), event()])
    poison = Record(1, b"key\xff", POISON[name], 1.0)
    outputs = apply(
        connection, the_plan, [good[0], poison, Record(2, b"alice", good[1].value, 2e12)]
    )
    assert [output.topic for output in outputs] == ["state-changes", "reviews.dlq", "state-changes"]
    assert (outputs[1].key, outputs[1].value) == (b"key\xff", POISON[name])
    headers = dict(outputs[1].headers)
    assert (headers["topic"], headers["partition"], headers["offset"]) == (b"reviews", b"0", b"1")
    assert headers["stage"] == b"decode"
    assert headers["error"]
    assert position(client, the_plan, "reviews") == 2
    assert stored(client, the_plan.keys, ["alice"]).counts == {"camera": 2}


def test_without_dead_letters_one_poison_record_stops_everything(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url, fault="no-dead-letters")
    log = [Record(0, b"key", b"poison", 1.0), *log_of([event()], first=1)]
    for _ in range(3):
        with pytest.raises(BadEvent):
            apply(connection, the_plan, log)
    assert position(client, the_plan, "reviews") == -1


def test_an_event_from_the_far_future_is_a_dead_letter(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    the_plan = plan(redis_url)
    (output,) = apply(connection, the_plan, log_of([event(at=1000 * DAY_S)]))
    assert output.topic == "reviews.dlq"
    assert not stored(client, the_plan.keys, ["alice"]).trends
