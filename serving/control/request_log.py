"""The request log: who asked for what, when, and how it went. Written behind the response.

writes  sql  request_log

A request costs it one append. A thread writes what came together about once a second; while the database is
slow or away the rows wait, a bounded number, and then the newest are dropped and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import delete, insert
from sqlalchemy.exc import DataError, IntegrityError

from afterclick.errors import Unavailable
from serving.control.store import Database
from serving.control.tables import request_log

log = structlog.get_logger()
PAUSE_S: Final = 1.0
BATCH: Final = 500
WAITING: Final = 20_000
"""Rows that may wait for the database."""
LONGEST: Final = 1000
"""Characters of a target that are kept."""
PRUNE_S: Final = 3600.0


class LoggedRequest(NamedTuple):
    """One answered request, as it is handed over."""

    time: float
    method: str
    route: str
    path: str
    query: bytes
    status: int
    seconds: float
    caller: str | None


class RequestLog:
    """A bounded queue and the thread that empties it. `days` of 0 keeps nothing."""

    def __init__(self, database: Database, days: float, waiting: int = WAITING) -> None:
        self._database, self._days, self._waiting = database, days, waiting
        self._rows: deque[LoggedRequest] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pruned_at = -PRUNE_S
        self._down = False
        self.written = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        return len(self._rows)

    def append(self, row: LoggedRequest) -> None:
        """Hand over one row; never waits."""
        if not self._days:
            return
        if len(self._rows) < self._waiting:
            self._rows.append(row)
        else:
            self.dropped += 1

    def start(self) -> None:
        if self._days:
            self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write what waits, as far as the time reaches."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(PAUSE_S)
            try:
                self._write()
                self._prune()
                self._down = False
            except Unavailable as error:
                if not self._down:
                    log.warning("the request log waits for its database", error=str(error))
                self._down = True

    def _write(self) -> None:
        """Write all that waits. Raises Unavailable; what was not written stays first in the queue."""
        while self._rows:
            batch = [self._rows.popleft() for _ in range(min(BATCH, len(self._rows)))]
            try:
                with self._database.begin() as connection:
                    connection.execute(insert(request_log), [_values(row) for row in batch])
            except Unavailable:
                self._rows.extendleft(reversed(batch))
                raise
            except (
                DataError,
                IntegrityError,
            ):  # never to be written: the others shall not wait for it
                log.exception("rows of the request log cannot be written", rows=len(batch))
                self.dropped += len(batch)
                continue
            self.written += len(batch)

    def _prune(self) -> None:
        """Once an hour, delete what is too old."""
        if time.monotonic() - self._pruned_at < PRUNE_S:
            return
        before = datetime.now(UTC) - timedelta(days=self._days)
        with self._database.begin() as connection:
            connection.execute(delete(request_log).where(request_log.c.at < before))
        self._pruned_at = time.monotonic()


def _values(row: LoggedRequest) -> dict[str, Any]:
    target = f"{row.path}?{row.query.decode('latin-1')}" if row.query else row.path
    return {
        "at": datetime.fromtimestamp(row.time, UTC),
        "method": row.method[:16],
        "route": row.route[:128],
        "target": _storable(target)[:LONGEST],
        "status": row.status,
        "milliseconds": round(row.seconds * 1000, 3),
        "caller": row.caller and row.caller[:128],
    }


def _storable(text: str) -> str:
    """Without what no database takes: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
