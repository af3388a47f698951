"""Checks of the job before it starts a query."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import redis

from afterclick.errors import StateConflict
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import HALF_LIVES_MS, Trend
from streaming.handover import archive_orphaned_log
from streaming.job import check_state_version, run


def test_a_log_without_its_checkpoint_is_renamed(settings: Settings) -> None:
    log = Path(settings.archive)
    (log / "_spark_metadata").mkdir(parents=True)
    (log / "kept.parquet").touch()
    archive_orphaned_log(settings)
    assert not log.exists()
    (renamed,) = log.parent.glob("log.*")
    assert (renamed / "kept.parquet").exists()


def test_a_folder_without_a_log_is_left_alone(settings: Settings) -> None:
    archive_orphaned_log(settings)
    assert not list(Path(settings.archive).parent.glob("log.*"))


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
