"""Users in SQL: first and last feedback, and the interests they named.

reads, writes  sql  users

The newest interests are held in memory, so that no request waits for SQL. Interests that another
process stored arrive within seconds, and a user erased from SQL disappears from memory as soon.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from sys import getsizeof
from typing import Any, Final, NamedTuple

from cachetools import FIFOCache
from sqlalchemy import Connection, and_, delete, func, or_, select

from afterclick.events import SESSION, now
from serving.control.store import Database, experiment_users, experiments, insert_into
from serving.control.store import users as table
from serving.control.write_behind import PendingRows

MAX_PENDING: Final = 100_000
MAX_INTEREST_BYTES: Final = 64 * 2**20
"""Memory for interests; beyond it those named longest ago are not used."""
PRUNE_INTERVAL_S: Final = 3600.0
PRUNE_ROWS: Final = 5000
"""Users deleted in one transaction."""
CLOCK_SKEW: Final = timedelta(seconds=30)
"""How far the clocks of two processes may differ: each read starts this long before the last."""
_ENTRY_BYTES: Final = 400
"""The size of a user's entry without the texts in it."""
_ROWS_PER_FETCH: Final = 500


class ActivityPeriod(NamedTuple):
    """First and last feedback of a user since the row was written."""

    first: datetime
    last: datetime

    def merge(self, later: ActivityPeriod) -> ActivityPeriod:
        return ActivityPeriod(self.first, later.last)


class StoredInterests(NamedTuple):
    """A user's interests as of a time."""

    user_id: str
    interests: tuple[str, ...]
    at: datetime

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return _ENTRY_BYTES + sum(map(getsizeof, (self.user_id, self.interests, *self.interests)))


InterestCache = FIFOCache[str, StoredInterests]


class InactiveFor(NamedTuple):
    """How long without an event users are kept."""

    session: timedelta
    user: timedelta

    def prune(self, connection: Connection) -> bool:
        """Delete some inactive users, and the users of experiments that ended long ago.

        Whether more may wait.
        """
        at, is_session = now(), table.c.user_id.startswith(SESSION)
        seen = and_(is_session, table.c.last_seen < at - self.session)
        inactive = or_(seen, table.c.last_seen < at - self.user)
        some = select(table.c.user_id).where(inactive).limit(PRUNE_ROWS)
        ended = select(experiments.c.name).where(experiments.c.stopped < at - self.user)
        connection.execute(delete(experiment_users).where(experiment_users.c.experiment.in_(ended)))
        deleted = connection.execute(delete(table).where(table.c.user_id.in_(some)))
        return deleted.rowcount == PRUNE_ROWS


class UserDirectory:
    """`seen` and `interests_of` are for the event loop, `sync` for the write-behind thread."""

    def __init__(
        self, max_bytes: int = MAX_INTEREST_BYTES, keep: InactiveFor | None = None
    ) -> None:
        """`keep`: how long inactive users are kept; None: for ever."""
        self._keep, self._pruned_at = keep, -PRUNE_INTERVAL_S
        self._pending = PendingRows[str, ActivityPeriod](MAX_PENDING, ActivityPeriod.merge)
        self._max_bytes = max_bytes
        self._held = self._empty()
        """By the time they were named, oldest first. The event loop reads without the lock."""
        self._newest: datetime | None = None
        """The newest `interests_at` of the last read."""
        self._beyond = 0
        """Rows as new as the oldest held ones that do not fit into memory."""
        self._lock = threading.Lock()

    def seen(self, user_id: str) -> None:
        """Record feedback of the user now."""
        at = now()
        self._pending.add(user_id, ActivityPeriod(at, at))

    def interests_of(self, user_id: str) -> tuple[str, ...]:
        """The interests a user named; empty for an unknown user."""
        with suppress(KeyError):
            return self._held[user_id].interests
        return ()

    @property
    def interest_bytes(self) -> int:
        """Approximate size in memory of all interests."""
        return int(self._held.currsize)

    def sync(self, database: Database) -> bool:
        """Write activity, read changed interests, now and then delete inactive users.

        Raises Unavailable; no row is lost.
        """
        more = self._pending.flush(database, _write_activity)
        if self._keep and time.monotonic() - self._pruned_at >= PRUNE_INTERVAL_S:
            with database.begin() as connection:
                pruning = self._keep.prune(connection)
            if not pruning:
                self._pruned_at = time.monotonic()
            more |= pruning
        self.read(database)
        return more

    def read(self, database: Database) -> None:
        """Read changed interests. Raises Unavailable."""
        with self._lock, database.begin() as connection:
            self._read_interests(connection)

    def forget(self, forgotten: Mapping[str, int]) -> None:
        """Drop what is held and what waits of these users, up to their times (ms)."""
        self._pending.discard(lambda user_id, period: _is_past(period.first, forgotten, user_id))
        with self._lock:
            for user_id in forgotten:
                stored = self._held.get(user_id)
                if stored and _is_past(stored.at, forgotten, user_id):
                    del self._held[user_id]

    def set_interests(self, database: Database, user_id: str, interests: tuple[str, ...]) -> None:
        """Store a user's interests, effective in this process on return. Raises Unavailable."""
        with self._lock:
            at = now()
            changed = {"last_seen": at, "interests": list(interests) or None, "interests_at": at}
            with database.begin() as connection:
                insert = insert_into(connection, table)
                row = {"user_id": user_id, "first_seen": at, **changed}
                connection.execute(
                    insert.values(row).on_conflict_do_update(
                        index_elements=["user_id"], set_=changed
                    )
                )
            _hold(self._held, StoredInterests(user_id, interests, at))

    def _read_interests(self, connection: Connection) -> None:
        """Read the rows changed since the last time; all of them if rows are missing."""
        newest = connection.execute(select(func.max(table.c.interests_at))).scalar()
        if newest != self._newest:
            since = self._newest - CLOCK_SKEW if self._newest else None
            for row in reversed(list(self._newest_rows(connection, since))):
                _hold(self._held, row)
            self._newest = newest
        if self._count(connection) - len(self._held) != self._beyond:
            held = self._empty()
            for row in reversed(list(self._newest_rows(connection, None))):
                _hold(held, row)
            self._held = held
            self._beyond = self._count(connection) - len(held)

    def _newest_rows(
        self, connection: Connection, since: datetime | None
    ) -> Iterator[StoredInterests]:
        """Rows named or deleted since a time, newest first, as many as fit into memory."""
        query = select(table.c.user_id, table.c.interests, table.c.interests_at)
        query = query.where(table.c.interests_at.is_not(None))
        if since is not None:
            query = query.where(table.c.interests_at >= since)
        query = query.order_by(table.c.interests_at.desc())
        room = self._max_bytes
        with connection.execute(query.execution_options(yield_per=_ROWS_PER_FETCH)) as rows:
            for user_id, interests, at in rows:
                stored = StoredInterests(user_id, tuple(interests or ()), at)
                room -= stored.size_bytes
                if room < 0:
                    return
                yield stored

    def _count(self, connection: Connection) -> int:
        """The rows with interests in SQL that are as new as the oldest held ones."""
        query = select(func.count()).where(table.c.interests.is_not(None))
        oldest = next(iter(self._held.values()), None)
        if oldest is not None:
            query = query.where(table.c.interests_at >= oldest.at)
        return int(connection.execute(query).scalar_one())

    def _empty(self) -> InterestCache:
        return FIFOCache(self._max_bytes, getsizeof=lambda stored: stored.size_bytes)


def _is_past(at: datetime, forgotten: Mapping[str, int], user_id: str) -> bool:
    return at.timestamp() * 1000 <= forgotten.get(user_id, -1)


def _hold(held: InterestCache, stored: StoredInterests) -> None:
    """Replace the entry of a user; without interests, remove it."""
    held.pop(stored.user_id, None)
    if stored.interests and stored.size_bytes <= held.maxsize:
        held[stored.user_id] = stored


def read_user(database: Database, user_id: str) -> dict[str, Any] | None:
    """A user's row, or None for a user without feedback and interests. Raises Unavailable."""
    query = select(table).where(table.c.user_id == user_id)
    with database.begin() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None else {str(name): value for name, value in row.items()}


def _write_activity(connection: Connection, batch: Mapping[str, ActivityPeriod]) -> None:
    """Upsert in the order of the ids, the same in every process: no deadlocks."""
    insert = insert_into(connection, table)
    upsert = insert.on_conflict_do_update(
        index_elements=["user_id"], set_={"last_seen": insert.excluded.last_seen}
    )
    rows = [
        {"user_id": user_id, "first_seen": period.first, "last_seen": period.last}
        for user_id, period in sorted(batch.items())
    ]
    connection.execute(upsert, rows)
