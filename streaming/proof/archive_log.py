"""Read the archives of events and impressions, and erase a user's rows from them.

reads, writes  delta  <archive>, <archive>-impressions  log_day=<yyyy-mm-dd>/*.parquet, _delta_log/
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from deltalake.exceptions import CommitFailedError

from afterclick.errors import Unavailable
from afterclick.events import Interaction, InteractionEvent, encode, interaction_event
from afterclick.io.event_archive import EventArchive, MissingArchive, archive_errors, sql_text
from afterclick.state import TopicPartition
from streaming.records import Record

_ATTEMPTS = 50
_BLOCK = 5000
_DATA = ("user_id", "item_id", "action", "rating", "text", "impression_id", "session_id")


def archived_rows(
    archive: EventArchive, partition: TopicPartition, before: int | None = None
) -> Iterator[dict[str, Any]]:
    """A partition's rows in offset order, those with an offset below `before` if it is given.

    Raises Unavailable.
    """
    rows = f'"topic" = {sql_text(partition.topic)} and "partition" = {partition.partition}'
    if before is not None:
        rows += f' and "offset" < {before}'
    table = archive.read(rows).sort_by("offset")
    for batch in table.to_batches(max_chunksize=_BLOCK):
        yield from batch.to_pylist()


def event_of(row: dict[str, Any]) -> InteractionEvent:
    """The event of a row."""
    return interaction_event(
        Interaction(**{name: row[name] for name in _DATA}),
        event_id=row["event_id"],
        time=row["event_time"],
        source=row["source"],
    )


def record_of(row: dict[str, Any]) -> Record:
    """A row as the Kafka record that it was."""
    log_ms = row["log_time"].timestamp() * 1000
    return Record(row["offset"], None, encode(event_of(row)), log_ms)


def impression_record(row: dict[str, Any]) -> Record:
    """A row of the archive of impressions as the Kafka record that it was."""
    log_ms = row["log_time"].timestamp() * 1000
    return Record(row["offset"], None, row["event"].encode(), log_ms)


def erase(archive: str, user_id: str, until_ms: int) -> int:
    """Delete a user's rows up to an event time, also from the disk; returns their number.

    The stream may append and merge files meanwhile. A concurrent reader of the archive fails, and
    succeeds when it reads again. Raises StateConflict if an earlier version wrote the archive, and
    Unavailable.
    """
    try:
        log = EventArchive.open(archive)
    except MissingArchive:
        return 0
    until = sql_text(datetime.fromtimestamp(until_ms / 1000, UTC).isoformat())
    rows = f'"user_id" = {sql_text(user_id)} and "event_time" <= {until}'
    with archive_errors(archive):
        days = log.read(rows, ["log_day"])["log_day"]
        erased = sum(
            _delete(log, f"log_day = '{day}' and {rows}")
            for day in sorted(days.unique().to_pylist())
        )
        log.table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    return erased


def _delete(log: EventArchive, predicate: str) -> int:
    """Delete rows of one day, again if another commit changed that day meanwhile."""
    for _ in range(_ATTEMPTS):
        log.table.update_incremental()
        try:
            return int(log.table.delete(predicate)["num_deleted_rows"])
        except CommitFailedError:
            continue
    raise Unavailable(f"the archive in {log.uri} changes too often: run it again")
