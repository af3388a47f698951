"""Training obeys the settings of streaming and serving: limits, established users, histories."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import redis

from afterclick.settings import RedisSettings, Settings
from training.config import AlsConfig, ModelConfig, ReplayConfig
from training.evaluation.holdout import Holdout, ask
from training.event_log import EventLog
from training.fit import ModelTrainer
from training.interactions import Interactions
from training.models.als import implicit_als
from training.models.popularity import trends_at, without_pushed_rows
from training.protocols import EvaluationSplit, queries
from training.query_replay import replay
from training.workspace import approved_items

DAY = 86_400_000
PUSHED = 3


@cache
def pushed_shop() -> EventLog:
    """1,500 purchases of 100 users in 90 days, and 200 votes of new accounts for one item."""
    random = np.random.default_rng(3)
    user = np.concatenate([np.arange(1500) % 100, 100 + np.arange(200)])
    item = np.concatenate([random.integers(25, size=1500), np.full(200, PUSHED)])
    time_ms = np.concatenate([random.uniform(0, 90, 1500), random.uniform(88, 90, 200)]) * DAY
    rows = Interactions(
        np.array([f"u{n}" for n in range(300)]),
        np.array([f"i{n}" for n in range(25)]),
        user.astype(np.int32),
        item.astype(np.int32),
        time_ms.astype(np.int64),
        np.ones(1700, np.float32),
    )
    return EventLog.of(rows)


def settings_with(stream: dict[str, Any], serving: dict[str, Any]) -> Settings:
    settings = Settings()
    return settings.model_copy(
        update={
            "stream": settings.stream.model_copy(update=stream),
            "serving": settings.serving.model_copy(update=serving),
        }
    )


def test_the_configuration_of_a_model_has_the_settings_of_streaming_and_serving() -> None:
    settings = settings_with(
        {"established_days": 3.0, "history_length": 7},
        {"quarantine_max_ratio": 2.0, "quarantine_allowance": 5.0},
    )
    known = ModelConfig.of(settings, "fast", "implicit", approved={"b", "a"}).replay
    assert (known.limits.max_ratio, known.limits.allowance) == (2.0, 5.0)
    assert (known.established_days, known.history_length) == (3.0, 7)
    assert known.approved == ("a", "b")
    assert ModelConfig.of(Settings()).replay == ReplayConfig()  # the defaults are the same


@pytest.mark.parametrize(
    ("stream", "serving", "approved", "limited"),
    [
        ({}, {}, (), True),
        ({}, {"quarantine_max_ratio": 0.0}, (), False),
        ({}, {"quarantine_allowance": 1e6}, (), False),
        ({"established_days": 0.0}, {}, (), False),
        ({}, {}, (f"i{PUSHED}",), False),
        ({}, {}, ("i4",), True),
    ],
)
def test_limits_and_approvals_of_serving_hold_in_training(
    stream: dict[str, Any], serving: dict[str, Any], approved: tuple[str, ...], limited: bool
) -> None:
    log = pushed_shop()
    known = ReplayConfig.of(settings_with(stream, serving), approved)
    ((_, trends),) = trends_at(log, log.time_ms[-1:] + 1, known)
    assert trends.quarantined[PUSHED] == limited
    learned = without_pushed_rows(log, known)
    assert (len(learned) < len(log)) == limited
    config = ModelConfig(als=AlsConfig(rank=4, iterations=1), towers=None, ncf=None, replay=known)
    model = ModelTrainer(config, {}, implicit_als).fit(log, "v").model
    popularity = model.popularity[model.index[f"i{PUSHED}"]]
    assert (popularity < 100) == limited


def test_histories_have_the_length_of_serving() -> None:
    log = pushed_shop()
    split = EvaluationSplit(log, 80 * DAY, 91 * DAY, 1)
    asked = queries(split, "returning")
    for length in (2, 200):
        known = replace(ReplayConfig(), history_length=length)
        longest = max(len(one.user.items) for one in replay(log, asked, known))
        assert longest == 2 if length == 2 else longest > 4


@pytest.mark.parametrize("limited", [True, False])
def test_the_gate_asks_with_the_limits_of_serving(limited: bool) -> None:
    serving = {} if limited else {"quarantine_max_ratio": 0.0}
    known = ReplayConfig.of(settings_with({}, serving))
    split = EvaluationSplit(pushed_shop(), int(88.5 * DAY), 91 * DAY, 1)
    asked = Holdout.of(split, 100, seed=1, known=known)
    lists = np.concatenate([found.lists["trends"] for found in ask(asked, {}).values()])
    assert len(lists) > 5
    assert (lists[:, 0] == PUSHED).any() != limited


def test_approved_items_come_from_redis(redis_url: str) -> None:
    settings = Settings(redis=RedisSettings(url=redis_url, prefix="approved-items:"))
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.sadd(settings.redis.keys.approved, "a", "b")
    assert approved_items(settings) == {"a", "b"}
    nowhere = Settings(redis=RedisSettings(url="redis://127.0.0.1:1", prefix="approved-items:"))
    assert approved_items(nowhere) == frozenset()
