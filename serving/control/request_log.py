"""Answered requests: in SQL for a time, the newest of the shop in memory for the dashboard.

writes  sql  request_log

Rows are written in the background. While the database is slow or down they wait in a bounded
queue; when it is full, new rows are dropped and counted. Strangers cannot fill the disk: of the
requests without credentials a minute has few rows, and the table keeps its newest rows only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from sqlalchemy import Connection, delete, func, insert, or_, select

from afterclick.arrays import Json
from afterclick.events import SESSION
from serving.control.store import Database, request_log
from serving.control.write_behind import PendingRows
from serving.id_paths import value_of

MAX_PENDING: Final = 20_000
MAX_TARGET: Final = 1000
"""Characters of a target in SQL."""
MAX_ID: Final = 128
_USERS: Final = "/users/"
PRUNE_INTERVAL_S: Final = 3600.0
PRUNE_ROWS: Final = 5000
"""Rows deleted in one transaction."""
MAX_ROWS: Final = 1_000_000
UNAUTHENTICATED_PER_MINUTE: Final = 10
"""Rows of requests that authentication rejected or did not check; the others are counted."""
UNLOGGED: Final = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Routes of probes: neither in SQL nor on the dashboard."""
RECENT: Final = 40
RECENT_TARGET: Final = 200
RECENT_ROUTES: Final = frozenset(
    {
        "/recommendations",
        "/recommendations/batch",
        "/similar-items",
        "/popular",
        "/search",
        "/items/{item_id}",
        "/users/{user_id}/history",
        "/feedback",
    }
)
"""Routes of the shop; those of dashboards are not shown."""


class NamedUsers(NamedTuple):
    """Whom the target of a request names."""

    user_id: str | None
    session_id: str | None
    """As a user id: `session:ID`."""
    ambiguous: bool
    """It names several users or sessions."""


class LoggedRequest(NamedTuple):
    """One answered request."""

    time: float
    """Seconds since the epoch."""
    method: str
    route: str
    path: str
    query: bytes
    status: int
    seconds: float
    caller: str | None
    """Name of the API key."""
    authenticated: bool = True
    """Authentication let it through, if only because there are no keys."""

    @property
    def target(self) -> str:
        """Path and query string."""
        if self.asks_erasure or self.named.ambiguous:
            return self.route
        return f"{self.path}?{self.query.decode('latin-1')}" if self.query else self.path

    @property
    def asks_erasure(self) -> bool:
        """Whether it is about erasing a user, whose id is not logged."""
        about = self.method == "DELETE" or self.path.endswith("/erasure")
        return about and self.path.startswith(_USERS)

    @property
    def named(self) -> NamedUsers:
        """Whom the logged target names."""
        if self.asks_erasure:
            return NamedUsers(None, None, False)
        return named_users(self.path, self.query.decode("latin-1"))

    def is_forgotten(self, forgotten: Mapping[str, int]) -> bool:
        """Whether it names one of these users, at or before their time (ms)."""
        if not (self.path.startswith(_USERS) or b"_id=" in self.query):
            return False
        user_id, session_id, _ = self.named
        until_ms = max(forgotten.get(user_id or "", -1), forgotten.get(session_id or "", -1))
        return self.time * 1000 <= until_ms


class RequestLog:
    """`append` is for the event loop, `sync` for the write-behind thread."""

    def __init__(
        self, days: float, max_rows: int = MAX_ROWS, max_pending: int = MAX_PENDING
    ) -> None:
        """Keep the newest `max_rows` rows, a tenth more at times, for `days`; 0 stores none."""
        self._days, self._max_rows = days, max_rows
        self.pending = PendingRows[int, LoggedRequest](max_pending)
        self._numbers = count()
        self._recent: deque[LoggedRequest] = deque(maxlen=RECENT)
        self._pruned_at, self._pruned_written = -PRUNE_INTERVAL_S, 0
        self._minute, self._in_minute = 0, 0
        self.unauthenticated = 0
        """Requests without credentials that have no row."""

    def append(self, request: LoggedRequest) -> None:
        """Log one request; never waits."""
        if request.route in RECENT_ROUTES:
            self._recent.appendleft(request)
        if self._days and request.route not in UNLOGGED and self._admits(request):
            self.pending.add(next(self._numbers), request)

    def recent(self) -> list[dict[str, Any]]:
        """The newest requests of the shop, newest first."""
        return [
            {
                "time": request.time,
                "method": request.method,
                "target": _shortened(request.target),
                "status": request.status,
                "ms": round(request.seconds * 1000, 2),
            }
            for request in list(self._recent)
        ]

    @staticmethod
    def newest(lists: Sequence[list[Json]]) -> list[Json]:
        """The newest requests of several processes, newest first."""
        rows = sorted(chain.from_iterable(lists), key=lambda row: -row["time"])
        return rows[:RECENT]

    def forget_recent(self, forgotten: Mapping[str, int]) -> None:
        """Drop the newest requests of these users. Event loop only."""
        kept = [request for request in self._recent if not request.is_forgotten(forgotten)]
        self._recent = deque(kept, maxlen=RECENT)

    def forget(self, forgotten: Mapping[str, int]) -> None:
        """Drop the waiting rows of these users up to their times."""
        self.pending.discard(lambda _, request: request.is_forgotten(forgotten))

    def sync(self, database: Database) -> bool:
        """Write a batch; now and then delete old rows. Raises Unavailable; no row is lost."""
        more = self.pending.flush(database, _insert)
        since_s = time.monotonic() - self._pruned_at
        grown = self.pending.written - self._pruned_written
        if not self._days or (since_s < PRUNE_INTERVAL_S and grown < self._max_rows // 10):
            return more
        if self._prune(database) == PRUNE_ROWS:
            return True
        self._pruned_at, self._pruned_written = time.monotonic(), self.pending.written
        return more

    def _admits(self, request: LoggedRequest) -> bool:
        if request.authenticated:
            return True
        minute = int(request.time // 60)
        if minute != self._minute:
            self._minute, self._in_minute = minute, 0
        self._in_minute += 1
        admitted = self._in_minute <= UNAUTHENTICATED_PER_MINUTE
        self.unauthenticated += not admitted
        return admitted

    def _prune(self, database: Database) -> int:
        """Delete up to `PRUNE_ROWS` rows that are too old or too many; their number."""
        row_id, before = request_log.c.id, datetime.now(UTC) - timedelta(days=self._days)
        with database.begin() as connection:
            newest = connection.scalar(select(func.max(row_id))) or 0
            surplus = or_(request_log.c.at < before, row_id <= newest - self._max_rows)
            some = select(row_id).where(surplus).limit(PRUNE_ROWS)
            return connection.execute(delete(request_log).where(row_id.in_(some))).rowcount


def _insert(connection: Connection, batch: Mapping[int, LoggedRequest]) -> None:
    connection.execute(insert(request_log), [_values(request) for request in batch.values()])


def named_users(path: str, query: str) -> NamedUsers:
    """Whom a path, as `EncodedPaths` leaves it, and a query string name."""
    users: set[str] = set()
    sessions: set[str] = set()
    if path.startswith(_USERS):
        users.add(value_of(path.removeprefix(_USERS).partition("/")[0]))
    if "_id=" in query:
        for name, value in parse_qsl(query):
            if name == "user_id":
                users.add(value)
            elif name == "session_id":
                sessions.add(SESSION + value)
    sessions |= {user_id for user_id in users if user_id.startswith(SESSION)}
    users -= sessions
    ambiguous = len(users) > 1 or len(sessions) > 1
    return NamedUsers(min(users, default=None), min(sessions, default=None), ambiguous)


def _values(request: LoggedRequest) -> dict[str, Any]:
    user_id, session_id, ambiguous = request.named
    return {
        "at": datetime.fromtimestamp(request.time, UTC),
        "method": request.method[:16],
        "route": request.route[:128],
        "target": _storable(request.target)[:MAX_TARGET],
        "status": request.status,
        "milliseconds": round(request.seconds * 1000, 3),
        "caller": request.caller and request.caller[:128],
        "user_id": None if ambiguous else _name(user_id),
        "session_id": None if ambiguous else _name(session_id),
    }


def _name(user_id: str | None) -> str | None:
    return user_id and _storable(user_id)[:MAX_ID]


def _storable(text: str) -> str:
    """Escape NUL and lone surrogates: no database stores them."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()


def _shortened(target: str) -> str:
    return target if len(target) <= RECENT_TARGET else f"{target[:RECENT_TARGET]}…"
