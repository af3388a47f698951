"""Users in SQL: first and last feedback, and the interests they named.

reads, writes  sql  users

Interests are held in memory, so that no request waits for SQL. Interests that another process
stored arrive within seconds, and a user erased from SQL disappears from memory as soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, select

from afterclick.events import now
from serving.control.store import Database, insert_into
from serving.control.store import users as table
from serving.control.write_behind import PendingRows

MAX_PENDING: Final = 100_000
MAX_INTERESTS: Final = 100_000
"""Users whose interests are held in memory: the most recent ones."""


class ActivityPeriod(NamedTuple):
    """First and last feedback of a user since the row was written."""

    first: datetime
    last: datetime

    def merge(self, later: ActivityPeriod) -> ActivityPeriod:
        return ActivityPeriod(self.first, later.last)


class UserDirectory:
    """`seen` and `interests` are for the event loop, `sync` for the write-behind thread."""

    def __init__(self) -> None:
        self.interests: dict[str, tuple[str, ...]] = {}
        """User id → named interests; replaced, never modified."""
        self._pending = PendingRows[str, ActivityPeriod](MAX_PENDING, ActivityPeriod.merge)
        self._version: tuple[int, datetime | None] | None = None

    def seen(self, user_id: str) -> None:
        """Record feedback of the user now."""
        at = now()
        self._pending.add(user_id, ActivityPeriod(at, at))

    def sync(self, database: Database) -> bool:
        """Write activity and read interests. Raises Unavailable; no row is lost."""
        more = self._pending.flush(database, _write_activity)
        with database.begin() as connection:
            self._read_interests(connection)
        return more

    def set_interests(self, database: Database, user_id: str, interests: tuple[str, ...]) -> None:
        """Store a user's interests, effective in this process on return. Raises Unavailable."""
        at = now()
        changed = {"last_seen": at, "interests": list(interests) or None, "interests_at": at}
        with database.begin() as connection:
            insert = insert_into(connection, table)
            row = {"user_id": user_id, "first_seen": at, **changed}
            connection.execute(
                insert.values(row).on_conflict_do_update(index_elements=["user_id"], set_=changed)
            )
            self._read_interests(connection)

    def _read_interests(self, connection: Connection) -> None:
        """Read all interests again if any row was added, removed or changed."""
        named = table.c.interests.is_not(None)
        newest = select(func.count(), func.max(table.c.interests_at)).where(named)
        count, changed_at = connection.execute(newest).one()
        if (count, changed_at) == self._version:
            return
        query = select(table.c.user_id, table.c.interests).where(named)
        rows = connection.execute(query.order_by(table.c.interests_at.desc()).limit(MAX_INTERESTS))
        self.interests = {user_id: tuple(interests) for user_id, interests in rows}
        self._version = count, changed_at


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
