"""Erase forgotten users from this API process and from SQL.

reads   topic  forgotten
writes  sql    experiment_users, users, request_log, token_revocations

Every process reads the topic, from its beginning when it starts. It then serves no event of the
user up to the time of the request, writes none, and deletes the rows in SQL, whichever process
wrote them. What the user did later is kept, and so are rows and tokens that are newer than the
request, also if an event of the user lay ahead of it. The stream job erases state and log.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Protocol

from confluent_kafka import Message
from sqlalchemy import Connection, String, bindparam, delete, or_

from afterclick.io.forgotten import requests_of
from serving.control.store import (
    Database,
    UtcDateTime,
    experiment_users,
    request_log,
    users,
)
from serving.control.user_tokens import revoke_tokens

MAX_USERS: Final = 100_000
"""Users that a process holds, the newest. The topics of older ones have passed their retention."""
BATCH: Final = 500
"""Users whose rows are deleted in one transaction."""
_USER: Final = bindparam("of_user", type_=String)
_UNTIL: Final = bindparam("until", type_=UtcDateTime)
_DELETIONS: Final = (
    delete(experiment_users).where(
        experiment_users.c.user_id == _USER, experiment_users.c.first_shown <= _UNTIL
    ),
    delete(users).where(users.c.user_id == _USER, users.c.first_seen <= _UNTIL),
    delete(request_log).where(
        or_(request_log.c.user_id == _USER, request_log.c.session_id == _USER),
        request_log.c.at <= _UNTIL,
    ),
)

Untils = Mapping[str, int]
"""User id → time ms up to which the user is forgotten."""


class HoldsUsers(Protocol):
    """Holds rows that are not in SQL yet."""

    def forget(self, forgotten: Untils) -> None:
        """Drop the waiting rows of these users up to their times."""
        ...


class UserEraser:
    """`read` is for the reader's thread, `sync` for the write-behind thread."""

    def __init__(
        self,
        parts: Sequence[HoldsUsers] = (),
        on_users: Callable[[Untils], None] = lambda forgotten: None,
    ) -> None:
        """`on_users` evicts users from the caches of this process."""
        self._parts, self._on_users = parts, on_users
        self.until_ms: dict[str, int] = {}
        """Of the newest `MAX_USERS` forgotten users. The event loop reads without a lock."""
        self._waiting: dict[str, int] = {}
        """Users with rows in SQL, and the time up to which; never later than the request."""
        self._lock = threading.Lock()
        self.writing = threading.Lock()
        """Held while rows of users are written outside of the write-behind thread."""

    def is_forgotten(self, user_id: str, time_ms: int) -> bool:
        """Whether what the user did at a time is forgotten."""
        return time_ms <= self.until_ms.get(user_id, -1)

    def read(self, messages: Sequence[Message]) -> None:
        """Take over the users of these records."""
        requested: dict[str, int] = {}
        for message in messages:
            user_id = (message.key() or b"").decode(errors="replace")
            # Kafka drops the fraction of a millisecond: a token may have been issued within it
            requested_ms = message.timestamp()[1] + 1
            requested[user_id] = max(requested_ms, requested.get(user_id, -1))
        self._forget(requests_of(messages), requested)

    def forget(self, forgotten: Untils) -> None:
        """Forget users up to their times, as requested now."""
        self._forget(forgotten, dict.fromkeys(forgotten, math.ceil(time.time() * 1000)))

    def _forget(self, forgotten: Untils, requested: Untils) -> None:
        known = self.until_ms
        newest = {user_id: max(ms, known.get(user_id, -1)) for user_id, ms in forgotten.items()}
        with self.writing:  # what is written from now on is without them
            known |= newest
        with self._lock:
            for user_id, until_ms in newest.items():
                rows_until_ms = min(until_ms, requested[user_id])
                self._waiting[user_id] = max(rows_until_ms, self._waiting.get(user_id, -1))
        for user_id in list(islice(known, max(len(known) - MAX_USERS, 0))):
            del known[user_id]
        self._on_users(newest)

    def sync(self, database: Database) -> bool:
        """Delete the rows of some users; True while more wait. Raises Unavailable."""
        with self._lock:
            batch = dict(islice(self._waiting.items(), BATCH))
        if not batch:
            return False
        for part in self._parts:  # before SQL: this thread also writes what they hold
            part.forget(batch)
        with database.begin() as connection:
            delete_users(connection, batch)
        with self._lock:
            for user_id, until_ms in batch.items():
                if self._waiting[user_id] == until_ms:
                    del self._waiting[user_id]
            return bool(self._waiting)


def delete_users(connection: Connection, forgotten: Untils) -> None:
    """Delete the rows of users and revoke their tokens, up to their times."""
    until = {
        user_id: datetime.fromtimestamp(until_ms / 1000, UTC)
        for user_id, until_ms in sorted(forgotten.items())
    }
    rows = [{"of_user": user_id, "until": at} for user_id, at in until.items()]
    for deletion in _DELETIONS:
        connection.execute(deletion, rows)
    revoke_tokens(connection, until)
