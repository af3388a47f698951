"""Lists shown and reactions to them count once, whatever crashes, repeats or comes first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from afterclick.errors import LogTruncated, StateConflict
from afterclick.events import ImpressionEvent, encode
from afterclick.exposures import OTHER, Cell, Counts, Dimensions, day_of
from afterclick.io.kafka_log import OffsetRange
from afterclick.redis_keys import Keys
from afterclick.settings import StreamSettings
from afterclick.state import TopicPartition
from afterclick.trends import DAY_MS
from streaming.connection import Connection, NodeConnection
from streaming.exposures import (
    ExposureApplier,
    ExposureConfig,
    exposed_offsets,
    start_counting,
)
from streaming.fault_points import FaultPoints
from streaming.proof.exposure_recount import ExposureRecount, compare_exposures
from streaming.records import Output, Record
from tests.streaming.builders import Crash, CrashingConnection, impression, reaction

LISTS, FEEDBACK = TopicPartition("impressions", 0), TopicPartition("feedback", 0)
NOW_MS = time.time() * 1000
DIMENSIONS = Dimensions("trending", "m1", "blend").encode()


def config(url: str, **more: Any) -> ExposureConfig:
    options: dict[str, Any] = {
        "url": url,
        "keys": Keys(f"{uuid4().hex[:8]}:"),
        "impressions": "impressions",
        "window_ms": 2 * DAY_MS,
        "days": 90,
        "max_ahead_ms": 90.0 * DAY_MS,
        "positive": StreamSettings().signals.reactions,
    }
    return ExposureConfig(**(options | more))


@dataclass(frozen=True)
class Store:
    """The state of one configuration."""

    client: redis.Redis
    config: ExposureConfig

    def apply(self, name: TopicPartition, *records: Record, on: Connection | None = None) -> None:
        ExposureApplier(self.config, on or NodeConnection(self.config.url)).apply(name, records)

    def counts(self, *partitions: TopicPartition) -> Counts:
        total: Counts = Counter()
        for name in partitions or (LISTS, FEEDBACK):
            prefix = self.config.keys.exposures(*name, "")
            for key in self.client.scan_iter(prefix.replace("[", r"\[") + "*", count=5000):
                fields: Any = self.client.hgetall(key)
                for text, value in fields.items():
                    cell = Cell.parse(key.decode().removeprefix(prefix), text)
                    total[cell] += int(value)
        return total

    def columns(self) -> dict[str, int]:
        """Counts by column."""
        found: Counter[str] = Counter()
        for cell, n in self.counts().items():
            found[cell.column] += n
        return dict(found)


@pytest.fixture
def store(client: redis.Redis, redis_url: str) -> Store:
    return Store(client, config(redis_url))


def record(offset: int, event: Any, log_ms: float = NOW_MS) -> Record:
    return Record(offset, None, event if isinstance(event, bytes) else encode(event), log_ms)


def test_a_list_and_the_reactions_to_it_count_by_place(store: Store) -> None:
    store.apply(LISTS, record(0, impression("l1", items=("a", "b", "c"))))
    events = [
        reaction("l1", "b", "click"),
        reaction("l1", "c", "skip"),
        reaction("l1", "b", "like"),
    ]
    store.apply(FEEDBACK, *(record(n, one) for n, one in enumerate(events)))
    assert store.columns() == {
        "lists": 1,
        "reacted": 1,
        "shown:0": 1,
        "shown:1": 1,
        "shown:2": 1,
        "click:1": 1,
        "skip:2": 1,
        "like:1": 1,
    }
    assert {cell.dimensions for cell in store.counts()} == {DIMENSIONS}
    assert {cell.day for cell in store.counts()} == {day_of(NOW_MS)}


def test_a_reaction_waits_for_its_list(store: Store) -> None:
    store.apply(FEEDBACK, record(0, reaction("l1", "b")), record(1, reaction("l1", "x")))
    assert store.columns() == {}
    store.apply(LISTS, record(0, impression("l1", items=("a", "b"))))
    assert store.columns() == {"lists": 1, "shown:0": 1, "shown:1": 1, "click:1": 1, "reacted": 1}


@pytest.mark.parametrize(
    "rejected",
    [
        reaction("l1", "b", user="mallory"),
        reaction("l2", "b"),
        reaction("l1", "not in the list"),
        reaction("l1", "b", "view"),
        b'{"impression_id": "malformed"}',
    ],
    ids=["another user", "another list", "another item", "no reaction", "malformed"],
)
def test_other_reactions_are_not_joined(store: Store, rejected: Any) -> None:
    store.apply(LISTS, record(0, impression("l1", items=("a", "b"))))
    store.apply(FEEDBACK, record(0, rejected))
    assert store.columns() == {"lists": 1, "shown:0": 1, "shown:1": 1}
    assert int(store.client.get(store.config.keys.exposed_offset(*FEEDBACK)) or -1) == 0


def test_a_reaction_after_the_window_is_not_joined_and_keys_expire(store: Store) -> None:
    days = store.config.window_ms
    store.apply(LISTS, record(0, impression("l1"), NOW_MS - days - 1))
    store.apply(FEEDBACK, record(0, reaction("l1", "b")), record(1, reaction("l2", "b")))
    assert "click:1" not in store.columns()
    keys = store.config.keys
    for name, window in (("l1", 0), ("l2", days)):
        ttl: Any = store.client.pttl(keys.impression("alice", name))
        assert window < ttl <= window + DAY_MS
    assert store.client.ttl(keys.exposures(*LISTS, day_of(NOW_MS - days - 1))) > 0


def test_malformed_lists_are_dead_letters(store: Store) -> None:
    letters: list[Output] = []
    connection = NodeConnection(store.config.url)
    store.client.set(store.config.keys.impression("alice", "damaged"), "a string")
    applier = ExposureApplier(store.config, connection, letters.extend)
    bad = [b"{", encode(reaction("l1", "b")), encode(impression("damaged"))]
    good = record(3, impression("l1"))
    applier.apply(LISTS, [*(record(n, one) for n, one in enumerate(bad)), good])
    assert [dict(one.headers)["offset"] for one in letters] == [b"0", b"1", b"2"]
    assert {one.topic for one in letters} == {"impressions.dlq"}
    assert b"WRONGTYPE" in dict(letters[2].headers)["error"]
    assert store.columns()["lists"] == 1


def test_counts_beyond_the_limit_of_fields_are_added_to_one(store: Store) -> None:
    store = replace(store, config=replace(store.config, max_fields=12))
    log = [record(n, impression(f"l{n}", model=f"m{n}")) for n in range(20)]
    store.apply(LISTS, *log)
    counts = store.counts()
    assert store.columns() == {"lists": 20, "shown:0": 20, "shown:1": 20, "shown:2": 20}
    assert len(counts) <= 12 + 4
    assert sum(n for cell, n in counts.items() if cell.dimensions == OTHER.encode()) > 0
    assert _differences(counts, _recount(store, {LISTS: log})) == []


def _recount(store: Store, logs: Mapping[TopicPartition, Sequence[Record]]) -> Counts:
    offsets = {name: log[-1].offset for name, log in logs.items() if log}
    its = store.config
    recount = ExposureRecount(
        its.impressions, its.window_ms, its.max_ahead_ms, its.positive, offsets
    )
    for name, log in logs.items():
        for one in log:
            recount.add(name, one.offset, one.value, one.log_ms)
    return recount.counts()


def _differences(state: Counts, log: Counts) -> list[str]:
    found: list[str] = []
    compare_exposures(lambda *what: found.append(str(what)), state, log, 90)
    return found


USERS, IDS, ITEMS = ("alice", "bob"), ("l1", "l2", "l3"), ("a", "b", "c", "ü d")
PARTITIONS = (LISTS, LISTS._replace(partition=1), FEEDBACK, TopicPartition("reviews", 0))
some_lists = st.builds(
    impression,
    st.sampled_from(IDS),
    user=st.sampled_from(USERS),
    items=st.lists(st.sampled_from(ITEMS), max_size=4).map(tuple),
)
some_reactions = st.builds(
    reaction,
    st.sampled_from(IDS),
    st.sampled_from(ITEMS),
    st.sampled_from(["click", "like", "skip", "view"]),
    user=st.sampled_from(USERS),
)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), events=st.lists(some_lists | some_reactions, min_size=1, max_size=30))
def test_order_repeats_and_crashes_do_not_change_the_counts(
    client: redis.Redis, redis_url: str, data: st.DataObject, events: list[Any]
) -> None:
    store = Store(client, config(redis_url))
    logs: dict[TopicPartition, list[Record]] = {name: [] for name in PARTITIONS}
    owners: dict[tuple[str, str], Any] = {}
    for one in events:
        if isinstance(one, ImpressionEvent):  # an id names one list; sent again, it is the same
            one = owners.setdefault((one.data.user_id, one.data.impression_id), one)
            name = PARTITIONS[USERS.index(one.data.user_id)]
        else:
            name = data.draw(st.sampled_from(PARTITIONS[2:]), "partition")
        late = [0, 0, 1000, DAY_MS] + [3 * DAY_MS] * (name in PARTITIONS[2:])
        late_ms = data.draw(st.sampled_from(late), "late")
        logs[name].append(record(len(logs[name]), one, NOW_MS - late_ms))
    _run(store, logs, data)
    names = [name for name in PARTITIONS if logs[name]]
    assert _differences(store.counts(*names), _recount(store, logs)) == []
    for name, log in logs.items():  # a new task reads everything again
        store.apply(name, *log)
    assert _differences(store.counts(*names), _recount(store, logs)) == []


def _run(store: Store, logs: dict[TopicPartition, list[Record]], data: st.DataObject) -> None:
    """Apply the logs in any interleaving, with crashes after which a batch is read again."""
    at = dict.fromkeys(logs, 0)
    while waiting := [name for name, log in logs.items() if at[name] < len(log)]:
        name = data.draw(st.sampled_from(waiting), "next")
        size = data.draw(st.integers(1, 6), "size")
        batch = logs[name][max(at[name] - 2, 0) : at[name] + size]
        if data.draw(st.booleans(), "crashes"):
            number, reached = data.draw(st.tuples(st.integers(1, 3), st.booleans()), "crash")
            here = CrashingConnection(NodeConnection(store.config.url), number, reached)
            try:
                store.apply(name, *batch, on=here)
            except Crash:
                continue
        else:
            store.apply(name, *batch)
        at[name] += size


def crash_between_steps(store: Store, log: Iterable[Record]) -> None:
    """Die after step 1, and after step 2; then read everything again."""
    log = list(log)
    for reached in (False, True):
        here = CrashingConnection(NodeConnection(store.config.url), 3, reached)
        with pytest.raises(Crash):
            store.apply(LISTS, *log, on=here)
    store.apply(LISTS, *log)


@pytest.mark.parametrize("fence", [True, False], ids=["offset", "control"])
def test_without_the_offset_a_repeated_batch_counts_twice(
    client: redis.Redis, redis_url: str, fence: bool
) -> None:
    store = Store(client, config(redis_url, faults=FaultPoints(fence=fence)))
    crash_between_steps(store, [record(n, impression(f"l{n}")) for n in range(10)])
    assert (store.columns()["lists"] == 10) is fence


def test_a_task_that_was_overtaken_counts_nothing(store: Store) -> None:
    old = ExposureApplier(store.config, NodeConnection(store.config.url))
    old.apply(LISTS, [record(0, impression("l0"))])
    store.apply(LISTS, record(1, impression("l1")))
    with pytest.raises(redis.ResponseError, match="OVERTAKEN"):
        old.apply(LISTS, [record(1, impression("l1"))])
    assert store.columns()["lists"] == 2


def test_counting_starts_after_what_is_counted_or_says_what_is_missing(store: Store) -> None:
    client, keys, other = store.client, store.config.keys, LISTS._replace(partition=1)
    ranges = {LISTS: OffsetRange(0, 9), other: OffsetRange(4, 9)}
    assert start_counting(client, keys, ranges, is_first=True) == {"impressions": {0: 0, 1: 4}}
    assert exposed_offsets(client, keys, ranges) == {LISTS: -1, other: 3}
    client.set(keys.exposed_offset(*LISTS), 6)
    assert start_counting(client, keys, ranges, is_first=False) == {"impressions": {0: 7, 1: 4}}
    with pytest.raises(LogTruncated, match="rebuild"):
        start_counting(client, keys, {LISTS: OffsetRange(8, 9)}, is_first=False)
    with pytest.raises(StateConflict, match="created anew"):
        start_counting(client, keys, {LISTS: OffsetRange(0, 3)}, is_first=False)


def test_a_gap_in_the_records_is_noticed(client: redis.Redis, redis_url: str) -> None:
    """Redis lost its newest writes. Control: transaction markers leave gaps, too."""
    for holds in (True, False):
        settings = config(redis_url)
        connection = NodeConnection(redis_url)
        applier = ExposureApplier(settings, connection, log_holds=lambda *_, holds=holds: holds)
        log = [record(n, impression(f"l{n}")) for n in (5, 6)]
        if holds:
            with pytest.raises(StateConflict, match="from 0 to 5"):
                applier.apply(LISTS, log)
        else:
            applier.apply(LISTS, log)
        assert Store(client, settings).columns().get("lists", 0) == (0 if holds else 2)
