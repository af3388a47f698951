"""Who the users are: since when, until when, and the interests they named.

reads, writes  sql  users

Written behind the answers. The interests that users named are held in memory, so that a request looks nothing
up; of other processes they come within seconds. Who is forgotten in SQL is forgotten here as soon.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, func, select

from afterclick.events import now
from serving.control.store import Database
from serving.control.tables import users as table
from serving.control.upsert import insert_into

WAITING: Final = 100_000
"""Users whose rows may wait for the database."""
HELD: Final = 100_000
"""Users whose interests are held in memory, the newest."""
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class _Seen:
    first: datetime
    last: datetime


class Users:
    """`seen` and `interests` belong to the event loop; `exchange` to the thread that writes."""

    def __init__(self) -> None:
        self.interests: dict[str, tuple[str, ...]] = {}
        """What users named; never written to, only replaced."""
        self._lock = threading.Lock()
        self._waiting: dict[str, _Seen] = {}
        self._state: tuple[int, datetime | None] | None = None

    def seen(self, user_id: str) -> None:
        """The user did something now."""
        at = now()
        with self._lock:
            before = self._waiting.get(user_id)
            if before is not None or len(self._waiting) < WAITING:
                self._waiting[user_id] = _Seen(before.first if before else at, at)

    def exchange(self, database: Database) -> bool:
        """Write who was seen, read who is interested in what. Raises Unavailable; nothing is lost.

        All of it at once: nothing more waits.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        try:
            with database.begin() as connection:
                _write(connection, waiting)
                self._read(connection)
        except Exception:
            with self._lock:
                for user_id, before in waiting.items():
                    after = self._waiting.get(user_id)
                    self._waiting[user_id] = _Seen(
                        before.first, after.last if after else before.last
                    )
            raise
        return False

    def name(self, database: Database, user_id: str, interests: tuple[str, ...]) -> None:
        """Keep a user's interests, in force here at once. Raises Unavailable. Blocks."""
        at = now()
        row = {"user_id": user_id, "first_seen": at, "last_seen": at}
        named = {"interests": list(interests) or None, "interests_at": at}
        with database.begin() as connection:
            insert = insert_into(connection, table).values(row | named)
            changed = {"last_seen": at, **named}
            connection.execute(
                insert.on_conflict_do_update(index_elements=["user_id"], set_=changed)
            )
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        """Read everybody's interests again, where any row came, went or changed."""
        named = table.c.interests.is_not(None)
        count, newest = connection.execute(
            select(func.count(), func.max(table.c.interests_at)).where(named)
        ).one()
        if (count, newest) == self._state:
            return
        query = select(table.c.user_id, table.c.interests).where(named)
        rows = connection.execute(query.order_by(table.c.interests_at.desc()).limit(HELD))
        self.interests = {user_id: tuple(interests) for user_id, interests in rows}
        self._state = count, newest


def read_user(database: Database, user_id: str) -> dict[str, Any] | None:
    """A user's row; None where nothing was ever heard of them. Raises Unavailable. Blocks."""
    with database.begin() as connection:
        row = (
            connection.execute(select(table).where(table.c.user_id == user_id))
            .mappings()
            .one_or_none()
        )
        return None if row is None else {str(name): value for name, value in row.items()}


def _write(connection: Connection, waiting: dict[str, _Seen]) -> None:
    insert = insert_into(connection, table)
    upsert = insert.on_conflict_do_update(
        index_elements=["user_id"], set_={"last_seen": insert.excluded.last_seen}
    )
    rows = [
        {"user_id": user_id, "first_seen": seen.first, "last_seen": seen.last}
        for user_id, seen in sorted(
            waiting.items()
        )  # in one order everywhere: no two wait for each other
    ]
    for start in range(0, len(rows), BATCH):
        connection.execute(upsert, rows[start : start + BATCH])
