"""What the users of experiments were shown and did: counted in memory, added up in SQL.

writes  sql  experiment_users: sums per user, which every process adds its own to

A list is clicked at its first click, like, basket or purchase that names its impression, and bought from at
its first purchase. The newest impressions of this process are remembered, a bounded number; a reaction to an
older one, or to another process's, is not counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, case, func, select

from afterclick.errors import Unavailable
from afterclick.events import Action
from serving.control.experiments import Assigned
from serving.control.significance import Sums
from serving.control.store import Database
from serving.control.tables import experiment_users as table
from serving.control.upsert import insert_into

REMEMBERED: Final = 50_000
WAITING: Final = 100_000
"""Users whose counts may wait for the database."""
BATCH: Final = 500
_REACTIONS = {Action.CLICK, Action.LIKE, Action.BASKET, Action.PURCHASE}
_COUNTS = ("lists", "clicked", "clicks", "purchased")


@dataclass(slots=True)
class Counts:
    """What came to one user's sums since they were last written."""

    arm: str
    lists: int = 0
    clicked: int = 0
    clicks: int = 0
    purchased: int = 0

    def add(self, more: Counts) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(more, name))


@dataclass(slots=True)
class _Open:
    """A list that may still be reacted to."""

    experiment: str
    user_id: str
    arm: str
    clicked: bool = False
    purchased: bool = False


Waiting = dict[tuple[str, str], Counts]


class Trials:
    """Counts on the event loop; `flush` writes from any thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._waiting: Waiting = {}
        self._lock = threading.Lock()
        self.dropped = 0

    def shown(self, impression_id: str, user_id: str, assigned: Assigned) -> None:
        """A list of an experiment went out."""
        self._open[impression_id] = _Open(assigned.experiment, user_id, assigned.arm)
        if len(self._open) > REMEMBERED:
            self._open.popitem(last=False)
        with self._lock:
            if counts := self._counts(assigned.experiment, user_id, assigned.arm):
                counts.lists += 1

    def reacted(self, impression_id: str | None, action: Action) -> None:
        """Somebody acted on an item of a list."""
        shown = self._open.get(impression_id or "")
        if shown is None or action not in _REACTIONS:
            return
        with self._lock:
            if counts := self._counts(shown.experiment, shown.user_id, shown.arm):
                counts.clicks += action is Action.CLICK
                counts.clicked += not shown.clicked
                counts.purchased += action is Action.PURCHASE and not shown.purchased
        shown.clicked = True
        shown.purchased = shown.purchased or action is Action.PURCHASE

    def flush(self, database: Database) -> None:
        """Add what waits to the sums in SQL. Raises Unavailable; what was not written goes on waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        try:
            with database.begin() as connection:
                _add(connection, waiting)
        except Unavailable:
            with self._lock:
                for (experiment, user_id), counts in waiting.items():
                    if now := self._counts(experiment, user_id, counts.arm):
                        now.add(counts)
            raise

    def _counts(self, experiment: str, user_id: str, arm: str) -> Counts | None:
        """The counts that wait of a user; None where too many wait."""
        counts = self._waiting.get((experiment, user_id))
        if counts is None:
            if len(self._waiting) >= WAITING:
                self.dropped += 1
                return None
            counts = self._waiting[experiment, user_id] = Counts(arm)
        return counts


def _add(connection: Connection, waiting: Waiting) -> None:
    """One upsert per user, in one order everywhere, so that two processes never wait for each other."""
    insert = insert_into(connection, table)
    added: dict[str, Any] = {name: table.c[name] + insert.excluded[name] for name in _COUNTS}
    upsert = insert.on_conflict_do_update(index_elements=["experiment", "user_id"], set_=added)
    rows = [
        {"experiment": experiment, "user_id": user_id, "arm": counts.arm}
        | {name: getattr(counts, name) for name in _COUNTS}
        for (experiment, user_id), counts in sorted(waiting.items(), key=lambda entry: entry[0])
    ]
    for start in range(0, len(rows), BATCH):
        connection.execute(upsert, rows[start : start + BATCH])


def read_sums(connection: Connection, experiment: str) -> dict[str, Sums]:
    """Arm → the sums over its users, of all processes."""
    lists, clicked = table.c.lists, table.c.clicked
    columns = {
        "users": func.count(),
        "buyers": func.sum(case((table.c.purchased > 0, 1), else_=0)),
        "lists": func.sum(lists),
        "clicked": func.sum(clicked),
        "clicks": func.sum(table.c.clicks),
        "purchased": func.sum(table.c.purchased),
        "lists_squared": func.sum(lists * lists),
        "clicked_squared": func.sum(clicked * clicked),
        "lists_clicked": func.sum(lists * clicked),
    }
    named = [column.label(name) for name, column in columns.items()]
    query = (
        select(table.c.arm, *named).where(table.c.experiment == experiment).group_by(table.c.arm)
    )
    rows = connection.execute(query).mappings()
    return {row["arm"]: Sums(**{name: int(row[name]) for name in columns}) for row in rows}
