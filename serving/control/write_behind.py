"""Synchronize memory with SQL in one background thread; no request waits for the database.

Large backlogs are written in batches with pauses of four times the duration of a batch, so that
request handling keeps most of the interpreter's time. During an outage rows wait in bounded queues.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError

from afterclick.errors import Unavailable
from afterclick.io.background import BackgroundLoop
from serving.control.store import Database

log = structlog.get_logger()
INTERVAL_S: Final = 2.0
MIN_PAUSE_S: Final = 0.02
PAUSE_PER_BATCH: Final = 4.0
"""Pause between two batches, in durations of a batch."""
BATCH_ROWS: Final = 500

K = TypeVar("K")
V = TypeVar("V")


class Syncable(Protocol):
    """A part that writes rows to SQL or reads them."""

    def sync(self, database: Database) -> bool:
        """Write one batch and read what changed; True while more rows wait. Raises Unavailable."""
        ...


class PendingRows(Generic[K, V]):
    """Rows that wait for SQL: at most `limit` keys, oldest first. Safe to use from any thread.

    `merge(waiting, new)` combines two rows of one key; by default the new row replaces the old one.
    """

    def __init__(
        self, limit: int | None = None, merge: Callable[[V, V], V] = lambda _, new: new
    ) -> None:
        self._limit, self._merge = limit, merge
        self._rows: dict[K, V] = {}
        self._lock = threading.Lock()
        self.written = 0
        self.dropped = 0
        """Rows without room in the queue, and rows that SQL rejected."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: K, row: V) -> None:
        """Append a row, or merge it into the waiting row of its key. Never blocks on SQL."""
        with self._lock:
            if key in self._rows:
                self._rows[key] = self._merge(self._rows[key], row)
            elif self._limit is None or len(self._rows) < self._limit:
                self._rows[key] = row
            else:
                self.dropped += 1

    def values(self) -> list[V]:
        """A copy of the waiting rows."""
        with self._lock:
            return list(self._rows.values())

    def discard(self, matches: Callable[[K, V], bool]) -> None:
        """Drop the waiting rows that match. Does not block `add` meanwhile."""
        with self._lock:
            rows = list(self._rows.items())
        found = [key for key, row in rows if matches(key, row)]
        with self._lock:
            for key in found:
                self._rows.pop(key, None)

    def flush(
        self,
        database: Database,
        write: Callable[[Connection, Mapping[K, V]], None],
        size: int = BATCH_ROWS,
    ) -> bool:
        """Write up to `size` rows in one transaction; True while more wait.

        Rows that SQL rejects are dropped, so that they block no other row. After any other error
        the batch waits again. Raises Unavailable.
        """
        batch = self._take(size)
        if not batch:
            return False
        try:
            with database.begin() as connection:
                write(connection, batch)
        except (DataError, IntegrityError):
            log.exception("rows rejected by the database; dropped", rows=len(batch))
            self.dropped += len(batch)
        except Exception:
            self._restore(batch)
            raise
        else:
            self.written += len(batch)
        return bool(self._rows)

    def _take(self, size: int) -> dict[K, V]:
        with self._lock:
            return {key: self._rows.pop(key) for key in list(islice(self._rows, size))}

    def _restore(self, batch: dict[K, V]) -> None:
        with self._lock:
            for key, row in self._rows.items():
                batch[key] = self._merge(batch[key], row) if key in batch else row
            self._rows = batch


class WriteBehind:
    """Synchronizes each part every `interval_s`, and after `stop` once more."""

    def __init__(
        self, database: Database, parts: Sequence[Syncable], interval_s: float = INTERVAL_S
    ) -> None:
        self._database, self._parts, self._interval_s = database, parts, interval_s
        self._backlogged: list[Syncable] = []
        """Parts with more rows than one batch."""
        self._full_round_at = -interval_s
        self._loop = BackgroundLoop("write-behind", self._work, interval_s, final_run=True)
        self.heartbeat = self._loop.heartbeat

    def start(self) -> None:
        self._loop.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Write what waits, for at most `timeout_s`, and end the thread."""
        self._loop.stop(timeout_s)

    def _work(self) -> float | None:
        began = time.monotonic()
        self._sync_parts()
        while self._backlogged and self._loop.stopping:
            self._sync_parts()
        if not self._backlogged:
            return None
        pause_s = PAUSE_PER_BATCH * (time.monotonic() - began)
        return min(self._interval_s, max(MIN_PAUSE_S, pause_s))

    def _sync_parts(self) -> None:
        """Synchronize the backlogged parts; all parts at the start of each interval."""
        now, parts = time.monotonic(), self._backlogged
        if not parts or self._loop.stopping or now - self._full_round_at >= self._interval_s:
            self._full_round_at, parts = now, list(self._parts)
        self._backlogged = []
        self._database.upgrade()
        failures: list[Exception] = []
        for part in parts:
            try:
                if part.sync(self._database):
                    self._backlogged.append(part)
            except Unavailable:
                raise
            except Exception as error:  # a defect in one part must not stop the others
                failures.append(error)
        if failures:
            raise failures[0]
