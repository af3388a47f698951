"""A copy of the catalogue in SQL, so that a process that starts while Kafka is away knows titles.

reads, writes  sql  items

The topic is the truth. Each process writes what it reads from it; a row is only ever replaced by a newer
record, so that several processes may. Rows of items that the topic no longer has go once it was read to its
end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import structlog
from sqlalchemy import Connection, delete, select

from afterclick.events import Item
from serving.control.reading import readable
from serving.control.store import Database
from serving.control.tables import items as table
from serving.control.upsert import insert_into
from serving.state.item_catalogue import Catalogue, Change

log = structlog.get_logger()
BATCH: Final = 500
"""Rows of one statement."""
SLICE: Final = 1000
"""Records of one transaction, after which requests have the interpreter to themselves for a while."""
PATIENCE_S: Final = 3.0
"""How long Kafka may say nothing before the catalogue comes from SQL."""
LONGEST_S: Final = 60.0
"""How long it may take in all: one of its partitions may be away."""
SKEW_MS: Final = 60_000
_FIELDS: Final = ("title", "categories", "brand", "price", "written")


class CatalogueCopy:
    """`take` is called by the reader of the topic, `exchange` by the thread that writes."""

    def __init__(self, catalogue: Catalogue, caught_up: Callable[[], bool]) -> None:
        self._catalogue, self._caught_up = catalogue, caught_up
        self._lock = threading.Lock()
        self._waiting: dict[str, Change] = {}
        self._began = self._heard = time.time()
        self._written: dict[str, int] | None = None
        """When the newest record of each row was, until the topic was read to its end."""
        self._seen: set[str] = set()
        self._loaded = self._settled = False

    def take(self, changes: Sequence[Change]) -> None:
        """What the topic said."""
        with self._lock:
            self._heard = time.time()
            self._waiting.update({change.item_id: change for change in changes})
            if not self._settled:
                self._seen.update(change.item_id for change in changes if change.item is not None)

    def exchange(self, database: Database) -> bool:
        """Write some of what changed; first read the copy, where Kafka does not come. Whether more waits."""
        if not (self._loaded or self._caught_up()) and self._kept_waiting(time.time()):
            self._load(database)
        ended = self._caught_up()
        with self._lock:
            changes = [self._waiting.pop(item_id) for item_id in list(islice(self._waiting, SLICE))]
            more = bool(self._waiting)
        try:
            self._write(database, changes)
            if ended and not more and not self._settled:
                self._settle(database)
        except Exception:
            with self._lock:
                self._waiting = {change.item_id: change for change in changes} | self._waiting
            raise
        return more

    def _kept_waiting(self, now: float) -> bool:
        return now - self._heard > PATIENCE_S or now - self._began > LONGEST_S

    def _load(self, database: Database) -> None:
        with database.begin() as connection:
            rows = (
                connection.execute(select(*(c for c in table.c if c.name != "written")))
                .mappings()
                .all()
            )
        with self._lock:
            removed = {change.item_id for change in self._waiting.values() if change.item is None}
        for item in readable(Item, rows):
            if item.item_id not in removed:
                self._catalogue.put_new(item)
        self._loaded = True
        if rows:
            log.info("Kafka does not come: the catalogue comes from its copy", items=len(rows))

    def _write(self, database: Database, changes: Sequence[Change]) -> None:
        if not changes:
            return
        with database.begin() as connection:
            if self._written is None and not self._settled:
                self._written = _moments(connection)
            known = self._written or {}
            newer = [
                change for change in changes if known.get(change.item_id, -1) < change.written_ms
            ]
            _put(connection, [change for change in newer if change.item is not None])
            _remove(connection, [change for change in newer if change.item is None])

    def _settle(self, database: Database) -> None:
        """The topic was read to its end: what it does not have is no more."""
        if self._seen:  # an empty topic is one that was lost, not a shop without items
            with database.begin() as connection:
                gone = _moments(connection).keys() - self._seen
                until = int(self._began * 1000) - SKEW_MS  # later ones may be another process's
                _remove(connection, [Change(item_id, None, until) for item_id in sorted(gone)])
            for item_id in gone if self._loaded else ():
                self._catalogue.remove(item_id)
        self._settled, self._written, self._seen = True, None, set()


def _moments(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(table.c.item_id, table.c.written))
    return {item_id: round(written.timestamp() * 1000) for item_id, written in rows}


def _put(connection: Connection, changes: Sequence[Change]) -> None:
    insert = insert_into(connection, table)
    upsert = insert.on_conflict_do_update(
        index_elements=["item_id"],
        set_={name: insert.excluded[name] for name in _FIELDS},
        where=table.c.written <= insert.excluded.written,
    )
    for start in range(0, len(changes), BATCH):
        connection.execute(upsert, [_row(change) for change in changes[start : start + BATCH]])


def _row(change: Change) -> dict[str, Any]:
    assert change.item is not None
    return change.item.model_dump(mode="json") | {"written": _moment(change)}


def _remove(connection: Connection, changes: Sequence[Change]) -> None:
    for change in changes:
        same = (table.c.item_id == change.item_id) & (table.c.written <= _moment(change))
        connection.execute(delete(table).where(same))


def _moment(change: Change) -> datetime:
    return datetime.fromtimestamp(change.written_ms / 1000, UTC)
