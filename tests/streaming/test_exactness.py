"""The same events end in the same state under either trigger, whatever crashes or repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from afterclick.events import InteractionEvent
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import StateChange
from streaming.apply import Applier, ApplyConfig
from streaming.connection import Connection, NodeConnection
from streaming.fault_points import FaultPoints
from streaming.proof.recount import Recount
from streaming.records import Record
from streaming.worker import RowApplier
from tests.streaming.builders import (
    DAY_S,
    Crash,
    CrashingConnection,
    Outbox,
    State,
    apply_config,
    event,
    expected,
    log_of,
    stored,
)

USERS = ("alice", "bob", "chloé", "{d:1}")
ITEMS = ("camera", "lens", "a b", "ü")
ACTIONS = ("review", "review", "like", "click", "view", "purchase", "skip", "undo")
TOPICS = ("reviews", "feedback")
MALFORMED = Record(0, b"key", b"malformed", 0.0)

some_events = st.lists(
    st.builds(
        event,
        user=st.sampled_from(USERS),
        item=st.sampled_from(ITEMS),
        action=st.sampled_from(ACTIONS),
        at=st.one_of(st.integers(0, 40 * DAY_S), st.sampled_from([0, 1, DAY_S])),
        event_id=st.uuids().map(str),
        source=st.sampled_from(["dataset/test", "afterclick/api"]),
        rating=st.sampled_from([None, None, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    ),
    min_size=1,
    max_size=40,
)


Trigger = Callable[[ApplyConfig, Connection, Outbox, str, list[Record]], None]


def micro_batch(
    config: ApplyConfig, here: Connection, outbox: Outbox, topic: str, batch: list[Record]
) -> None:
    """A micro-batch worker: outputs reach the sink at the end of the batch."""
    outbox.outputs += list(Applier(config, here, outbox.send_to_dlq).apply(topic, 0, batch))


def real_time(
    config: ApplyConfig, here: Connection, outbox: Outbox, topic: str, batch: list[Record]
) -> None:
    """A real-time worker: a row at a time."""
    applier = Applier(config, here, outbox.send_to_dlq)
    apply_row = RowApplier(config, KafkaSettings(), applier, outbox)  # type: ignore[arg-type]
    for record in batch:
        apply_row(record.key, record.value, topic, 0, record.offset, int(record.log_ms * 1000))


@dataclass
class Run:
    """A job over one log: a trigger per batch; resumes at the applied offset after a crash."""

    client: redis.Redis
    config: ApplyConfig
    outbox: Outbox
    triggers: Iterator[Trigger]
    sizes: Iterator[int]
    again: Iterator[int]
    """Records before the applied offset that are read again after a crash."""
    crashes: list[tuple[int, bool]]

    def apply(self, topic: str, log: list[Record]) -> None:
        connection = NodeConnection(self.config.url)
        at = self._position(topic) + 1
        while at < len(log):
            batch = log[at : at + next(self.sizes)]
            here = (
                CrashingConnection(connection, *self.crashes.pop()) if self.crashes else connection
            )
            try:
                next(self.triggers)(self.config, here, self.outbox, topic, batch)
                at += len(batch)
            except Crash:
                at = max(self._position(topic) + 1 - next(self.again), 0)

    def _position(self, topic: str) -> int:
        value = self.client.get(self.config.keys.applied_offset(topic, 0))
        return -1 if value is None else int(value)


@pytest.mark.parametrize(
    "triggers",
    [[micro_batch], [real_time], [micro_batch, real_time]],
    ids=["micro-batch", "real-time", "both"],
)
@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), events=some_events)
def test_order_repeats_batches_and_crashes_do_not_change_the_state(
    client: redis.Redis,
    redis_url: str,
    triggers: list[Trigger],
    data: st.DataObject,
    events: list[Any],
) -> None:
    log = _log(data, events)
    run = Run(
        client,
        apply_config(redis_url),
        Outbox(),
        cycle(triggers),
        cycle(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5), "sizes")),
        cycle(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4), "again")),
        data.draw(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=8), "crashes"),
    )
    for topic, records in log.items():
        run.apply(topic, records)
    state = stored(client, run.config.keys, USERS)
    state.same_as(expected(events))
    _assert_recounted(state, log)
    dead_letters = {
        (dict(one.headers)["topic"].decode(), int(dict(one.headers)["offset"]))
        for one in run.outbox.outputs
        if one.headers
    }
    assert dead_letters == {
        (t, one.offset) for t, of in log.items() for one in of if one.value == MALFORMED.value
    }
    for topic, records in log.items():
        if records:
            triggers[0](run.config, NodeConnection(redis_url), run.outbox, topic, records)
    stored(client, run.config.keys, USERS).same_as(expected(events))


def _assert_recounted(state: State, log: dict[str, list[Record]]) -> None:
    """The independent recount of `reconcile` finds the same."""
    recount = Recount.of(Settings())
    for records in log.values():
        for record in records:
            recount.add(record.value, record.log_ms)
    assert recount.counts == state.counts
    assert recount.uniques == state.uniques
    rated = {item: numbers for item, numbers in recount.ratings.items() if any(numbers)}
    assert rated == state.ratings
    for item, trend in state.trends.items():
        newest, sums = recount.trend(item)
        assert newest == trend.time_ms
        assert sums == pytest.approx(trend.sums + trend.established, rel=1e-9, abs=1e-9)


def _log(data: st.DataObject, events: list[InteractionEvent]) -> dict[str, list[Record]]:
    """The events in any order over two topics, with repeats and malformed records."""
    repeated = events + data.draw(st.lists(st.sampled_from(events), max_size=15), "repeats")
    shuffled: dict[str, list[InteractionEvent]] = {topic: [] for topic in TOPICS}
    for one in data.draw(st.permutations(repeated), "order"):
        shuffled[data.draw(st.sampled_from(TOPICS), "topic")].append(one)
    log = {topic: log_of(those) for topic, those in shuffled.items()}
    for records in log.values():
        for at in data.draw(st.lists(st.integers(0, len(records)), max_size=3), "malformed"):
            records.insert(at, MALFORMED)
        records[:] = [Record(n, one.key, one.value, one.log_ms) for n, one in enumerate(records)]
    return log


@pytest.mark.parametrize("trigger", [micro_batch, real_time])
def test_without_the_fence_a_crash_counts_twice(
    client: redis.Redis, redis_url: str, trigger: Trigger
) -> None:
    log = log_of([event(item=f"item-{n}") for n in range(10)])
    for fence in (True, False):
        config = apply_config(redis_url, faults=FaultPoints(fence=fence))
        run = Run(client, config, Outbox(), cycle([trigger]), cycle([5]), cycle([3]), [(2, True)])
        run.apply("reviews", log)
        counted = stored(client, config.keys, ["alice"]).counts.total()
        assert counted == 10 if fence else counted > 10


def test_the_published_offset_of_a_row_is_stored_with_the_next_row(
    client: redis.Redis, redis_url: str
) -> None:
    config, outbox = apply_config(redis_url), Outbox()
    log = log_of([event(item=f"item-{n}") for n in range(3)])
    real_time(config, NodeConnection(redis_url), outbox, "reviews", log)
    assert int(client.get(config.keys.published_offset("reviews", 0)) or -1) == 1
    assert [StateChange.decode(one.value or b"").offset for one in outbox.outputs] == [0, 1, 2]
