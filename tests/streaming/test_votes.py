"""Trends count one vote per user, item and action; votes of established users separately."""

from __future__ import annotations

import pytest
import redis

from afterclick.events import InteractionEvent
from afterclick.state import StateChange
from afterclick.trends import TrendTable
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from tests.streaming.builders import (
    AGE_S,
    DAY_S,
    START_S,
    WEIGHTS,
    apply_config,
    event,
    expected,
    log_of,
    stored,
)

LIKE = WEIGHTS["like"]


def apply(
    client: redis.Redis, config: ApplyConfig, events: list[InteractionEvent]
) -> list[StateChange]:
    """Apply the events, check the state; returns the changes."""
    outputs = Applier(config, NodeConnection(config.url)).apply("feedback", 0, log_of(events))
    changes = [StateChange.decode(output.value or b"") for output in outputs]
    stored(client, config.keys, {one.data.user_id for one in events}).same_as(expected(events))
    return changes


def test_a_hundred_likes_of_one_user_are_a_hundred_interactions_and_one_vote(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    apply(client, config, [event(action="like", at=n) for n in range(100)])
    state = stored(client, config.keys, ["alice"])
    assert (state.counts, state.uniques) == ({"camera": 100}, {"camera": 1})
    assert state.trends["camera"].time_ms == (START_S + 99) * 1000
    assert state.trends["camera"].sums == pytest.approx((LIKE,) * 6)


def test_skips_do_not_add_up_either(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    apply(client, config, [event(action="skip", at=n) for n in range(20)])
    assert stored(client, config.keys, ["alice"]).trends["camera"].sums == pytest.approx(
        (-1.0,) * 6
    )


def test_each_action_of_each_user_is_a_vote(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    events = [
        event(user, action=action)
        for user in ("alice", "bob")
        for action in ("like", "view", "like")
    ]
    apply(client, config, events)
    sums = stored(client, config.keys, ["alice"]).trends["camera"].sums
    assert sums == pytest.approx((2 * (LIKE + WEIGHTS["view"]),) * 6)


def test_a_late_older_vote_changes_nothing(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    new, old = event(action="like", at=30 * DAY_S), event(action="like", at=1)
    apply(client, config, [new])
    before = stored(client, config.keys, ["alice"]).trends
    Applier(config, NodeConnection(redis_url)).apply("feedback", 0, log_of([old], first=1))
    assert stored(client, config.keys, ["alice"]).trends == before


def test_a_user_with_an_old_first_event_is_established(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    events = [
        event(item="lens", action="like"),
        event(action="like", at=AGE_S),
        event("bob", action="like"),
    ]
    changes = apply(client, config, events)
    assert [change.established for change in changes] == [False, True, False]
    trends = stored(client, config.keys, ["alice"]).trends
    assert trends["lens"].established == (0.0,) * 6
    assert trends["camera"].established == pytest.approx((LIKE,) * 6)


def test_a_late_first_event_makes_existing_votes_established(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    votes = [event(item=f"item-{n}", action="like", at=20 * DAY_S + n) for n in range(3)]
    changes = apply(client, config, [*votes, event(item="lens", action="undo", at=1)])
    assert len(changes[-1].compensations) == 3
    trends = stored(client, config.keys, ["alice"]).trends
    assert all(sum(trends[f"item-{n}"].established) > 0 for n in range(3))


def test_the_published_changes_result_in_the_same_trends(
    client: redis.Redis, redis_url: str
) -> None:
    """A reader of `state-changes` has the trends of Redis."""
    config = apply_config(redis_url)
    times = (30, 9, 9, 2, 20, 0, 30, 11)
    events = [
        event(user, f"item-{n % 3}", action, at=day * DAY_S)
        for n, day in enumerate(times)
        for user in ("alice", "bob")
        for action in ("like", "skip")
    ]
    table = TrendTable()
    for change in apply(client, config, events):
        table.apply(change)
    now = (START_S + 40 * DAY_S) * 1000.0
    votes, established = table.both(now)
    for row, item in enumerate(table.ids):
        trend = stored(client, config.keys, ["alice"]).trends[item].add(now, 0.0)
        assert votes[row] == pytest.approx(trend.sums, abs=1e-9)
        assert established[row] == pytest.approx(trend.established, abs=1e-9)


def test_compensations_are_trimmed_with_the_ledger(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url, ledger_length=10)
    events = [event(action="like", at=n) for n in range(60)]
    applier = Applier(config, NodeConnection(redis_url))
    log = log_of(events)
    for start in (0, 20, 40):
        list(applier.apply("feedback", 0, log[start : start + 20]))
    assert client.hlen(config.keys.compensations("alice", "feedback")) <= 20
    assert client.zcard(config.keys.ledger("alice", "feedback")) <= 20
