"""Under either trigger, the job gets past whatever a producer may write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Producer

from afterclick.events import decode_interaction, encode
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.settings import Settings
from afterclick.topics import MAX_RECORD_BYTES
from streaming.positions import log_ranges
from streaming.proof.dead_letters import read_dead_letters, redrive
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import event
from tests.streaming.stream_process import StreamProcess, produce
from tests.waiting import wait_until

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]
TRIGGERS = [pytest.param("micro-batch", marks=pytest.mark.long), "real-time"]
STALL_S = 3


@pytest.fixture
def stream(settings: Settings, tmp_path: Path) -> Iterator[StreamProcess]:
    process = StreamProcess(settings, tmp_path / "stream.log")
    yield process
    if process.running:
        process.kill()


def transactions(settings: Settings, count: int, first: int = 0) -> None:
    """Transactions of one event each: every second offset is a marker."""
    config = {"bootstrap.servers": settings.kafka.bootstrap, "message.max.bytes": MAX_RECORD_BYTES}
    producer = Producer(config | {"transactional.id": f"{settings.kafka.prefix}{first}"})
    producer.init_transactions(30)
    for n in range(first, first + count):
        producer.begin_transaction()
        one = event(f"user-{n % 5}", f"item-{n % 7}", "like", event_id=f"transaction-{n}")
        producer.produce(settings.kafka.topics.feedback, encode(one), one.data.user_id)
        producer.commit_transaction(30)


def applied(settings: Settings) -> int:
    """Records that the state contains; -1 while some are missing."""
    report = reconcile(settings)
    return -1 if report.behind else report.events


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_markers_and_records_of_any_size_are_passed(
    settings: Settings, stream: StreamProcess, trigger: str
) -> None:
    transactions(settings, 20)
    stream.start(AFTERCLICK_STREAM__TRIGGER=trigger)
    config = {
        "bootstrap.servers": settings.kafka.bootstrap,
        "message.max.bytes": 2 * MAX_RECORD_BYTES,
    }
    producer = Producer(config)
    for n in range(4):
        producer.produce(settings.kafka.topics.feedback, b"x" * (MAX_RECORD_BYTES - 120), b"%d" % n)
    assert producer.flush(30) == 0
    transactions(settings, 20, first=20)
    wait_until(lambda: applied(settings) == 44, 180, what="the whole log to be applied")
    report = reconcile(settings)
    assert (report.differences, report.counted_in_state, report.poison) == (0, 40, 4)
    assert len({letter.sha256 for letter in read_dead_letters(settings.kafka)} - {None}) == 1
    assert stream.running
    assert "query failed" not in stream.output()


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "control"])
def test_a_record_at_which_a_worker_freezes_is_set_aside(
    settings: Settings, stream: StreamProcess, trigger: str, watched: bool
) -> None:
    others = [event(f"user-{n % 9}", f"item-{n}", "like", event_id=str(n)) for n in range(40)]
    produce(settings, [*others[:20], event("frozen", event_id="frozen"), *others[20:]])
    fault = "freeze" if watched else "freeze-unwatched"
    stream.start(
        AFTERCLICK_STREAM__TRIGGER=trigger,
        AFTERCLICK_STREAM__STALL_S=str(STALL_S),
        AFTERCLICK_STREAM__FAULT=f"{fault}:frozen",
    )
    if not watched:
        wait_until(lambda: "stream running" in stream.output(), 180)
        time.sleep(20 * STALL_S)
        assert reconcile(settings).behind > 0
        assert "stalled" not in stream.output()
        return
    wait_until(lambda: reconcile(settings).behind == 0, 300, what="the partition to move on")
    assert "record set aside" in stream.output()
    (letter,) = read_dead_letters(settings.kafka)
    assert letter.error.startswith("stalled")
    report = reconcile(settings)
    assert (report.lost, report.double, report.counted_in_state) == (1, 0, 40)
    stream.kill()
    redrive(settings.kafka)
    stream.start(AFTERCLICK_STREAM__TRIGGER=trigger)  # with the cause removed
    stream.wait_applied()
    assert reconcile(settings).counted_in_state == 41


@pytest.mark.long
def test_a_record_at_which_a_worker_freezes_after_a_hand_over_is_set_aside(
    settings: Settings, stream: StreamProcess
) -> None:
    """The worker began before its query took over."""
    stream.start(
        AFTERCLICK_STREAM__TRIGGER="real-time",
        AFTERCLICK_STREAM__HANDOVER_S="5",
        AFTERCLICK_STREAM__STALL_S=str(STALL_S),
        AFTERCLICK_STREAM__FAULT="freeze:frozen",
    )
    wait_until(lambda: "took over" in stream.output(), 180, what="a hand-over")
    produce(settings, [event(f"user-{n}", f"item-{n}", event_id=str(n)) for n in range(20)])
    produce(settings, [event("frozen", event_id="frozen")])
    wait_until(lambda: reconcile(settings).behind == 0, 300, what="the partition to move on")
    assert "record set aside" in stream.output()
    report = reconcile(settings)
    assert (report.lost, report.double, report.counted_in_state) == (1, 0, 20)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "control"])
def test_a_record_at_which_the_query_fails_is_set_aside(
    settings: Settings, stream: StreamProcess, watched: bool
) -> None:
    """A damaged trend in Redis. Control: the job ends, and the next one would.

    A real-time query fails only when more rows follow, and is stalled until then.
    """
    others = [event(f"user-{n % 9}", f"item-{n}", "like", event_id=str(n)) for n in range(40)]
    produce(settings, others[:20])
    unwatched = {} if watched else {"AFTERCLICK_STREAM__FAULT": "freeze-unwatched:nobody"}
    stream.start(AFTERCLICK_STREAM__STALL_S="120", **unwatched)  # in micro-batches
    stream.wait_applied()
    trends = [settings.redis.keys.trends(*name) for name in log_ranges(settings.kafka)]
    with redis.Redis.from_url(settings.redis.url) as client:
        for key in trends:
            client.hset(key, "camera", "x")
        produce(settings, [*others[20:30], event(event_id="fails"), *others[30:]])
        if not watched:
            wait_until(lambda: not stream.running, 300, what="the job to give up")
            assert "failed 6 times without progress" in stream.output()
            return
        stream.wait_applied(300)
        for key in trends:
            client.hdel(key, "camera")
    assert stream.running
    assert stream.output().count("record set aside") == 1
    (letter,) = read_dead_letters(settings.kafka)
    assert letter.error.startswith("stalled")
    assert decode_interaction(letter.value).id == "fails"
    report = reconcile(settings)
    assert (report.lost, report.double, report.counted_in_state) == (1, 0, 40)


@pytest.mark.parametrize(
    "watched", [True, pytest.param(False, marks=pytest.mark.long)], ids=["watched", "control"]
)
def test_an_archive_that_freezes_is_started_again(
    settings: Settings, stream: StreamProcess, tmp_path: Path, watched: bool
) -> None:
    produce(settings, [event(f"user-{n}", event_id=str(n)) for n in range(20)])
    fault = "freeze-archive" if watched else "freeze-archive-unwatched"
    stream.start(
        AFTERCLICK_STREAM__STALL_S=str(STALL_S),
        AFTERCLICK_STREAM__FAULT=f"{fault}:{tmp_path / 'frozen'}",
    )
    if watched:
        wait_until(lambda: archived(settings) == 20, 300, what="the events to be archived")
        assert "archive stalled" in stream.output()
        return
    wait_until((tmp_path / "frozen").exists, 180, what="the archive to freeze")
    time.sleep(20 * STALL_S)
    assert archived(settings) == 0


def archived(settings: Settings) -> int:
    """Rows of the archive."""
    try:
        return EventArchive.open(settings.archive).table.count()
    except MissingArchive:
        return 0
