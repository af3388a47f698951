"""Trends count one vote per user, item and action; votes of established users separately."""

from __future__ import annotations

from itertools import permutations

import pytest
import redis

from afterclick.events import MAX_LEAD_MS, InteractionEvent
from afterclick.state import LATE_ITEMS, StarCounts, StateChange
from afterclick.trends import Trend, TrendTable
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from tests.streaming.builders import (
    AGE_S,
    DAY_S,
    LOG_MS,
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


def test_an_event_ahead_of_the_log_neither_lowers_its_item_nor_keeps_it_from_decaying(
    client: redis.Redis, redis_url: str
) -> None:
    """Control: with its own time, it divides the trend of the hour by 2^23."""
    config, now_s = apply_config(redis_url), LOG_MS / 1000 - START_S
    likes = [event(f"user-{n}", action="like", at=now_s) for n in range(30)]
    log = log_of([*likes, event("mallory", action="view", at=now_s + 23 * 3600)])
    outputs = Applier(config, NodeConnection(redis_url)).apply("feedback", 0, log)
    table = TrendTable()
    for output in outputs:
        table.apply(StateChange.decode(output.value or b""))
    trend = stored(client, config.keys, []).trends["camera"]
    before = Trend(LOG_MS, (60.0,) * 6)
    assert trend.time_ms == LOG_MS + MAX_LEAD_MS
    assert trend.sums == pytest.approx(before.add(trend.time_ms, WEIGHTS["view"]).sums)
    assert table.values(trend.time_ms)[0] == pytest.approx(trend.sums)  # in the API
    assert min(trend.sums) > 55
    assert before.add(LOG_MS + 23 * 3_600_000, WEIGHTS["view"]).sums[0] < 1.1


def test_skips_do_not_add_up_either(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    skips = [event(action="skip", at=AGE_S + n) for n in range(20)]
    apply(client, config, [event(item="lens"), *skips])
    assert stored(client, config.keys, ["alice"]).trends["camera"].sums == pytest.approx(
        (-1.0,) * 6
    )


@pytest.mark.parametrize("age", [0, AGE_S], ids=["new", "established"])
def test_a_thousand_skips_of_new_accounts_do_not_lower_an_item(
    client: redis.Redis, redis_url: str, age: int
) -> None:
    """Control: skips of established users do."""
    config, users = apply_config(redis_url), [f"user-{n}" for n in range(1000)]
    votes = [event(f"voter-{n}", action="like", at=AGE_S) for n in range(30)]
    firsts = [event(user, item="lens") for user in users]
    skips = [event(user, action="skip", at=age) for user in users]
    apply(client, config, [*votes, *firsts, *skips])
    trend = stored(client, config.keys, []).trends["camera"].add((START_S + AGE_S) * 1000.0, 0.0)
    assert trend.sums == pytest.approx((60.0 if age == 0 else 60.0 - 1000.0,) * 6)


def test_a_skip_counts_once_its_user_is_established(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url)
    skip = event(action="skip", at=20 * DAY_S)
    apply(client, config, [skip])
    assert stored(client, config.keys, ["alice"]).trends["camera"].sums == (0.0,) * 6
    config = apply_config(redis_url)
    (_, change) = apply(client, config, [skip, event(item="lens", action="undo", at=1)])
    assert [each.weight for each in change.compensations] == [-1.0]
    assert stored(client, config.keys, ["alice"]).trends["camera"].sums == (-1.0,) * 6


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


def test_a_late_first_event_of_a_dataset_makes_existing_votes_established(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    votes = [event(item=f"item-{n}", action="like", at=20 * DAY_S + n) for n in range(3)]
    changes = apply(client, config, [*votes, event(item="lens", action="undo", at=1)])
    assert len(changes[-1].compensations) == 3
    trends = stored(client, config.keys, ["alice"]).trends
    assert all(sum(trends[f"item-{n}"].established) > 0 for n in range(3))


@pytest.mark.parametrize("source", ["afterclick/api", "dataset/test"])
def test_a_client_cannot_date_an_account_back(
    client: redis.Redis, redis_url: str, source: str
) -> None:
    """Before its votes or after them. Control: a source that is trusted with the past."""
    config = apply_config(redis_url)
    first = event(item="lens", action="undo", at=1, source=source)
    like = event(action="like", at=39 * DAY_S, source=source)
    second = event("bob", action="like", at=39 * DAY_S, source=source)
    late = event("bob", item="lens", action="undo", at=1, source=source)
    changes = apply(client, config, [first, like, second, late])
    trend = stored(client, config.keys, ["alice", "bob"]).trends["camera"]
    if source == "afterclick/api":
        assert not any(change.established or change.compensations for change in changes)
        assert trend.established == (0.0,) * 6
    else:
        assert trend.established == pytest.approx((2 * LIKE,) * 6)


def test_a_client_is_established_a_week_after_its_first_event_reached_the_log(
    client: redis.Redis, redis_url: str
) -> None:
    config, day_ms = apply_config(redis_url), DAY_S * 1000
    applier, changes = Applier(config, NodeConnection(redis_url)), []
    for offset, day in enumerate((0, 6, 7, 8)):
        like = event(item=f"item-{day}", action="like", source="afterclick/api")
        outputs = applier.apply("feedback", 0, log_of([like], offset, LOG_MS + day * day_ms))
        changes += [StateChange.decode(output.value or b"") for output in outputs]
    assert [change.established for change in changes] == [False, False, True, True]


def test_a_replaced_vote_is_retracted_as_it_was_counted(
    client: redis.Redis, redis_url: str
) -> None:
    """A vote of a new account is replaced once the account is established."""
    config = apply_config(redis_url)
    applier = Applier(config, NodeConnection(redis_url))
    for offset, day in enumerate((0, 8)):
        like = event(action="like", at=day, source="afterclick/api")
        list(applier.apply("feedback", 0, log_of([like], offset, LOG_MS + day * DAY_S * 1000)))
    trend = stored(client, config.keys, ["alice"]).trends["camera"]
    assert trend.sums == pytest.approx((LIKE,) * 6)
    assert trend.established == pytest.approx((LIKE,) * 6)


@pytest.mark.parametrize("items", [LATE_ITEMS, LATE_ITEMS + 1])
def test_an_older_event_changes_the_votes_of_users_with_few_items_only(
    client: redis.Redis, redis_url: str, items: int
) -> None:
    """Whatever a user has done before, one event has a limited number of compensations."""
    config = apply_config(redis_url)
    votes = [event(item=f"item-{n}", action="view", at=20 * DAY_S) for n in range(items)]
    log = log_of([*votes, event(item="lens", action="undo", at=1)])
    *_, output = Applier(config, NodeConnection(redis_url)).apply("feedback", 0, log)
    compensations = StateChange.decode(output.value or b"").compensations
    assert len(compensations) == (LATE_ITEMS if items == LATE_ITEMS else 0)


def test_events_beyond_the_limit_of_items_are_interactions_without_a_vote(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url, max_voted_items=3)
    likes = [event(item=f"item-{n}", action="like", at=n) for n in range(5)]
    log = log_of([*likes, event(item="item-0", action="like", at=9)])
    list(Applier(config, NodeConnection(redis_url)).apply("feedback", 0, log))
    state = stored(client, config.keys, ["alice"])
    assert state.counts == {"item-0": 2} | {f"item-{n}": 1 for n in range(1, 5)}
    assert state.uniques == {f"item-{n}": 1 for n in range(3)}
    assert state.trends["item-0"].sums == pytest.approx((LIKE,) * 6)
    assert state.trends["item-4"].sums == pytest.approx((0.0,) * 6)
    assert client.hlen(config.keys.votes("alice")) == 1 + 3


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
    ratings = (1.0, 5.0, None, 3.0, 5.0, 1.0, 2.0, 4.0)
    events += [
        event(user, f"item-{n % 3}", "review", at=day * DAY_S + 1, rating=rating)
        for n, (day, rating) in enumerate(zip(times, ratings, strict=True))
        for user in ("alice", "bob")
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
    stars = {
        item: tuple(numbers) for item, numbers in zip(table.ids, table.stars.tolist(), strict=True)
    }
    assert stars == stored(client, config.keys, []).ratings


STARS_OF_ALICE = [
    event(action="review", rating=5.0, at=1, event_id="five"),
    event(action="review", at=2, event_id="none"),
    event(action="review", rating=1.0, at=3, event_id="one"),
]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_newest_review_replaces_the_others_in_any_order(
    client: redis.Redis, redis_url: str, order: tuple[int, ...]
) -> None:
    """A negative one of a new account counts in the stars, not in the trend."""
    config = apply_config(redis_url)
    apply(client, config, [STARS_OF_ALICE[n] for n in order])
    state = stored(client, config.keys, ["alice"])
    assert state.ratings == {"camera": StarCounts(ratings=1, stars=1, not_positive=1)}
    assert (state.counts, state.uniques) == ({"camera": 3}, {"camera": 1})
    assert state.trends["camera"].sums == pytest.approx((0.0,) * 6)


def test_a_user_counts_once_whatever_reviews_replace_each_other(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    ratings = (5.0, 1.0, 5.0, 2.0, None, 1.0, 4.0)
    apply(
        client,
        config,
        [event(action="review", rating=rating, at=n) for n, rating in enumerate(ratings)],
    )
    state = stored(client, config.keys, ["alice"])
    assert state.uniques == {"camera": 1}
    assert state.ratings == {"camera": StarCounts(1, 4, 1, not_positive=3)}


def test_votes_stored_before_there_were_stars_are_replaced(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    review = event(action="review", at=1)
    list(Applier(config, NodeConnection(redis_url)).apply("reviews", 0, log_of([review])))
    stored_vote = client.hget(config.keys.votes("alice"), "camera")
    assert stored_vote == f"A{(START_S + 1) * 1000}".encode()  # the text of every version
    stars = event(action="review", rating=1.0, at=2)
    list(Applier(config, NodeConnection(redis_url)).apply("reviews", 0, log_of([stars], 1)))
    assert client.hget(config.keys.votes("alice"), "camera") == (
        f"+v{(START_S + 2) * 1000}".encode()
    )


def test_compensations_are_trimmed_with_the_ledger(client: redis.Redis, redis_url: str) -> None:
    config = apply_config(redis_url, ledger_length=10)
    events = [event(action="like", at=n) for n in range(60)]
    applier = Applier(config, NodeConnection(redis_url))
    log = log_of(events)
    for start in (0, 20, 40):
        list(applier.apply("feedback", 0, log[start : start + 20]))
    assert client.hlen(config.keys.compensations("alice", "feedback")) <= 20
    assert client.zcard(config.keys.ledger("alice", "feedback")) <= 20
