"""A user's events in the log, in the order in which they reached it.

reads  delta  <archive>
       topic  reviews, feedback for events that are not archived
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from afterclick.errors import BadEvent
from afterclick.events import SESSION, SESSION_SOURCE, InteractionEvent
from afterclick.io.event_archive import EventArchive, MissingArchive, sql_text
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.settings import KafkaSettings
from afterclick.state import LogPosition, TopicPartition
from streaming.archive_table import ARCHIVE_SCHEMA
from streaming.proof.archive_log import record_of
from streaming.records import Record, decode_record

_BLOCK = 500
_OFFSET = attrgetter("position.offset")


@dataclass(frozen=True, slots=True)
class UserLogEvent:
    """A record with its event."""

    position: LogPosition
    record: Record
    event: InteractionEvent

    @property
    def order(self) -> tuple[float, LogPosition]:
        """Ordered by when it reached the log."""
        return self.record.log_ms, self.position


@dataclass(frozen=True)
class UserLog:
    """A user's events in the order in which they reached the log; those of a partition by offset.

    Each iteration reads the rows in blocks: as objects, all of them would take gigabytes.
    """

    rows: pa.Table
    recent: list[UserLogEvent]
    """Those that the archive may lack."""

    @property
    def sessions(self) -> list[str]:
        """The sessions whose events the user got at login, as user ids."""
        copies = self.rows.filter(pc.field("source") == SESSION_SOURCE)["session_id"]
        names: set[str | None] = set(copies.unique().to_pylist())
        names |= {e.event.data.session_id for e in self.recent if e.event.is_copy}
        return sorted(SESSION + name for name in names if name is not None)

    def __iter__(self) -> Iterator[UserLogEvent]:
        archived = self.rows.group_by(["topic", "partition"]).aggregate([]).to_pylist()
        partitions = {TopicPartition(row["topic"], row["partition"]) for row in archived}
        partitions |= {event.position.topic_partition for event in self.recent}
        return heapq.merge(*map(self._events_of, sorted(partitions)), key=attrgetter("order"))

    def _events_of(self, partition: TopicPartition) -> Iterator[UserLogEvent]:
        recent = (event for event in self.recent if event.position.topic_partition == partition)
        events = heapq.merge(self._archived(partition), recent, key=_OFFSET)
        for _, same in groupby(events, _OFFSET):
            yield next(same)

    def _archived(self, partition: TopicPartition) -> Iterator[UserLogEvent]:
        topic, number = partition
        of_partition = (pc.field("topic") == topic) & (pc.field("partition") == number)
        rows = self.rows.filter(of_partition).sort_by("offset")
        for batch in rows.to_batches(max_chunksize=_BLOCK):
            for row in batch.to_pylist():
                record = record_of(row)
                position = LogPosition(topic, number, record.offset)
                yield UserLogEvent(position, record, decode_record(record))


def archived_rows_of(uri: str, user_id: str) -> pa.Table:
    """The user's rows in an archive, without their texts. Raises Unavailable."""
    try:
        archive = EventArchive.open(uri)
    except MissingArchive:
        return ARCHIVE_SCHEMA.empty_table()
    columns = [name for name in archive.columns if name != "text"]
    rows = archive.read(f'"user_id" = {sql_text(user_id)}', columns)
    return rows.append_column("text", pa.nulls(len(rows), pa.string()))


def positions_of(rows: pa.Table) -> Iterator[LogPosition]:
    """The positions of rows."""
    for batch in rows.select(["topic", "partition", "offset"]).to_batches():
        columns = (column.to_pylist() for column in batch.columns)
        yield from map(LogPosition, *columns)


def read_topics(
    kafka: KafkaSettings, wanted: Mapping[TopicPartition, OffsetRange], user_id: str
) -> Iterator[UserLogEvent]:
    """The user's events at these offsets that the topics still hold. Raises Unavailable."""
    if not any(map(len, wanted.values())):
        return
    with KafkaLog(kafka) as kafka_log:
        held = kafka_log.ranges(*kafka.topics.interactions)
        ranges = {
            name: OffsetRange(max(span.begin, held[name].begin), min(span.end, held[name].end))
            for name, span in wanted.items()
        }
        for message in kafka_log.read(ranges):
            position = LogPosition(
                message.topic() or "", message.partition() or 0, message.offset() or 0
            )
            log_ms = float(message.timestamp()[1])
            record = Record(position.offset, message.key(), message.value(), log_ms)
            try:
                event = decode_record(record)
            except BadEvent:
                continue
            if event.data.user_id == user_id:
                yield UserLogEvent(position, record, event)
