"""The stream job: exact under SIGKILL, dead letters, a complete log, one job at a time."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from kafka import KafkaConsumer, TopicPartition

from afterclick.arrays import Json
from afterclick.events import InteractionEvent
from afterclick.io.event_archive import EventArchive
from afterclick.io.forgotten import publish_forgotten
from afterclick.settings import Settings
from afterclick.state import StateChange
from streaming.proof.forget import last_forgetting
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import DAY_S, event, impression, reaction
from tests.streaming.stream_process import StreamProcess, environment, produce
from tests.waiting import wait_until

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def stream(settings: Settings, tmp_path: Path) -> Iterator[StreamProcess]:
    process = StreamProcess(settings, tmp_path / "stream.log")
    yield process
    if process.running:
        process.kill()


def many_events(count: int, seed: int = 0) -> Iterator[InteractionEvent]:
    """Events with a long tail of items; about 2 % are sent twice."""
    draw = random.Random(seed)
    last = event(event_id="first")
    for n in range(count):
        if draw.random() < 0.02:
            yield last
            continue
        item = f"item-{int(draw.paretovariate(0.7)) % 500}"
        action = draw.choice(("review", "click", "like", "skip"))
        user = f"user-{draw.randrange(count // 4 + 1)}"
        rating = draw.choice((None, 1.0, 2.0, 5.0)) if action == "review" else None
        moment = draw.randrange(30 * DAY_S)
        last = event(user, item, action, at=moment, event_id=f"{seed}-{n}", rating=rating)
        yield last


def read_topic(settings: Settings, topic: str) -> list[Any]:
    """Every record of a topic."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, group_id=None)
    name = settings.kafka.prefix + topic
    places = [
        TopicPartition(name, partition) for partition in consumer.partitions_for_topic(name) or ()
    ]
    consumer.assign(places)
    consumer.seek_to_beginning()
    left = sum(consumer.end_offsets(places).values())
    records: list[Any] = []
    while len(records) < left:
        for some in consumer.poll(timeout_ms=500).values():
            records += some
    consumer.close()
    return records


def run_reconcile(settings: Settings) -> tuple[int, Json]:
    """The command's exit code and its JSON."""
    command = [sys.executable, "-c", "from infra.cli import main; main()", "reconcile", "--json"]
    done = subprocess.run(command, env=environment(settings), capture_output=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr.decode()
    return done.returncode, orjson.loads(done.stdout.splitlines()[-1])


def kill_between_the_steps(stream: StreamProcess, times: int, **more: str) -> None:
    """Start the job, wait for a worker to die between its steps, kill the job; repeatedly."""
    for n in range(times):
        before = len(stream.output())
        stream.start(AFTERCLICK_STREAM__FAULT=f"between-steps:{2 + n}", **more)
        died = partial(_query_failed, stream, before)
        wait_until(died, 180, what="a worker dies between the steps")
        stream.kill()


def _query_failed(stream: StreamProcess, before: int) -> bool:
    return "query failed" in stream.output()[before:] or not stream.running


@pytest.mark.long
def test_three_kills_during_a_replay_do_not_change_the_state(
    settings: Settings, stream: StreamProcess
) -> None:
    poison = [b"poison %d" % n for n in range(20)]
    produced = produce(settings, [*poison, *many_events(20_000)])
    kill_between_the_steps(stream, 3)
    shutil.rmtree(settings.home / "checkpoints")
    stream.start()
    stream.wait_applied()
    code, report = run_reconcile(settings)
    assert (code, report["differences"], report["behind"]) == (0, 0, 0)
    assert report["events"] == produced
    assert report["duplicates"] > 0
    assert report["counted_in_state"] == report["counted_in_log"] > 0
    assert {record.value for record in read_topic(settings, "reviews.dlq")} == set(poison)
    wait_until(
        lambda: changed_positions(settings) >= valid_positions(settings),
        what="every change is published",
    )


def changed_positions(settings: Settings) -> set[tuple[int, int]]:
    """Partition and offset of every event of `reviews` on `state-changes`."""
    changes = [StateChange.decode(record.value) for record in read_topic(settings, "state-changes")]
    return {(one.partition, one.offset) for one in changes}


def valid_positions(settings: Settings) -> set[tuple[int, int]]:
    records = [
        one for one in read_topic(settings, "reviews") if not one.value.startswith(b"poison")
    ]
    return {(one.partition, one.offset) for one in records}


@pytest.mark.long
def test_the_same_kills_without_the_fence_count_twice(
    settings: Settings, stream: StreamProcess
) -> None:
    produce(settings, many_events(20_000))
    kill_between_the_steps(stream, 1, AFTERCLICK_STREAM__FENCE="false")
    stream.start(AFTERCLICK_STREAM__FENCE="false")
    stream.wait_applied()
    code, report = run_reconcile(settings)
    assert code == 1
    assert report["by_kind"]["count"] > 0
    assert report["counted_in_state"] > report["counted_in_log"]


@pytest.mark.parametrize(
    "trigger", [pytest.param("micro-batch", marks=pytest.mark.long), "real-time"]
)
def test_events_become_state_changes_and_rows_and_malformed_records_dead_letters(
    settings: Settings, stream: StreamProcess, trigger: str
) -> None:
    """Lists are counted, and reactions to them joined, although a worker dies between the steps."""
    died = settings.home / "died"
    settings.home.mkdir(exist_ok=True)
    fault = f"between-joins:{died}"
    stream.start(AFTERCLICK_STREAM__TRIGGER=trigger, AFTERCLICK_STREAM__FAULT=fault)
    lists = [impression(f"list-{n}", f"user-{n}") for n in range(20)]
    clicks = [reaction(f"list-{n}", "a", user=f"user-{n}") for n in range(9)]
    produce(settings, [*lists, b"no list"], "impressions")
    good = list(many_events(500))
    produce(settings, good)
    produce(settings, [b"\xff", b"{}", b"null"], "feedback")
    produce(settings, [*clicks, event(item="last", action="like", event_id="last")], "feedback")
    stream.wait_applied()
    report = reconcile(settings, wait_s=300)
    assert report.differences == 0, report.examples
    assert (report.lists_in_state, report.reactions_in_state) == (20, 9)
    assert died.exists()
    (letter,) = read_topic(settings, "impressions.dlq")
    assert letter.value == b"no list"

    everything = 501 + len(clicks)
    changes = wait_until(lambda: _at_least(read_topic(settings, "state-changes"), everything), 120)
    decoded = [StateChange.decode(record.value) for record in changes]
    assert all(
        record.key == one.user_id.encode() for record, one in zip(changes, decoded, strict=True)
    )
    assert {one.event_id for one in decoded} == {one.id for one in [*good, *clicks]} | {"last"}
    assert {one.effect for one in decoded} == {"applied", "duplicate"}
    dead = wait_until(lambda: _at_least(read_topic(settings, "feedback.dlq"), 3), 120)
    assert {record.value for record in dead} == {b"\xff", b"{}", b"null"}

    rows = wait_until(
        lambda: _archive(settings, everything), 120, what="the log has every valid event"
    )
    assert {(row["topic"], row["partition"], row["offset"]) for row in rows} == {
        (one.topic, one.partition, one.offset) for one in decoded
    }
    assert all(row["log_day"] == f"{row['log_time']:%Y-%m-%d}" for row in rows)
    (last,) = [row for row in rows if row["event_id"] == "last"]
    assert (last["user_id"], last["item_id"], last["action"]) == ("alice", "last", "like")

    second = StreamProcess(settings, stream.log.with_name("second.log"))
    second.start()
    assert second.popen
    assert second.popen.wait(120) == 4
    assert "another stream job" in second.output()
    assert stream.running
    assert stream.stop(30) == 0

    redis.Redis.from_url(settings.redis.url).hincrby(
        settings.redis.keys.counts(f"{settings.kafka.prefix}reviews", 0), "item-1", 1
    )
    assert reconcile(settings).by_kind == {"count": 1}


def _at_least(records: list[Any], number: int) -> list[Any] | None:
    return records if len(records) >= number else None


def _archive(settings: Settings, number: int) -> list[dict[str, object]] | None:
    rows: list[dict[str, object]] = EventArchive.open(settings.archive).read().to_pylist()
    return rows if len(rows) >= number else None


def test_a_hand_over_leaves_no_checkpoint_of_the_previous_query(
    settings: Settings, stream: StreamProcess
) -> None:
    stream.start(AFTERCLICK_STREAM__TRIGGER="real-time", AFTERCLICK_STREAM__HANDOVER_S="5")
    took_over = "real-time query took over"
    wait_until(lambda: stream.output().count(took_over) >= 3, 240, what="three hand-overs")
    assert stream.running
    # those of the query, of the next one if it has started, and of the archive query
    assert len(list((settings.home / "checkpoints" / "stream").iterdir())) in (2, 3)


@pytest.mark.long
def test_requests_to_forget_a_user_are_fulfilled_by_a_running_job_and_by_the_next_one(
    settings: Settings, stream: StreamProcess
) -> None:
    """The control: while no job runs, the user is still there."""
    produce(settings, many_events(400))
    stream.start()
    stream.wait_applied()
    stream.kill()
    client: redis.Redis = redis.Redis.from_url(settings.redis.url)
    publish_forgotten(settings.kafka, "user-1", round(time.time() * 1000))
    assert client.exists(settings.redis.keys.history("user-1"))
    stream.start()
    wait_until(lambda: _forgotten(client, settings, "user-1"), 600)
    assert not client.exists(settings.redis.keys.history("user-1"))
    wait_until(lambda: _archive(settings, 300), 120, what="the log has the events of the others")
    publish_forgotten(settings.kafka, "user-2", round(time.time() * 1000))
    wait_until(lambda: _forgotten(client, settings, "user-2"), 600)
    rows = _archive(settings, 300)
    assert rows
    assert not {"user-1", "user-2"} & {row["user_id"] for row in rows}
    assert run_reconcile(settings)[1]["differences"] == 0
    client.close()


def _forgotten(client: redis.Redis, settings: Settings, user: str) -> bool:
    report = last_forgetting(client, settings.redis.keys, user)
    return report is not None and report.finished_ms is not None
