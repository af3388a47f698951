"""A copy of the item catalogue in SQL: a process that starts without Kafka still knows titles.

reads, writes  sql  items

The topic is the source of truth. Each process writes what it reads from the topic; a row is
replaced by newer records only, so several processes may write. After a process has read the topic
to its end, it deletes the rows of items that the topic no longer has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from sqlalchemy import Connection, delete, select

from afterclick.events import Item
from serving.control.store import Database, insert_into, readable
from serving.control.store import items as table
from serving.control.write_behind import PendingRows
from serving.state.item_catalogue import Catalogue, Change

log = structlog.get_logger()
BATCH_ROWS: Final = 1000
KAFKA_SILENT_S: Final = 3.0
"""Load the catalogue from SQL after this long without Kafka records."""
CATCH_UP_S: Final = 60.0
"""Load it from SQL if the topic was not read to its end by then: a partition may be down."""
CLOCK_SKEW_MS: Final = 60_000
_FIELDS: Final = ("title", "categories", "brand", "price", "written")


class CatalogueCopy:
    """`take` is for the topic's reader thread, `sync` for the write-behind thread."""

    def __init__(self, catalogue: Catalogue, caught_up: Callable[[], bool]) -> None:
        self._catalogue, self._caught_up = catalogue, caught_up
        self._pending = PendingRows[str, Change]()
        self._started_at = self._last_record_at = time.time()
        self._in_topic: set[str] = set()
        self._checked = ""
        """Rows up to this item id were compared with the topic."""
        self._loaded = self._complete = False

    def take(self, changes: Sequence[Change]) -> None:
        """Queue records of the topic."""
        self._last_record_at = time.time()
        for change in changes:
            self._pending.add(change.item_id, change)
            if not self._complete and change.item is not None:
                self._in_topic.add(change.item_id)

    def sync(self, database: Database) -> bool:
        """Write a batch; load the catalogue from SQL first if Kafka is silent."""
        caught_up = self._caught_up()
        if not (self._loaded or caught_up) and self._kafka_is_late(time.time()):
            self._load(database)
        more = self._pending.flush(
            database, lambda connection, batch: self._write(connection, batch), BATCH_ROWS
        )
        if caught_up and not more and not self._complete:
            more = self._delete_missing(database)
        return more

    def _kafka_is_late(self, now: float) -> bool:
        return now - self._last_record_at > KAFKA_SILENT_S or now - self._started_at > CATCH_UP_S

    def _load(self, database: Database) -> None:
        columns = [column for column in table.c if column.name != "written"]
        with database.begin() as connection:
            rows = connection.execute(select(*columns)).mappings().all()
        removed = {change.item_id for change in self._pending.values() if change.item is None}
        for item in readable(Item, rows):
            if item.item_id not in removed:
                self._catalogue.put_new(item)
        self._loaded = True
        if rows:
            log.info("no records from Kafka; loaded the catalogue from SQL", items=len(rows))

    def _write(self, connection: Connection, batch: Mapping[str, Change]) -> None:
        stored = {} if self._complete else _stored_times(connection, list(batch))
        newer = [c for c in batch.values() if stored.get(c.item_id, -1) < c.written_ms]
        _upsert(connection, [change for change in newer if change.item is not None])
        _remove(connection, [change for change in newer if change.item is None])

    def _delete_missing(self, database: Database) -> bool:
        """Delete rows of items that the topic no longer has, a batch at a time; True while more may
        follow.

        An empty topic deletes nothing: it was lost. Records newer than the start of this process,
        less the clock skew, may be known to another process only.
        """
        if self._in_topic:
            with database.begin() as connection:
                batch = _ids_after(connection, self._checked)
                missing = [item_id for item_id in batch if item_id not in self._in_topic]
                until_ms = int(self._started_at * 1000) - CLOCK_SKEW_MS
                _remove(connection, (Change(item_id, None, until_ms) for item_id in missing))
            for item_id in missing if self._loaded else ():
                self._catalogue.remove(item_id)
            if batch:
                self._checked = batch[-1]
                return True
        self._complete, self._in_topic = True, set()
        return False


def _stored_times(connection: Connection, item_ids: Sequence[str]) -> dict[str, int]:
    """Item id → time of the record in SQL, of those items that have a row."""
    query = select(table.c.item_id, table.c.written).where(table.c.item_id.in_(item_ids))
    return {
        item_id: round(written.timestamp() * 1000) for item_id, written in connection.execute(query)
    }


def _ids_after(connection: Connection, item_id: str) -> list[str]:
    """The next ids in SQL, in order."""
    query = select(table.c.item_id).where(table.c.item_id > item_id)
    return list(connection.execute(query.order_by(table.c.item_id).limit(BATCH_ROWS)).scalars())


def _upsert(connection: Connection, changes: Sequence[Change]) -> None:
    if not changes:
        return
    insert = insert_into(connection, table)
    upsert = insert.on_conflict_do_update(
        index_elements=["item_id"],
        set_={name: insert.excluded[name] for name in _FIELDS},
        where=table.c.written <= insert.excluded.written,
    )
    connection.execute(upsert, [_row(change) for change in changes])


def _row(change: Change) -> dict[str, Any]:
    assert change.item is not None
    return change.item._asdict() | {"written": _record_time(change)}


def _remove(connection: Connection, changes: Iterable[Change]) -> None:
    for change in changes:
        older = (table.c.item_id == change.item_id) & (table.c.written <= _record_time(change))
        connection.execute(delete(table).where(older))


def _record_time(change: Change) -> datetime:
    return datetime.fromtimestamp(change.written_ms / 1000, UTC)
