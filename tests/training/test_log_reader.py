"""An incremental ETL run gives the same tables as a full one, or falls back to a full one."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from afterclick.io.event_archive import EventArchive
from afterclick.io.forgotten import publish_forgotten
from afterclick.settings import Settings
from streaming.archive_table import maintain
from streaming.proof.archive_log import erase
from tests.training import shop
from training import etl, event_log
from training.log_reader import is_replaced_file

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
START_MS = int(shop.START.timestamp() * 1000)
READING = {"rows_read", "rows_reused", "whole"}
TABLES = {
    "events": ["user_index", "item_index", "time_ms", "action", "weight", "propensity", "position"],
    "users": ["user_index", "user_id"],
    "items": ["item_index", "item_id"],
    "log": [
        "user_id",
        "event_id",
        "topic",
        "partition",
        "offset",
        "item_id",
        "time_ms",
        "action",
        "impression_id",
    ],
}


class Log:
    """A log of one test, and runs of the ETL over it."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        self.spark, self.settings = spark, settings
        self.days = 0

    def day(self, *rows: dict[str, Any], log_day: str | None = None) -> None:
        """The next log day, as one file."""
        self.days += 1
        day = log_day or f"2026-01-{self.days:02}"
        shop.write_log(self.settings.archive, list(rows), log_day=day)

    def archive(self) -> EventArchive:
        return EventArchive.open(self.settings.archive)

    def run(self, *, full: bool = False) -> etl.EtlReport:
        version, report = etl.run(self.spark, self.settings, full=full)
        self.folder = self.settings.home / "etl" / version
        return report

    def compared(self) -> etl.EtlReport:
        """Run incrementally, then in full; both give the same tables. Returns the first report."""
        report = self.run()
        assert report.balanced()
        found, account = tables(self.folder), report.model_dump(exclude=READING)
        whole = self.run(full=True)
        assert whole.whole is not None
        assert whole.rows_read == whole.rows_in
        assert account == whole.model_dump(exclude=READING)
        assert found == tables(self.folder)
        return report


@pytest.fixture
def log(spark: SparkSession, settings: Settings) -> Log:
    """A log whose first day has been read."""
    log = Log(spark, settings)
    log.day(
        *[shop.event(f"w{user}", f"j{item}", item) for user in range(6) for item in range(6)],
        shop.event("u1", "a", 1, event_id="one", action="like"),
        shop.event("u2", "a", 1, event_id="two", action="purchase"),
        shop.event("u2", "b", 1, action="view"),
        shop.event("u3", None, 1),  # type: ignore[arg-type]
    )
    assert log.run().whole == "there is no usable earlier run"
    return log


def tables(folder: Path) -> dict[str, list[str]]:
    """The rows of each table as text, sorted."""
    found = {}
    for name, columns in TABLES.items():
        rows = pq.read_table(folder / name, columns=columns)
        found[name] = sorted(map(repr, rows.to_pylist()))
    return found


def pairs(folder: Path) -> set[tuple[str, str]]:
    """(user_id, item_id) of each interaction."""
    found = event_log.load(folder).pairs()
    users, items = found.user_ids[found.user], found.item_ids[found.item]
    return set(zip(users.tolist(), items.tolist(), strict=True))


def test_files_that_an_erasure_replaces_meanwhile_are_read_again(log: Log) -> None:
    opened = log.archive().files()
    rows = log.spark.read.parquet(*opened)
    assert erase(log.settings.archive, "w1", START_MS * 2) == 6
    for read in (rows.count, lambda: log.spark.read.parquet(*opened).count()):
        with pytest.raises(Exception, match="NOT_") as missing:
            read()
        assert is_replaced_file(missing.value)
    assert not is_replaced_file(ValueError("another error"))
    assert log.run(full=True).rows_read == 40 - 6


def test_only_new_events_are_read_in_consecutive_runs(log: Log) -> None:
    first = log.run(full=True)
    assert first.rows_read == first.rows_in
    nothing = log.run()
    assert (nothing.rows_read, nothing.rows_reused) == (0, first.rows_in)
    log.day(shop.event("u9", "new", 130), shop.event("u9", "a", 131))
    assert log.run().rows_read == 2
    log.day(shop.event("u8", "new", 132))
    log.day(shop.event("u7", "new", 133))
    report = log.compared()
    assert (report.rows_read, report.whole) == (2, None)
    assert report.rows_reused == first.rows_in + 2
    assert {("u9", "a"), ("u8", "new"), ("u7", "new")} <= pairs(log.folder)


def test_late_events_change_earlier_rows(log: Log) -> None:
    assert ("u2", "a") in pairs(log.folder)
    log.day(
        shop.event("u1", "a", 1, event_id="one", action="like"),
        shop.event("u2", "c", 2, event_id="two", action="like"),  # the first row is kept
        shop.event("another", "c", 2, event_id="two", action="like"),  # another user's event
        shop.event("u2", "a", 2, action="undo"),
    )
    report = log.compared()
    assert report.rows_read == 4
    assert (report.dropped["duplicate_event"], report.not_pairs["undone"]) == (2, 1)
    assert not {("u2", "c"), ("u2", "a")} & pairs(log.folder)
    assert ("another", "c") in pairs(log.folder)


def test_a_forgotten_user_is_removed_from_the_reused_events(log: Log) -> None:
    log.day(shop.event("u1", "c", 130), shop.event("u1", "c", 200))
    publish_forgotten(log.settings.kafka, "u1", START_MS + 150 * shop.DAY_MS)
    report = log.compared()
    assert report.whole == "the list of forgotten users has changed"
    rows = pq.read_table(log.folder / "log").to_pylist()
    events = [row for row in rows if row["user_id"] == "u1"]
    assert [row["item_id"] for row in events] == ["c"]  # the event after the forgetting
    log.day(shop.event("u1", "d", 140), shop.event("u1", "d", 210))
    assert log.compared().rows_read == 1  # in new files too
    publish_forgotten(log.settings.kafka, "u1", START_MS + 300 * shop.DAY_MS)
    log.run()
    assert not any(user == "u1" for user, _ in pairs(log.folder))


def test_events_of_a_session_that_its_user_has_count_once(log: Log) -> None:
    """The copy takes over the impression; the control is an event that was not copied."""
    visit = {"event_id": "v1", "action": "like", "session_id": "s"}
    log.day(
        shop.event("session:s", "a", 130, **visit, impression_id="list"),
        shop.event("session:s", "b", 131, action="like"),
    )
    assert log.run().dropped["copied_to_user"] == 0
    log.day(shop.event("u9", "a", 130, **visit, source="afterclick/session"))
    report = log.compared()
    assert report.dropped["copied_to_user"] == 1
    assert {("u9", "a"), ("session:s", "b")} <= pairs(log.folder)
    assert ("session:s", "a") not in pairs(log.folder)
    assert report.listed == 1


def test_with_another_limit_for_early_events_the_whole_log_is_read(log: Log) -> None:
    before = log.run()
    stream = log.settings.stream.model_copy(update={"ahead_s": 1.0})
    log.settings = log.settings.model_copy(update={"stream": stream})
    early = shop.event("u9", "new", 401)  # 400 days are when it arrives
    log.day(early)
    report = log.compared()
    assert report.whole == "the setting stream.ahead_s has changed"
    assert report.dropped["dated_ahead"] == 1
    assert report.rows_out == before.rows_out


def test_with_a_damaged_state_file_the_whole_log_is_read(log: Log) -> None:
    (log.folder / "state.json").write_text("{")
    assert log.compared().rows_reused == 0


def test_merged_files_are_not_read_again(log: Log) -> None:
    log.day(shop.event("u9", "new", 130))
    log.day(shop.event("u8", "new", 131))
    log.run()
    before = log.archive().files()
    maintain(log.settings.archive, keep_days=10**4, today=date(2026, 1, 1))
    log.day(shop.event("u7", "new", 132), log_day="2026-01-01")
    maintain(log.settings.archive, keep_days=10**4, today=date(2026, 1, 2))
    assert len(log.archive().files()) == len(before)
    assert set(log.archive().files()) != set(before)
    assert log.compared().rows_read == 1


def test_after_retention_has_deleted_a_day_the_whole_archive_is_read(log: Log) -> None:
    log.day(shop.event("w1", "j1", 130), shop.event("w2", "j1", 130))
    log.run()
    maintain(log.settings.archive, keep_days=1, today=date(2026, 1, 3))
    report = log.compared()
    assert (report.whole, report.rows_in) == ("retention has deleted days of the archive", 2)


def test_an_archive_that_is_another_table_is_read_from_its_beginning(log: Log) -> None:
    shutil.rmtree(log.settings.archive)
    log.day(shop.event("w1", "j1", 130))
    assert log.compared().whole == "the previous run read another archive"


def test_an_archive_in_an_object_store_is_read(
    spark: SparkSession, settings: Settings, s3: Any
) -> None:
    log = Log(spark, settings.model_copy(update={"archive_uri": "s3a://shop/log"}))
    log.day(shop.event("u1", "a", 1), shop.event("u2", "a", 1))
    assert log.run().rows_read == 2
    log.day(shop.event("u3", "a", 1))
    assert log.compared().rows_read == 1
    assert not (log.folder / "archived").exists()
