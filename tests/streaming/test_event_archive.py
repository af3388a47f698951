"""The archive has each event once, in few files, whatever dies or runs at the same time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from afterclick.errors import LogTruncated, StateConflict, Unavailable
from afterclick.events import encode
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.kafka_log import OffsetRange
from afterclick.state import TopicPartition
from streaming.archive_table import ArchiveAppender, create_archive, maintain, next_offsets
from streaming.fault_points import FaultPoints
from streaming.proof.archive_log import erase
from tests.streaming.builders import event

PLACE = TopicPartition("feedback", 0)
DAY_MS = 86_400_000
NOON_MS = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)


def rows(first: int, count: int, place: TopicPartition = PLACE, day: int = 0) -> pa.RecordBatch:
    """Kafka rows of `count` events, which arrived `day` days after the first of January."""
    offsets = range(first, first + count)
    made = [event(f"user-{n % 5}", f"item-{n % 3}", event_id=f"{place}-{n}") for n in offsets]
    columns = {
        "key": pa.array([None] * count, pa.binary()),
        "value": pa.array([encode(one) for one in made], pa.binary()),
        "topic": [place.topic] * count,
        "partition": [place.partition] * count,
        "offset": list(offsets),
        "timestamp": [(NOON_MS + day * DAY_MS) * 1000] * count,
    }
    return pa.RecordBatch.from_pydict(columns)


def append(uri: str, *batches: pa.RecordBatch, faults: FaultPoints | None = None) -> None:
    list(ArchiveAppender(uri, faults=faults or FaultPoints())(batches))


def archived_offsets(uri: str, place: TopicPartition = PLACE) -> list[int]:
    """Offsets of the archived rows of a partition."""
    table = EventArchive.open(uri).read(columns=["topic", "partition", "offset"])
    return sorted(
        row["offset"] for row in table.to_pylist() if (row["topic"], row["partition"]) == place
    )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "a log")
    create_archive(uri)
    return uri


@pytest.mark.parametrize("fence", [True, False], ids=["offsets", "control"])
@pytest.mark.parametrize("repeated", [0, 7], ids=["whole", "part"])
def test_a_repeated_batch_adds_nothing(uri: str, fence: bool, repeated: int) -> None:
    """Control: without the offsets in the table, the repeated events are there twice."""
    append(uri, rows(0, 10), rows(0, 4, PLACE._replace(partition=1)))
    again = rows(repeated, 10)
    append(uri, again, faults=FaultPoints(fence))
    expected = [*range(10 + repeated)]
    assert archived_offsets(uri) == (
        expected if fence else sorted([*range(10), *range(repeated, 10 + repeated)])
    )
    assert EventArchive.open(uri).offset(PLACE) == 9 + repeated


def append_in_a_process(uri: str, fault: str) -> None:
    append(uri, rows(0, 10), rows(10, 10), faults=FaultPoints(fault=fault))


def test_a_worker_killed_after_its_commit_loses_and_repeats_nothing(uri: str) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=append_in_a_process, args=(uri, "archived:1"))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    append(uri, rows(0, 10), rows(10, 10), rows(20, 5))
    assert archived_offsets(uri) == [*range(25)]


def test_of_two_jobs_that_append_the_same_records_one_fails(uri: str) -> None:
    """Both have read the same offsets in the table; appending again succeeds with nothing left."""

    class Late(ArchiveAppender):
        def _commit(self, table):  # type: ignore[no-untyped-def]
            append(uri, rows(0, 10))
            super()._commit(table)

    with pytest.raises(Exception, match="Concurrent transaction"):
        list(Late(uri)([rows(0, 12)]))
    append(uri, rows(0, 12))
    assert archived_offsets(uri) == [*range(12)]


def test_malformed_records_move_the_offset_and_add_no_row(uri: str) -> None:
    bad = rows(0, 3).set_column(1, "value", pa.array([b"x"] * 3, pa.binary()))
    append(uri, bad)
    assert EventArchive.open(uri).offset(PLACE) == 2
    assert archived_offsets(uri) == []


def test_many_batches_become_few_files(uri: str) -> None:
    for n in range(30):
        append(uri, rows(3 * n, 3, day=n // 15))
    assert len(EventArchive.open(uri).files()) == 30
    maintain(uri, keep_days=10**4, today=date(2026, 1, 2))
    archive = EventArchive.open(uri)
    assert len(archive.files()) == 2
    assert len(archived_files(uri)) == 32  # readers of older commits have an hour
    names = archive.table.get_add_actions(flatten=True).schema.names
    assert {"max.offset"} < {name for name in names if name.startswith("max.")}
    assert not {"max.user_id", "max.item_id", "max.text"} & set(names)
    age_by(uri, timedelta(hours=3))
    maintain(uri, keep_days=10**4, today=date(2026, 1, 2), replaced_h=0)
    assert len(archived_files(uri)) == 2
    assert len(list((Path(uri) / "_delta_log").iterdir())) < 10
    assert archived_offsets(uri) == [*range(90)]
    assert EventArchive.open(uri).offset(PLACE) == 89


def archived_files(uri: str) -> list[Path]:
    return list(Path(uri).glob("log_day=*/*.parquet"))


def age_by(uri: str, age: timedelta) -> None:
    """Make every file of the archive older."""
    for path in Path(uri).rglob("*"):
        then = path.stat().st_mtime - age.total_seconds()
        os.utime(path, (then, then))


def test_old_days_are_deleted_and_the_archive_says_so(uri: str) -> None:
    for day in range(4):
        append(uri, rows(10 * day, 10, day=day))
    assert EventArchive.open(uri).deleted_day == -1
    maintain(uri, keep_days=2, today=date(2026, 1, 4))
    assert archived_offsets(uri) == [*range(10, 40)]
    archive = EventArchive.open(uri)
    assert date(1970, 1, 1) + timedelta(days=archive.deleted_day) == date(2026, 1, 1)
    assert archive.offset(PLACE) == 39


def test_appends_merges_and_erasures_at_the_same_time_lose_nothing(uri: str) -> None:
    failures: list[Exception] = []

    def run(work):  # type: ignore[no-untyped-def]
        try:
            work()
        except Exception as error:
            failures.append(error)

    def append_all() -> None:
        for n in range(60):
            append(uri, rows(5 * n, 5))

    def merge() -> None:
        for _ in range(20):
            maintain(uri, keep_days=10**4, today=date(2026, 1, 1))

    def erase_all() -> None:
        while archived_until(uri) < 299:
            erase(uri, "user-3", NOON_MS + DAY_MS)
        erase(uri, "user-3", NOON_MS + DAY_MS)

    threads = [threading.Thread(target=run, args=(one,)) for one in (append_all, merge, erase_all)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert archived_offsets(uri) == [n for n in range(300) if n % 5 != 3]


def archived_until(uri: str) -> int:
    return EventArchive.open(uri).offset(PLACE)


def test_the_query_starts_after_the_archived_records(uri: str) -> None:
    append(uri, rows(0, 10))
    archive, other = EventArchive.open(uri), PLACE._replace(partition=1)
    ranges = {PLACE: OffsetRange(4, 20), other: OffsetRange(6, 9)}
    assert next_offsets(archive, ranges) == {"feedback": {0: 10, 1: 6}}
    with pytest.raises(LogTruncated, match="2 events of feedback/0 are missing"):
        next_offsets(archive, {PLACE: OffsetRange(12, 20)})
    control = next_offsets(archive, {PLACE: OffsetRange(12, 20)}, fence=False)
    assert control == {"feedback": {0: 12}}
    with pytest.raises(StateConflict, match="created anew"):
        next_offsets(archive, {PLACE: OffsetRange(0, 3)})


def test_an_archive_of_a_topic_that_was_created_anew_is_refused(tmp_path: Path) -> None:
    """Offsets alone do not tell if the new topic is longer."""
    uri = str(tmp_path / "log")
    create_archive(uri, {"feedback": "one"})
    assert create_archive(uri, {"feedback": "one"}).offset(PLACE) == -1
    with pytest.raises(StateConflict, match="move the archive away"):
        create_archive(uri, {"feedback": "two"})


def test_a_log_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_spark_metadata").mkdir()
    with pytest.raises(StateConflict, match="an earlier version wrote"):
        create_archive(str(tmp_path))


def test_errors_name_the_archive(tmp_path: Path) -> None:
    with pytest.raises(MissingArchive, match="afterclick stream"):
        EventArchive.open(str(tmp_path / "none"))
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"{0:020}.json").write_text("{")
    with pytest.raises(Unavailable, match=str(tmp_path)):
        EventArchive.open(str(tmp_path))
