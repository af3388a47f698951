"""Checks of the job before it starts a query."""

from __future__ import annotations

import threading

import pytest
import redis

from afterclick.errors import StateConflict
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import HALF_LIVES_MS, Trend
from streaming.job import check_state_version, run


def test_a_state_of_an_earlier_version_is_rejected(settings: Settings) -> None:
    keys, partition = settings.redis.keys, TopicPartition(settings.kafka.topics.reviews, 0)
    with redis.Redis.from_url(settings.redis.url) as client:
        check_state_version(client, keys, [partition])
        client.hset(
            keys.trends(*partition), "camera", Trend(1.0, (0.0,) * len(HALF_LIVES_MS)).pack()
        )
        check_state_version(client, keys, [partition])
        client.hset(keys.trends(*partition), "camera", bytes(56))
        with pytest.raises(StateConflict, match="afterclick rebuild"):
            run(settings, threading.Event())
