"""The state can be made anew from the Parquet log."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from afterclick.errors import StateConflict, StateLocked
from afterclick.settings import Settings
from streaming import lease
from streaming.archive import decode_batches
from streaming.connection import load_functions
from streaming.job import function_library
from streaming.positions import read_log
from streaming.rebuild import rebuild
from streaming.reconcile import reconcile
from tests.streaming.builders import event
from tests.streaming.stream_process import produce
from tests.streaming.test_reconcile import records


@pytest.fixture
def archived(settings: Settings) -> Settings:
    """A topic with poison between its events, and its Parquet log in two files."""
    events = [event(f"user-{n % 7}", f"item-{n % 5}", "like", at=n, event_id=str(n)) for n in range(40)]
    produce(settings, [*events[:20], b"poison", *events[20:], events[0]])
    folder = Path(settings.archive) / "log_day=2026-01-01"
    folder.mkdir(parents=True)
    for (topic, partition), span in read_log(settings.kafka).items():
        rows = list(records(settings, topic, partition, span.end))
        if rows:
            batch = pa.RecordBatch.from_pydict(
                {
                    "key": [row.key for row in rows],
                    "value": pa.array([row.value for row in rows], pa.binary()),
                    "topic": [topic] * len(rows),
                    "partition": [partition] * len(rows),
                    "offset": [row.offset for row in rows],
                    "timestamp": [int(row.log_ms * 1000) for row in rows],
                }
            )
            table = pa.Table.from_batches(list(decode_batches([batch])))
            pq.write_table(table, folder / f"{partition}.parquet")
    return settings


def test_it_is_what_the_log_says_and_what_was_there_before_is_gone(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        client.zadd(archived.redis.keys.history("ghost"), {"[]": 1})
        client.hset(archived.redis.keys.counts(archived.kafka.topics.reviews, 0), "ghost", 7)
        rebuilt = rebuild(archived)
        assert rebuilt.events == 41
        assert not list(client.scan_iter(f"{archived.redis.prefix}rebuilding:*"))
    report = reconcile(archived)
    assert report.differences == 0
    assert report.counted_in_state == 40


def test_beside_a_running_stream_it_is_refused(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        load_functions(client, function_library())
        with lease.held(client, archived.redis.keys.lease, 10), pytest.raises(StateLocked):
            rebuild(archived)


def test_without_a_log_the_state_stays_as_it_is(settings: Settings) -> None:
    with redis.Redis.from_url(settings.redis.url) as client:
        client.set(settings.redis.keys.position(settings.kafka.topics.reviews, 0), 5)
        with pytest.raises(StateConflict):
            rebuild(settings)
        assert client.get(settings.redis.keys.position(settings.kafka.topics.reviews, 0)) == b"5"
