"""A replay resumes where it stopped, keeps its pace, and assigns stable event ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson
import pytest

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.events import Item, decode_interaction
from afterclick.io.home import PAUSED, ReplayControl, ReplayHold, ReplayStatus
from afterclick.settings import Settings
from infra.embedded.kafka import KafkaServer
from ingest.datasets import open_dataset
from ingest.items import item_messages, published_items
from ingest.producer import EventProducer
from ingest.replay import ReplayOptions, Summary, replay
from ingest.replay_control import Rate, ReplayFiles, Speed
from ingest.sorting import SortedDataset, sort_by_time
from tests.ingest.conftest import read
from tests.ingest.test_producer import read_topic
from tests.waiting import PATIENCE_S, wait_until

DAY_MS = 86_400_000


@dataclass
class Log:
    """The events on the reviews topic."""

    settings: Settings

    def read(self) -> list[bytes]:
        kafka = self.settings.kafka
        return [value for _, _, value in read_topic(kafka.bootstrap, kafka.topics.reviews)]

    def ids(self) -> list[str]:
        return [decode_interaction(value).id for value in self.read()]


@pytest.fixture
def data(shop: Path, settings: Settings) -> SortedDataset:
    return sort_by_time(open_dataset(shop), settings.home)


def times(data: SortedDataset) -> list[int]:
    return [t for batch in data.batches() for t in batch["time_ms"].to_pylist()]


@pytest.mark.parametrize("published", [True, False], ids=["catalogue", "control: none"])
def test_items_without_metadata_join_the_catalogue(
    data: SortedDataset, shop: Path, settings: Settings, published: bool
) -> None:
    reviewed = {row["item_id"] for row in read(shop / "reviews.csv")[0]}
    known = Item(item_id=min(reviewed), title="Lamp")
    if published:
        with EventProducer(settings.kafka) as producer:
            for messages in item_messages([known], "dataset/shop"):
                producer.send(settings.kafka.topics.items, messages, 1)
    replay(data, settings, ReplayOptions())
    catalogue = published_items(settings)
    assert catalogue.keys() == (reviewed if published else set())
    assert not published or catalogue[known.item_id] == known


def test_every_review_becomes_one_valid_event_in_event_time_order(
    data: SortedDataset, shop: Path, settings: Settings
) -> None:
    summary = replay(data, settings, ReplayOptions())
    assert (summary.state, summary.sent, summary.remaining) == ("done", 3000, 0)
    partitions: dict[int, list[int]] = {}
    found = []
    kafka = settings.kafka
    for partition, key, value in read_topic(kafka.bootstrap, kafka.topics.reviews):
        event = decode_interaction(value)
        assert key.decode() == event.data.user_id
        partitions.setdefault(partition, []).append(event.time_ms)
        found.append((event.data.user_id, event.data.item_id, event.time_ms, event.data.rating))
    rows, _ = read(shop / "reviews.csv")
    assert sorted(found) == sorted(
        (r["user_id"], r["item_id"], r["time_ms"], r["rating"]) for r in rows
    )
    assert all(order == sorted(order) for order in partitions.values())


def test_a_second_replay_sends_nothing_and_a_restart_sends_the_same_ids(
    data: SortedDataset, settings: Settings
) -> None:
    replay(data, settings, ReplayOptions())
    assert replay(data, settings, ReplayOptions()).sent == 0
    first = Log(settings).read()
    assert replay(data, settings, ReplayOptions(restart=True)).sent == 3000
    both = Log(settings).read()
    assert len(both) == 6000
    assert set(both) == set(first)


def test_a_limited_replay_is_resumed(data: SortedDataset, settings: Settings) -> None:
    parts = [replay(data, settings, ReplayOptions(limit=700)) for _ in range(5)]
    assert [p.sent for p in parts] == [700, 700, 700, 700, 200]
    assert [p.started_at_row for p in parts] == [0, 700, 1400, 2100, 2800]
    ids = Log(settings).ids()
    assert len(ids) == len(set(ids)) == 3000


def test_from_and_until_select_by_event_time(data: SortedDataset, settings: Settings) -> None:
    all_times = times(data)
    middle, late = all_times[1000], all_times[2000]
    expected = [t for t in all_times if middle <= t < late]
    summary = replay(data, settings, ReplayOptions(from_ms=middle, until_ms=late))
    assert (summary.sent, summary.first_event_ms) == (len(expected), middle)
    sent = sorted(decode_interaction(value).time_ms for value in Log(settings).read())
    assert sent == expected
    # resumed: events after `until` follow, sent ones do not
    rest = replay(data, settings, ReplayOptions(from_ms=middle))
    assert rest.sent == len([t for t in all_times if t >= late])


def test_the_rebased_clock_ends_at_the_first_replay_and_never_changes(
    data: SortedDataset, settings: Settings
) -> None:
    first = replay(data, settings, ReplayOptions(rebased=True, limit=10))
    second = replay(data, settings, ReplayOptions(rebased=True))
    assert second.shift_ms == first.shift_ms > 0
    events = [decode_interaction(value) for value in Log(settings).read()]
    newest = max(event.time_ms for event in events)
    assert newest == data.manifest.last_ms + first.shift_ms
    assert min(e.time_ms for e in events) == data.manifest.first_ms + first.shift_ms
    status = ReplayStatus.read(settings.home)
    assert status is not None
    assert abs(status.updated_ms - newest) < 120_000


def test_a_replay_keeps_its_rate(data: SortedDataset, settings: Settings) -> None:
    summary = replay(data, settings, ReplayOptions(pace=Rate(1000), limit=1500))
    assert summary.seconds > 1.3


def test_a_replay_keeps_its_speed(data: SortedDataset, settings: Settings) -> None:
    all_times = times(data)
    # two seconds for the first half of the events
    factor = (all_times[1500] - all_times[0]) / 2000
    summary = replay(data, settings, ReplayOptions(pace=Speed(factor), until_ms=all_times[1500]))
    assert summary.seconds > 1.5


def test_a_replay_is_paused_and_resumed(data: SortedDataset, settings: Settings) -> None:
    seen: list[ReplayStatus] = []
    done: list[Summary] = []
    options = ReplayOptions(pace=Rate(1000))
    thread = threading.Thread(
        target=lambda: done.append(replay(data, settings, options, on_status=seen.append))
    )
    thread.start()
    wait_until(lambda: any(s.state == "running" and s.delivered > 100 for s in seen))
    ReplayControl(state="paused").write(settings.home)
    wait_until(lambda: seen[-1].state == PAUSED)
    at = len(seen)
    wait_until(lambda: len(seen) > at + 5)
    assert len({s.sent for s in seen[at:]}) == 1
    ReplayControl().write(settings.home)
    thread.join(PATIENCE_S)
    assert done[0].sent == 3000


def test_a_hold_that_is_not_renewed_ends(data: SortedDataset, settings: Settings) -> None:
    seen: list[ReplayStatus] = []
    ReplayHold(by="reconcile").write(settings.home)
    summary = replay(data, settings, ReplayOptions(), on_status=seen.append)
    assert summary.sent == 3000
    assert seen[0].state == PAUSED


def test_a_second_concurrent_replay_is_rejected(data: SortedDataset, settings: Settings) -> None:
    files = ReplayFiles(settings.home)
    with files.lock(), pytest.raises(AlreadyRunning, match="a replay is already running"):
        replay(data, settings, ReplayOptions())
    assert not files.running()


def test_without_kafka_no_event_is_marked_as_sent(data: SortedDataset, settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"bootstrap": "127.0.0.1:9"})
    with pytest.raises(Unavailable, match="does not answer"):
        replay(data, settings.model_copy(update={"kafka": kafka}), ReplayOptions())
    assert replay(data, settings, ReplayOptions()).sent == 3000


def _has_delivered(settings: Settings, count: int, before: ReplayStatus | None = None) -> bool:
    """Whether a status newer than `before` reports more than `count` delivered events."""
    status = ReplayStatus.read(settings.home)
    return status is not None and status != before and status.delivered > count


def run_command(settings: Settings, *args: str) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "AFTERCLICK_HOME": str(settings.home),
        "AFTERCLICK_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "AFTERCLICK_KAFKA__PREFIX": settings.kafka.prefix,
        "AFTERCLICK_KAFKA__PARTITIONS": str(settings.kafka.partitions),
    }
    command = [sys.executable, "-c", "from infra.cli import main; main()", "ingest", *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_replay_killed_three_times_loses_no_event(
    data: SortedDataset, shop: Path, settings: Settings
) -> None:
    for _ in range(3):
        process = run_command(settings, "replay", str(shop), "--rate", "150", "--json")
        before = ReplayStatus.read(settings.home)
        wait_until(partial(_has_delivered, settings, 50, before))
        process.kill()
        process.communicate()
    summary = replay(data, settings, ReplayOptions())
    assert 0 < summary.started_at_row < 3000
    ids = Log(settings).ids()
    assert len(set(ids)) == 3000
    # events sent again have the same ids: the state counts them once
    assert len(ids) >= 3000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_replay_in_order(
    shop: Path, settings: Settings, number: signal.Signals
) -> None:
    process = run_command(settings, "replay", str(shop), "--rate", "500", "--json")
    wait_until(partial(_has_delivered, settings, 50))
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    summary = orjson.loads(out.splitlines()[-1])
    assert (process.returncode, summary["state"]) == (0, "stopped"), err
    # no event is sent twice after an orderly stop
    follow = run_command(settings, "replay", str(shop), "--json")
    out, _ = follow.communicate(timeout=PATIENCE_S)
    assert orjson.loads(out.splitlines()[-1])["sent"] == 3000 - summary["sent"]
    ids = Log(settings).ids()
    assert len(ids) == len(set(ids)) == 3000


def test_a_broker_killed_during_a_replay_loses_no_event(
    own_broker: KafkaServer, shop: Path, settings: Settings
) -> None:
    from infra.embedded.kafka import ensure_topics

    kafka = settings.kafka.model_copy(update={"bootstrap": own_broker.address})
    own = settings.model_copy(update={"kafka": kafka})
    ensure_topics(own)
    data = sort_by_time(open_dataset(shop), own.home)
    seen: list[ReplayStatus] = []
    done: list[Summary] = []
    options = ReplayOptions(pace=Rate(200))
    thread = threading.Thread(
        target=lambda: done.append(replay(data, own, options, on_status=seen.append))
    )
    thread.start()
    wait_until(lambda: seen and seen[-1].delivered > 100)
    own_broker.kill()
    wait_until(lambda: seen[-1].sent - seen[-1].delivered > 50)
    own_broker.start()
    thread.join(PATIENCE_S)
    assert done[0].sent == 3000
    ids = Log(own).ids()
    assert len(ids) == len(set(ids)) == 3000
