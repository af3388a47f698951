"""Lists shown and reactions in the log: verified, rebuilt, and forgotten with their user."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from afterclick.exposures import Cell, day_of
from afterclick.io.event_archive import EventArchive
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming.exposures import ExposureApplier, ExposureConfig
from streaming.proof.forget import Forgetter
from streaming.proof.forget_requests import forget, request_forgetting
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import Crash, impression, reaction
from tests.streaming.stream_process import produce
from tests.streaming.topic_log import apply_log, archive_log, partition_logs

USERS = ("alice", "bob", "carol")
LISTS = [impression(f"{user}-{n}", user) for user in USERS for n in range(4)]
REACTIONS = [
    reaction(f"{user}-{n}", item, action, user=user)
    for user in USERS
    for n, (item, action) in enumerate([("a", "click"), ("b", "like"), ("c", "skip")])
]
OTHERS = [reaction("alice-0", "b", user="mallory"), reaction("unknown", "a")]


@pytest.fixture
def logged(settings: Settings) -> Settings:
    """Lists and reactions in the log, some repeated, applied and archived."""
    produce(settings, [*LISTS, LISTS[0], b"poison"], "impressions")
    produce(settings, [*REACTIONS, *OTHERS, REACTIONS[0]], "feedback")
    archive_log(settings)
    apply_log(settings)
    return settings


def test_the_counts_equal_those_of_the_log(logged: Settings) -> None:
    report = reconcile(logged, wait_s=30)
    assert report.differences == 0, report.examples
    assert (report.lists_in_state, report.lists_in_log) == (12, 12)
    assert (report.reactions_in_state, report.reactions_in_log) == (9, 9)


def test_a_wrong_count_is_a_difference(logged: Settings, client: redis.Redis) -> None:
    (key, *_) = client.scan_iter(f"{logged.redis.prefix}*:exposures:*")
    field: Any = next(iter(client.hkeys(key)))
    client.hincrby(key, field, 1)
    report = reconcile(logged)
    assert report.by_kind == {"exposure": 1}
    assert Cell.parse("", field).column in report.examples[0].where


def test_lists_that_the_topic_no_longer_holds_are_verified_by_the_archive(
    logged: Settings,
) -> None:
    from kafka import KafkaAdminClient
    from kafka import TopicPartition as Partition

    admin = KafkaAdminClient(bootstrap_servers=logged.kafka.bootstrap)
    for name, log in partition_logs(logged, *logged.kafka.topics.logged):
        admin.delete_records({Partition(*name): log[-1].offset})
    admin.close()
    report = reconcile(logged)
    assert report.differences == 0, report.examples
    assert (report.lists_in_log, report.reactions_in_log) == (12, 9)
    rebuild(logged)
    assert reconcile(logged).differences == 0


def test_the_rebuilt_counts_equal_the_log(logged: Settings, client: redis.Redis) -> None:
    lists = EventArchive.open(logged.impression_archive).read()
    assert (lists.num_rows, len(set(lists["impression_id"].to_pylist()))) == (13, 12)
    rebuild(logged)
    report = reconcile(logged)
    assert (report.differences, report.lists_in_state, report.reactions_in_state) == (0, 12, 9)
    produce(
        logged, [reaction("bob-0", "c", user="bob")], "feedback"
    )  # the lists still take reactions
    archive_log(logged)
    apply_log(logged)
    report = reconcile(logged)
    assert (report.differences, report.reactions_in_state) == (0, 10)


def keys_of(client: redis.Redis, settings: Settings, user: str) -> set[str]:
    pattern = settings.redis.keys.impression(user, "*")
    return {key.decode().rpartition(":")[2] for key in client.scan_iter(pattern, count=5000)}


def test_forgetting_retracts_the_lists_and_deletes_what_was_kept_of_them(
    logged: Settings, client: redis.Redis
) -> None:
    assert keys_of(client, logged, "alice") == {f"alice-{n}" for n in range(4)} | {"unknown"}
    forgotten = forget(logged, "alice")
    assert forgotten.rows == 5 + 3 + 1 + 1  # lists, reactions, to an unknown list, repeated
    assert keys_of(client, logged, "alice") == set()
    report = reconcile(logged)
    assert report.differences == 0, report.examples
    assert (report.lists_in_state, report.reactions_in_state) == (8, 6)
    lists = EventArchive.open(logged.impression_archive).read(columns=["user_id"])
    assert set(lists["user_id"].to_pylist()) == {"bob", "carol"}

    produce(logged, LISTS, "impressions")  # what is sent again does not restore the user
    produce(logged, REACTIONS, "feedback")
    later_ms = forgotten.until_ms + 1000
    late = [reaction("alice-0", "a", at_ms=later_ms), reaction("alice-9", "a", at_ms=later_ms)]
    produce(logged, late, "feedback")
    produce(logged, [impression("alice-9", at_ms=later_ms)], "impressions")
    archive_log(logged)
    apply_log(logged)
    report = reconcile(logged)
    assert report.differences == 0, report.examples
    assert (report.lists_in_state, report.reactions_in_state) == (9, 7)
    rebuild(logged)
    assert reconcile(logged).differences == 0


def test_lists_whose_keys_have_expired_are_retracted(logged: Settings, client: redis.Redis) -> None:
    for name in keys_of(client, logged, "alice"):
        client.delete(logged.redis.keys.impression("alice", name))
    forget(logged, "alice")
    report = reconcile(logged)
    assert report.differences == 0, report.examples
    assert (report.lists_in_state, report.reactions_in_state) == (8, 6)


def test_a_forgetting_that_dies_is_completed_and_retracts_once(
    logged: Settings, client: redis.Redis
) -> None:
    class Dies(Forgetter):
        def delete_entries(self, entries: Any) -> None:
            raise Crash

    until_ms = request_forgetting(logged, client, "alice")
    with pytest.raises(Crash):
        Dies(logged, client, "alice").complete(until_ms)
    Forgetter(logged, client, "alice").complete(until_ms)
    report = reconcile(logged)
    assert (report.differences, report.lists_in_state) == (0, 8)


def test_a_list_that_was_read_when_its_user_was_forgotten_is_not_retracted(
    logged: Settings, client: redis.Redis
) -> None:
    """A task died between the steps; what it read is rejected when it is read again."""
    produce(logged, [impression("alice-new")], "impressions")
    applier = ExposureApplier(ExposureConfig.of(logged), _DiesBeforeCounts(logged))
    for name, records in partition_logs(logged, logged.kafka.topics.impressions):
        if b"alice-new" in (records[-1].value or b""):
            with pytest.raises(Crash):
                applier.apply(name, records)
    assert "alice-new" in keys_of(client, logged, "alice")
    forget(logged, "alice")
    archive_log(logged)
    apply_log(logged)
    report = reconcile(logged)
    assert report.differences == 0, report.examples
    assert report.lists_in_state == 8


class _DiesBeforeCounts:
    def __init__(self, settings: Settings) -> None:
        from streaming.connection import NodeConnection

        self._inner = NodeConnection(settings.redis.url)

    def call(self, commands: Any) -> list[Any]:
        if commands[0][1] == "afterclick_count_exposures":
            raise Crash
        return self._inner.call(commands)


def test_the_counts_of_a_day_expire(logged: Settings, client: redis.Redis) -> None:
    topic, today = logged.kafka.topics.impressions, day_of(time.time() * 1000)
    found = 0
    for partition in range(logged.kafka.partitions):
        key = logged.redis.keys.exposures(*TopicPartition(topic, partition), today)
        ttl: Any = client.ttl(key)
        found += ttl > 0
        assert ttl == -2 or 90 * 86_400 < ttl <= 92 * 86_400
    assert found
