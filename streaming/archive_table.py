"""Write the archives of events and of impressions: append batches, merge files, delete old days.

reads          redis  forgotten, {u:<user>}:forgotten
reads, writes  delta  <archive>, <archive>-impressions  log_day=<yyyy-mm-dd>/*.parquet, _delta_log/

A batch is appended with the offsets of its last records in one commit, and records up to the
offsets in the table are skipped: a batch that is repeated after a kill adds nothing. Of two jobs
that append the same records, Delta refuses the second commit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from afterclick.errors import BadEvent, LogTruncated, StateConflict
from afterclick.events import ImpressionEvent, InteractionEvent
from afterclick.io.event_archive import (
    DELETED_DAY,
    STORAGE_OPTIONS,
    EventArchive,
    MissingArchive,
    archive_errors,
)
from afterclick.io.kafka_log import OffsetRanges
from afterclick.state import TopicPartition
from streaming.fault_points import NO_FAULTS, FaultPoints
from streaming.forgotten_users import ForgottenUsers
from streaming.positions import Offsets
from streaming.records import Record, decode_record, decode_shown
from streaming.worker import by_partition, record_batch

log = structlog.get_logger()

_TIME = pa.timestamp("us", tz="UTC")
_EVENT_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("log_time", _TIME),
        ("event_id", pa.string()),
        ("event_time", _TIME),
        *((name, pa.string()) for name in ("user_id", "item_id", "action")),
        ("rating", pa.float64()),
        *((name, pa.string()) for name in ("text", "impression_id", "session_id", "source")),
    ]
)
_IMPRESSION_SCHEMA = pa.schema(
    [
        *(_EVENT_SCHEMA.field(n) for n in range(6)),
        ("user_id", pa.string()),
        ("impression_id", pa.string()),
        ("event", pa.string()),
    ]
)
"""`event` is the whole event, as it was in the topic."""
_LOG_DAY = pa.field("log_day", pa.string())
ARCHIVE_SCHEMA = _EVENT_SCHEMA.append(_LOG_DAY)
_EVENT_TIME, _USER = 5, 6
_REPLACED_H = 1
_CONFIGURATION = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": f"interval {_REPLACED_H} hours",
    "delta.deletedFileRetentionDuration": f"interval {_REPLACED_H} hours",
    # statistics are kept in the table's log, which erasure does not rewrite: none of user data
    "delta.dataSkippingStatsColumns": "topic,partition,offset,log_time",
}
_CHUNK_BYTES = 32 << 20
"""A batch with more is appended in several commits."""
_ATTEMPTS = 10
_OPEN_DAY_BYTES, _CLOSED_DAY_BYTES = 16 << 20, 256 << 20
"""Size up to which files are merged. A day that still grows is rewritten often: smaller files."""


@dataclass(frozen=True)
class ArchiveKind:
    """What an archive has a row for. The schema begins with the first seven columns of events."""

    schema: pa.Schema
    """Without `log_day`."""
    row: Callable[[TopicPartition, Record, float], tuple[Any, ...]]
    """The row of a record. Raises BadEvent."""

    @property
    def table_schema(self) -> pa.Schema:
        return self.schema.append(_LOG_DAY)


def create_archive(
    uri: str, topic_ids: Mapping[str, str] | None = None, kind: ArchiveKind | None = None
) -> EventArchive:
    """Open the archive, or create an empty one (default: of events) of the topics with these ids.

    Raises StateConflict if it is of other topics or of an earlier version, and Unavailable.
    """
    topics = json.dumps(topic_ids or {}, sort_keys=True)
    with suppress(MissingArchive):
        archive = EventArchive.open(uri)
        if topic_ids and archive.table.metadata().description != topics:
            raise StateConflict(
                f"a topic was created anew since the archive in {uri}: stop the stream and move "
                "the archive away; the next one begins with the new topic"
            )
        return archive
    with archive_errors(uri):
        DeltaTable.create(
            uri,
            (kind or EVENTS).table_schema,
            mode="ignore",
            partition_by=["log_day"],
            description=topics,
            configuration=_CONFIGURATION,
            storage_options=STORAGE_OPTIONS,
        )
    return EventArchive.open(uri)


def next_offsets(archive: EventArchive, ranges: OffsetRanges, *, fence: bool = True) -> Offsets:
    """The next offset to archive of each partition.

    Raises LogTruncated if retention has deleted records that are not archived (without `fence`
    they are left out), and StateConflict if the log ends before the archive. A partition that was
    never archived starts where it begins.
    """
    offsets: Offsets = {}
    for name, held in ranges.items():
        archived = archive.offset(name)
        start = archived + 1 if archived >= 0 else held.begin
        if start > held.end:
            raise StateConflict(
                f"{name} ends at offset {held.end}, but the archive in {archive.uri} has its "
                f"records up to {archived}: the topic was created anew or has lost records. Stop "
                "the stream and move the archive away; the next one begins with the new topic"
            )
        if start < held.begin and fence:
            raise LogTruncated(
                f"{held.begin - start} events of {name} are missing: retention deleted them before "
                f"they were archived in {archive.uri}. Move the archive away to begin a new one"
            )
        if archived < 0 and held.begin:
            log.warning("archive begins late", partition=str(name), offset=held.begin)
        offsets.setdefault(name.topic, {})[name.partition] = max(start, held.begin)
    return offsets


def _origin(
    name: TopicPartition, record: Record, event: InteractionEvent | ImpressionEvent
) -> tuple[Any, ...]:
    """The columns that every archive begins with."""
    return (
        name.topic,
        name.partition,
        record.offset,
        int(record.log_ms * 1000),
        event.id,
        round(event.time.timestamp() * 1e6),
    )


def _event_row(name: TopicPartition, record: Record, max_ahead_ms: float) -> tuple[Any, ...]:
    event = decode_record(record, max_ahead_ms)
    data = event.data
    return (
        *_origin(name, record, event),
        data.user_id,
        data.item_id,
        str(data.action),
        data.rating,
        data.text,
        data.impression_id,
        data.session_id,
        event.source,
    )


def _impression_row(name: TopicPartition, record: Record, max_ahead_ms: float) -> tuple[Any, ...]:
    event = decode_shown(record, max_ahead_ms)
    return (
        *_origin(name, record, event),
        event.data.user_id,
        event.data.impression_id,
        (record.value or b"").decode(),
    )


EVENTS = ArchiveKind(_EVENT_SCHEMA, _event_row)
IMPRESSIONS = ArchiveKind(_IMPRESSION_SCHEMA, _impression_row)


@dataclass
class ArchiveAppender:
    """Appends the valid events of Kafka rows, without forgotten ones. Picklable, for a worker."""

    uri: str
    forgotten: ForgottenUsers | None = None
    faults: FaultPoints = NO_FAULTS
    max_ahead_ms: float = math.inf
    """An event dated further after its arrival in the log is malformed, as for the state."""
    kind: ArchiveKind = EVENTS
    _archive: EventArchive | None = field(default=None, init=False)
    _rows: list[pa.RecordBatch] = field(default_factory=list, init=False)
    _ends: dict[TopicPartition, int] = field(default_factory=dict, init=False)
    _commits: int = field(default=0, init=False)

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append batches (`SOURCE_COLUMNS`), each partition in offset order; returns none."""
        for topic, partition, records in by_partition(batches):
            self.add(TopicPartition(topic, partition), records)
        self.commit()
        return iter(())

    def add(self, name: TopicPartition, records: list[Record]) -> None:
        """Add the records of a partition; commits where they are many."""
        self.faults.on_archive()
        if self._archive is None:
            self._archive = EventArchive.open(self.uri)
        last = self._ends.get(name, self._archive.offset(name))
        if self.faults.fence:
            records = [record for record in records if record.offset > last]
        if records:
            self._ends[name] = max(last, records[-1].offset)
            self._rows += self._archive_rows(name, records)
        if sum(rows.nbytes for rows in self._rows) >= _CHUNK_BYTES:
            self._commit(self._archive.table)

    def commit(self) -> None:
        """Commit what was added since the last commit."""
        if self._ends and self._archive is not None:
            self._commit(self._archive.table)
        self._archive = None  # the next batch sees what others have committed

    def _archive_rows(self, name: TopicPartition, records: list[Record]) -> list[pa.RecordBatch]:
        """The rows of valid events without forgotten ones; [] if there are none."""
        rows = list(self._valid_rows(name, records))
        until = self.forgotten.among(row[_USER] for row in rows) if self.forgotten else {}
        if until:
            rows = [
                row
                for row in rows
                if row[_USER] not in until or row[_EVENT_TIME] > 1000 * until[row[_USER]]
            ]
        if not rows:
            return []
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        batch = record_batch(columns, self.kind.schema)
        days = pc.strftime(batch.column("log_time"), "%Y-%m-%d")
        schema = self.kind.table_schema
        return [pa.RecordBatch.from_arrays([*batch.columns, days], schema=schema)]

    def _valid_rows(
        self, name: TopicPartition, records: Iterable[Record]
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of valid records. (Their reader for the state writes dead letters.)"""
        for record in records:
            with suppress(BadEvent):
                yield self.kind.row(name, record, self.max_ahead_ms)

    def _commit(self, table: DeltaTable) -> None:
        """Append the rows together with the offsets; only the offsets if no record is valid."""
        before = _stored(table, self._ends)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                append(table, self._rows, self._ends)
                break
            except CommitFailedError:  # rows were erased meanwhile, or another job appends
                table.update_incremental()
                if attempt == _ATTEMPTS or _stored(table, self._ends) != before:
                    raise
        self._rows, self._commits = [], self._commits + 1
        self.faults.after_append(self._commits)


def append(
    table: DeltaTable, rows: list[pa.RecordBatch], ends: Mapping[TopicPartition, int]
) -> None:
    """Append rows (of the table's schema) and the offsets of the last records in one commit.

    Raises CommitFailedError if a commit after the one that `table` has read deleted rows, or moved
    these offsets.
    """
    transactions = [Transaction(str(name), offset) for name, offset in ends.items()]
    properties = CommitProperties(app_transactions=transactions)
    if rows:
        data = pa.Table.from_batches(rows)
        write_deltalake(table, data, mode="append", commit_properties=properties)
    else:
        table.create_write_transaction(
            [], "append", table.schema(), ["log_day"], commit_properties=properties
        )


def _stored(table: DeltaTable, names: Iterable[TopicPartition]) -> list[int | None]:
    """The offsets that the table has for these partitions."""
    return [table.transaction_version(str(name)) for name in names]


def maintain(
    uri: str, keep_days: int, today: date | None = None, replaced_h: int = _REPLACED_H
) -> None:
    """Delete days that arrived before `keep_days`, merge small files, delete replaced files.

    Safe beside appends and erasures: an operation that meets another one is left for the next time.
    Readers of an older commit have `replaced_h` hours. Raises StateConflict, Unavailable.
    """
    archive, today = EventArchive.open(uri), today or datetime.now(UTC).date()
    with archive_errors(uri):
        try:
            _delete_days(archive, today - timedelta(days=keep_days))
            for days, size in (("<", _CLOSED_DAY_BYTES), ("=", _OPEN_DAY_BYTES)):
                archive.table.optimize.compact(
                    partition_filters=[("log_day", days, today.isoformat())],
                    target_size=size,
                    max_concurrent_tasks=1,
                )
        except CommitFailedError as error:
            log.info("archive not merged", reason=str(error).splitlines()[0])
        archive.table.vacuum(replaced_h, False, enforce_retention_duration=False, full=True)
        archive.table.create_checkpoint()
        archive.table.cleanup_metadata()


def _delete_days(archive: EventArchive, first: date) -> None:
    """Delete the days before `first`, and store that they are gone."""
    days = [day["log_day"] for day in archive.table.partitions()]
    if not any(day < first.isoformat() for day in days):
        return
    newest = (first - date(1970, 1, 1)).days - 1
    archive.table.delete(
        f"log_day < '{first.isoformat()}'",
        commit_properties=CommitProperties(app_transactions=[Transaction(DELETED_DAY, newest)]),
    )
    log.info("archived days deleted", before=first.isoformat())
