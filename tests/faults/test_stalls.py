"""What cannot be applied is set aside, and a partition that stands still is noticed."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import redis

from afterclick.errors import StateConflict
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.stalls import StallDetector
from afterclick.settings import Settings
from afterclick.state import LogPosition, StateChange, TopicPartition
from infra.embedded.kafka import delete_topics, ensure_topics
from streaming.apply import Applier
from streaming.connection import NodeConnection, load_functions
from streaming.positions import (
    applied_offsets,
    check_topics,
    log_ranges,
    mark_archived,
    set_aside,
    set_aside_records,
    starting_offsets,
)
from streaming.proof.reconcile import reconcile
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.streaming.builders import apply_config, event, log_of
from tests.streaming.stream_process import produce
from tests.waiting import wait_until

PLACE = TopicPartition("feedback", 0)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    client = redis.Redis.from_url(redis_url)
    load_functions(client)
    return client


def test_a_user_whose_state_cannot_be_changed_does_not_hold_up_the_others(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    client.set(config.keys.votes("alice"), "not a hash")
    log = log_of([event("alice"), event("bob"), event("alice", "lens"), event("carol")])
    outputs = list(Applier(config, NodeConnection(redis_url)).apply(*PLACE, log))
    assert [output.topic for output in outputs] == 2 * ["feedback.dlq", "state-changes"]
    assert b"WRONGTYPE" in dict(outputs[0].headers)["error"]
    assert applied_offsets(client, config.keys, [PLACE]) == {PLACE: 3}
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):  # what stopped the partition
        NodeConnection(redis_url).call([("HGETALL", config.keys.votes("alice"))])


def test_a_record_that_is_set_aside_becomes_a_dead_letter_whoever_starts_next(
    client: redis.Redis, redis_url: str
) -> None:
    config = apply_config(redis_url)
    log = log_of([event(item="first"), event(item="second"), event(item="third")])
    set_aside(client, config.keys, LogPosition(*PLACE, 1))
    config = replace(config, set_aside=set_aside_records(client, config.keys))
    outputs = list(Applier(config, NodeConnection(redis_url)).apply(*PLACE, log))
    assert [output.topic for output in outputs] == [
        "state-changes",
        "feedback.dlq",
        "state-changes",
    ]
    assert StateChange.decode(outputs[2].value or b"").previous_offset == 0
    assert client.hgetall(config.keys.counts(*PLACE)) == {b"first": b"1", b"third": b"1"}


def test_a_partition_is_applied_record_by_record_up_to_the_one_that_stops_it(
    client: redis.Redis, redis_url: str
) -> None:
    """Control: with chunks, it stands before the first record of the chunk."""

    class Stopped(Exception):
        pass

    class StopsAtBob(NodeConnection):
        def call(self, commands):  # type: ignore[no-untyped-def]
            if any(b"bob" in str(argument).encode() for argument in commands[0]):
                raise Stopped
            return super().call(commands)

    log = log_of([event("alice", "lens"), event("carol"), event("bob"), event("alice")])
    for careful, at in ((frozenset({PLACE}), 1), (frozenset[TopicPartition](), -1)):
        config = apply_config(redis_url, careful=careful)
        log[0] = log_of([event("alice" if careful else "bob", "lens")])[0]
        with pytest.raises(Stopped):
            list(Applier(config, StopsAtBob(redis_url)).apply(*PLACE, log))
        assert applied_offsets(client, config.keys, [PLACE]) == {PLACE: at}


def test_a_stalled_partition_is_reported_with_its_offset(settings: Settings) -> None:
    topic = settings.kafka.topics.feedback
    produce(settings, [event(f"user-{n}", event_id=str(n)) for n in range(20)], "feedback")
    with KafkaLog(settings.kafka) as log:
        ranges = log.ranges(topic)
        one, two = ranges
        detector = StallDetector(log, after_s=0.1)
        applied = {one: 2, two: ranges[two].end - 1}
        assert detector.check(ranges, applied) == []
        time.sleep(0.11)
        (stall,) = detector.check(ranges, applied)
        assert (stall.partition, stall.offset) == (one, 3)
        assert stall.seconds >= 0.1
        assert str(stall).startswith(f"{topic}/0 at offset 3 for ")
        assert detector.check(ranges, applied | {one: 3}) == []  # it moves
        detector.check(ranges, applied)
        detector.reset()
        time.sleep(0.11)
        assert detector.check(ranges, applied) == []


def test_readiness_metrics_and_dashboard_name_a_stalled_partition_until_it_moves(
    settings: Settings,
) -> None:
    stream = settings.stream.model_copy(update={"stall_s": 0.5})
    with Running(settings.model_copy(update={"stream": stream})) as api:
        api.ready()
        position = LogPosition.parse(api.feedback("alice", "camera"))
        name = str(position.topic_partition)

        def ready() -> dict[str, object]:
            body: dict[str, object] = api.get("/health/ready")
            return body

        wait_until(lambda: ready()["status"] == "stalled")
        (stall,) = api.get("/health/ready")["parts"]["stalled"]
        assert (stall["partition"], stall["offset"]) == (name, position.offset)
        assert stall["seconds"] >= 0.5
        gauge = f'afterclick_stalled_seconds{{partition="{name}"}} 0.0'
        assert gauge not in api.http.get("/metrics").text
        assert api.figures()["stalls"][0].startswith(f"{name} at offset")
        with MiniStream(settings):
            wait_until(lambda: ready()["status"] == "ready")
        assert gauge in api.http.get("/metrics").text


def test_readiness_and_metrics_name_a_stalled_archive_until_it_moves(
    settings: Settings, client: redis.Redis
) -> None:
    stream = settings.stream.model_copy(update={"stall_s": 0.05, "archive_seconds": 0.1})
    keys = settings.redis.keys
    with Running(settings.model_copy(update={"stream": stream})) as api, MiniStream(settings):
        api.ready()
        position = LogPosition.parse(api.feedback("alice", "camera"))
        ranges = log_ranges(settings.kafka)
        assert api.get("/health/ready")["parts"]["archive_stalled"] == []  # no stream has run yet
        mark_archived(client, keys, dict.fromkeys(ranges, -1))

        def stalled() -> list[dict[str, object]]:
            found: list[dict[str, object]] = api.get("/health/ready")["parts"]["archive_stalled"]
            return found

        (stall,) = wait_until(stalled)
        assert stall["partition"] == str(position.topic_partition)
        assert "afterclick_archive_stalled_seconds 0.0" not in api.http.get("/metrics").text
        mark_archived(client, keys, {name: held.end - 1 for name, held in ranges.items()})
        wait_until(lambda: not stalled())
        assert "afterclick_archive_stalled_seconds 0.0" in api.http.get("/metrics").text


@pytest.fixture
def longer_topic(settings: Settings, client: redis.Redis) -> Settings:
    """A state of three events, whose topics were then created anew with more events."""
    check_topics(client, settings.redis.keys, settings.kafka)
    produce(settings, [event(item="old", event_id=f"old-{n}") for n in range(3)])
    with MiniStream(settings):
        assert reconcile(settings, wait_s=30).differences == 0
    check_topics(client, settings.redis.keys, settings.kafka)
    delete_topics(settings.kafka)
    wait_until(lambda: bool(ensure_topics(settings)))
    produce(settings, [event(item="new", event_id=f"new-{n}") for n in range(9)])
    return settings


def test_a_topic_created_anew_is_refused_even_if_it_is_longer(
    longer_topic: Settings, client: redis.Redis
) -> None:
    with pytest.raises(StateConflict, match="created anew"):
        check_topics(client, longer_topic.redis.keys, longer_topic.kafka)


def test_without_topic_ids_the_first_events_of_a_longer_topic_are_left_out_silently(
    longer_topic: Settings, client: redis.Redis
) -> None:
    ranges = log_ranges(longer_topic.kafka)
    starting_offsets(applied_offsets(client, longer_topic.redis.keys, ranges), ranges)  # no error
    with MiniStream(longer_topic):
        assert reconcile(longer_topic, wait_s=30).lost == 3
