"""The state of inactive users expires; what they counted stays, and `reconcile` agrees."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from streaming.apply import Applier
from streaming.connection import NodeConnection
from streaming.proof.forget_requests import forget
from streaming.proof.reconcile import Reconciliation, reconcile
from tests.streaming.builders import (
    LOG_MS,
    TOPICS,
    WEIGHTS,
    apply_config,
    event,
    log_of,
    stored,
)
from tests.streaming.stream_process import produce
from tests.streaming.topic_log import apply_log, archive_log

LIKE = WEIGHTS["like"]
TTL_S = 2.0
HOUR_MS = 3_600_000


def ttl_ms(client: redis.Redis, keys: Keys, user: str) -> dict[str, int]:
    """Milliseconds until each key of a user expires; −1: never."""
    found: dict[str, int] = {}
    for key in client.scan_iter(keys.user(user).replace("[", r"\[") + "*", count=5000):
        left: Any = client.pttl(key)
        found[key.decode().partition("}:")[2]] = left
    return found


def test_every_key_of_a_user_expires_with_the_last_event(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    for user, days in (("session:v", 30), ("alice", 730)):
        first = [event(user, f"item-{n}", "like", at=n) for n in range(3)]
        again = event(user, "item-0", "like", at=9)  # has a compensation
        for topic, events in zip(TOPICS, (first, [again]), strict=True):
            list(Applier(config, NodeConnection(redis_url)).apply(topic, 0, log_of(events)))
        client.set(config.keys.forgotten(user), "1")
        left = ttl_ms(client, config.keys, user)
        assert left.pop("forgotten") == -1
        assert left.keys() == {
            *("history", "votes", "ledger:reviews", "ledger:feedback", "corrections:feedback")
        }
        least_ms = (days + 1) * DAY_MS
        assert max(left.values()) - min(left.values()) < HOUR_MS / 2, left
        assert all(least_ms < ms <= least_ms + HOUR_MS for ms in left.values()), left


@pytest.mark.parametrize("late", [True, False])
def test_the_keys_of_a_user_expire_at_one_moment_which_events_move(
    client: redis.Redis, redis_url: str, late: bool
) -> None:
    """The control: while they are kept for longer than needed, the moment stays."""
    config = apply_config(redis_url)
    first, again = (event("alice", "camera", "like", at=at) for at in (0, 9))
    list(Applier(config, NodeConnection(redis_url)).apply("reviews", 0, log_of([first])))
    least_ms = config.user_ttl_ms + round(DAY_MS)
    kept_ms = least_ms + (-1 if late else 1) * HOUR_MS // 2
    for key in ("history", "votes", "ledger:reviews"):
        client.pexpire(f"{config.keys.user('alice')}:{key}", kept_ms)
    list(Applier(config, NodeConnection(redis_url)).apply("feedback", 0, log_of([again])))
    left = ttl_ms(client, config.keys, "alice")
    assert left.keys() == {
        *("history", "votes", "ledger:reviews", "ledger:feedback", "corrections:feedback")
    }
    expected_ms = least_ms + HOUR_MS if late else kept_ms
    assert all(expected_ms - HOUR_MS / 4 < ms <= expected_ms for ms in left.values()), left


@pytest.mark.parametrize(("user", "counted"), [("session:v", 2), ("alice", 1)])
def test_a_returning_session_is_a_new_one(
    client: redis.Redis, redis_url: str, user: str, counted: int
) -> None:
    """The control: a user with the same pause is the same, and has one vote."""
    config = apply_config(redis_url)
    applier = Applier(config, NodeConnection(redis_url))
    pause_ms = 31 * DAY_MS
    list(applier.apply("feedback", 0, log_of([event(user, action="like")])))
    later = event(user, action="like", at=1)
    list(applier.apply("feedback", 0, log_of([later], 1, LOG_MS + pause_ms)))
    state = stored(client, config.keys, [user])
    assert (state.counts, state.uniques) == ({"camera": 2}, {"camera": counted})
    assert state.trends["camera"].sums == pytest.approx((LIKE * counted,) * 6, rel=1e-3)
    assert len(state.histories[user]) == 3 - counted


@pytest.mark.parametrize("expires", [True, False])
def test_reconcile_agrees_with_expired_sessions(
    settings: Settings, client: redis.Redis, expires: bool
) -> None:
    """The control: where sessions do not expire, a missing one is a difference."""
    days = {"session_ttl_days": TTL_S / 86_400} if expires else {}
    stream = settings.stream.model_copy(update=days)
    short = settings.model_copy(update={"stream": stream})
    sessions = ("session:gone", "session:back")
    produce(short, [event(user, "camera", "like") for user in sessions], "feedback")
    apply_log(short)
    time.sleep(TTL_S + 0.5)  # a pause in the log
    produce(short, [event("session:back", "camera", "like", at=1)], "feedback")
    apply_log(short)
    produce(short, [event("alice", "camera", "like")], "feedback")
    apply_log(short)
    assert reconcile(short).differences == 0
    topics = short.kafka.topics.interactions
    client.delete(*short.redis.keys.state_of_user("session:gone", topics))  # as a day later
    report = reconcile(short)
    assert report.uniques_in_state == (4 if expires else 3)
    assert (report.differences, report.expired) == ((0, 1) if expires else (1, 0))


def test_forgetting_an_expired_session_reports_what_remains(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, [event("session:v", "camera", "like", at=n) for n in range(3)], "feedback")
    apply_log(settings)
    archive_log(settings)
    topics = settings.kafka.topics.interactions
    client.delete(*settings.redis.keys.state_of_user("session:v", topics))
    report = forget(settings, "session:v")
    assert (report.events, report.remaining, report.rows) == (0, 3, 3)
    assert _counted(reconcile(settings)) == (3, 0)


def _counted(report: Reconciliation) -> tuple[int, int]:
    return report.counted_in_state, report.counted_in_log
