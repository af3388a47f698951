"""Each event takes effect once, in any order, with repeats, batches and crashes."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from afterclick.errors import BadEvent
from afterclick.state import Effect, StateChange
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.fault_points import FaultPoints
from streaming.records import Output, Record
from tests.streaming.builders import (
    DAY_S,
    Crash,
    CrashingConnection,
    apply_config,
    event,
    expected,
    log_of,
    stored,
)

USERS = ("alice", "bob", "chloé", "{d:1}")


def apply(
    connection: Any, config: ApplyConfig, records: list[Record], topic: str = "reviews"
) -> list[Output]:
    return list(Applier(config, connection).apply(topic, 0, records))


def position(client: redis.Redis, config: ApplyConfig, topic: str) -> int:
    value = client.get(config.keys.applied_offset(topic, 0))
    return -1 if value is None else int(value)


def test_without_the_fence_a_replay_counts_again(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    unfenced = apply_config(redis_url, faults=FaultPoints(fence=False))
    log = log_of([event(item="camera"), event(item="lens")])
    apply(connection, unfenced, log)
    apply(connection, unfenced, log)
    assert stored(client, unfenced.keys, ["alice"]).counts == {"camera": 2, "lens": 2}


@pytest.mark.parametrize("call_number", [1, 2])
@pytest.mark.parametrize("reached", [False, True])
def test_after_a_crash_at_either_step_an_event_counts_once_as_the_first_of_its_user(
    client: redis.Redis, connection: NodeConnection, redis_url: str, call_number: int, reached: bool
) -> None:
    config = apply_config(redis_url)
    log = log_of([event(action="like")])
    with pytest.raises(Crash):
        apply(CrashingConnection(connection, call_number, reached), config, log)
    (output,) = apply(connection, config, log)
    change = StateChange.decode(output.value or b"")
    assert change.first_user_item
    assert change.effect is (
        Effect.REPLAYED if (call_number, reached) == (2, True) else Effect.APPLIED
    )
    state = stored(client, config.keys, ["alice"])
    assert (state.counts, state.uniques) == ({"camera": 1}, {"camera": 1})


def test_a_resent_event_is_a_duplicate_on_its_own_topic_and_on_the_other(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url)
    same = event(event_id="sent-three-times")
    outputs = apply(connection, config, log_of([same, same])) + apply(
        connection, config, log_of([same]), "feedback"
    )
    effects = [StateChange.decode(output.value or b"").effect for output in outputs]
    assert effects == [Effect.APPLIED, Effect.DUPLICATE, Effect.DUPLICATE]
    assert stored(client, config.keys, ["alice"]).counts == {"camera": 1}


def test_the_same_id_from_two_users_is_two_events(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url)
    apply(connection, config, log_of([event("alice", event_id="1"), event("bob", event_id="1")]))
    assert stored(client, config.keys, USERS).counts == {"camera": 2}


def test_a_skip_is_not_popularity_and_lowers_the_trend_if_its_user_is_established(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url)
    skips = [event(action="skip", at=0), event("bob", "lens", "undo"), event("bob", action="skip")]
    skips.append(event("bob", action="skip", at=8 * DAY_S))
    apply(connection, config, log_of(skips))
    state = stored(client, config.keys, ["alice"])
    assert (state.counts, state.uniques) == ({}, {})
    assert state.trends["camera"].sums == (-1.0,) * 6
    assert len(state.histories["alice"]) == 1


def test_history_keeps_the_newest_by_event_time(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url, history_length=3)
    events = [event(item=f"item-{at}", at=at) for at in (5, 1, 4, 2, 3)]
    apply(connection, config, log_of(events))
    stored(client, config.keys, ["alice"]).same_as(expected(events, history_length=3))


def test_the_ledger_is_bounded_but_keeps_events_that_are_not_counted_yet(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url, ledger_length=10)
    log = log_of([event(item=f"item-{n}", action="like") for n in range(60)])
    with pytest.raises(Crash):
        apply(CrashingConnection(connection, 2, reached=False), config, log[:50])
    apply(connection, config, log[:50])
    assert stored(client, config.keys, ["alice"]).uniques.total() == 50
    apply(connection, config, log[50:])
    assert client.zcard(config.keys.ledger("alice", "reviews")) == 10


@pytest.mark.parametrize(("later", "counted"), [(9, 10), (10, 12)])
def test_an_event_id_sent_again_counts_again_only_beyond_the_ledger(
    client: redis.Redis, connection: NodeConnection, redis_url: str, later: int, counted: int
) -> None:
    """With a new time, as `POST /feedback` allows. The control: within the ledger it does not."""
    config = apply_config(redis_url, ledger_length=10)
    first = event(action="like", event_id="again")
    others = [event(action="like", at=n) for n in range(later)]
    again = event(action="like", at=99, event_id="again")
    for events, offset in (([first], 0), (others, 1), ([again], later + 1)):
        apply(connection, config, log_of(events, offset))
    assert stored(client, config.keys, ["alice"]).counts == {"camera": counted}


def test_lost_writes_of_the_server_are_detected(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url)
    log = log_of([event(item=f"item-{n}") for n in range(6)])
    apply(connection, config, log[:4])
    client.set(config.keys.applied_offset("reviews", 0), 1)
    with pytest.raises(redis.ResponseError, match="GAP"):
        apply(connection, config, log[4:])


MALFORMED = {
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


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_becomes_a_dead_letter_and_the_offset_advances(
    client: redis.Redis, connection: NodeConnection, redis_url: str, name: str
) -> None:
    config = apply_config(redis_url)
    good = log_of([event(), event()])
    malformed = Record(1, b"key\xff", MALFORMED[name], 1.0)
    outputs = apply(
        connection, config, [good[0], malformed, Record(2, b"alice", good[1].value, 2e12)]
    )
    assert [output.topic for output in outputs] == ["state-changes", "reviews.dlq", "state-changes"]
    assert (outputs[1].key, outputs[1].value) == (b"key\xff", MALFORMED[name])
    headers = dict(outputs[1].headers)
    assert (headers["topic"], headers["partition"], headers["offset"]) == (b"reviews", b"0", b"1")
    assert headers["stage"] == b"decode"
    assert headers["error"]
    assert position(client, config, "reviews") == 2
    assert stored(client, config.keys, ["alice"]).counts == {"camera": 2}


def test_without_dead_letters_one_malformed_record_stops_the_partition(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url, faults=FaultPoints(fault="no-dead-letters"))
    log = [Record(0, b"key", b"malformed", 1.0), *log_of([event()], first=1)]
    for _ in range(3):
        with pytest.raises(BadEvent):
            apply(connection, config, log)
    assert position(client, config, "reviews") == -1


def test_an_event_from_the_far_future_is_a_dead_letter(
    client: redis.Redis, connection: NodeConnection, redis_url: str
) -> None:
    config = apply_config(redis_url)
    (output,) = apply(connection, config, log_of([event(at=1000 * DAY_S)]))
    assert output.topic == "reviews.dlq"
    assert not stored(client, config.keys, ["alice"]).trends
