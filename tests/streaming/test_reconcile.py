"""Reconcile finds errors in the state and reports them as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest
import redis
from typer.testing import CliRunner

from afterclick.settings import Settings
from afterclick.state import StarCounts
from afterclick.trends import Trend
from infra.cli import app
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import event, raw
from tests.streaming.stream_process import environment, produce
from tests.streaming.topic_log import apply_log


@pytest.fixture
def applied(settings: Settings, client: redis.Redis) -> Settings:
    """A log of likes, a skip, an undo, a repeat and a malformed record, applied to the state."""
    events = [
        event(f"user-{n % 7}", f"item-{n % 5}", "like", at=n, event_id=str(n)) for n in range(30)
    ]
    undo = event("user-3", "item-3", "undo", at=99)
    stars = [event(f"user-{n}", "item-0", "review", at=50 + n, rating=n) for n in range(6)]
    stars += [event("user-5", "item-0", "review", at=60, rating=1.0)]
    skip = event(action="skip")
    produce(settings, [*events, *stars, skip, undo, events[3], b"poison"])
    apply_log(settings)
    return settings


def test_a_correct_state_has_no_differences(applied: Settings) -> None:
    report = reconcile(applied)
    assert report.differences == 0
    assert (report.events, report.duplicates, report.poison, report.behind) == (41, 1, 1, 0)
    assert report.counted_in_state == report.counted_in_log == 37


def damage_count(client: redis.Redis, settings: Settings) -> None:
    (key,) = list(client.scan_iter(settings.redis.prefix + "*counts"))[:1]
    client.hincrby(key, next(iter(client.hkeys(key))), 1)


def damage_trend(client: redis.Redis, settings: Settings) -> None:
    (key,) = list(client.scan_iter(settings.redis.prefix + "*trends"))[:1]
    item, packed = next(iter(raw(client.hgetall(key)).items()))
    trend = Trend.unpack(packed)
    client.hset(key, item, replace(trend, sums=(*trend.sums[:-1], trend.sums[-1] + 1e-6)).pack())


def damage_established(client: redis.Redis, settings: Settings) -> None:
    (key,) = list(client.scan_iter(settings.redis.prefix + "*trends"))[:1]
    item, packed = next(iter(raw(client.hgetall(key)).items()))
    trend = Trend.unpack(packed)
    client.hset(key, item, replace(trend, established=trend.sums).pack())


def damage_ratings(client: redis.Redis, settings: Settings) -> None:
    (key,) = list(client.scan_iter(settings.redis.prefix + "*ratings"))[:1]
    item, numbers = next(iter(raw(client.hgetall(key)).items()))
    client.hset(key, item, StarCounts.decode(numbers).plus(StarCounts(stars=1)).encode())


def damage_history(client: redis.Redis, settings: Settings) -> None:
    client.zremrangebyrank(settings.redis.keys.history("user-1"), 0, 0)


def invent_user(client: redis.Redis, settings: Settings) -> None:
    client.zadd(settings.redis.keys.history("ghost"), {'["1","camera","like",null]': 1})


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (damage_count, "count"),
        (damage_trend, "trend"),
        (damage_established, "trend"),
        (damage_ratings, "ratings"),
        (damage_history, "history"),
        (invent_user, "history"),
    ],
)
def test_damage_is_named_and_exits_1(
    applied: Settings,
    damage: Callable[[redis.Redis, Settings], None],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with redis.Redis.from_url(applied.redis.url) as client:
        damage(client, applied)
    for name, value in environment(applied).items():
        if name.startswith("AFTERCLICK_") or name not in os.environ:
            monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["reconcile", "--json"])
    assert result.exit_code == 1
    report = orjson.loads(result.stdout.splitlines()[-1])
    assert report["by_kind"] == {kind: 1}
    assert report["double"] == (1 if kind == "count" else 0)
    assert report["examples"][0]["where"].startswith(kind)
