"""Impressions and the reactions to them: CTR by source, model and rank, and per experiment.

writes  sql  experiment_users: counts per user, incremented by every process

An impression counts as clicked at the first click, like, basket or purchase that names it, and as
purchased at the first purchase. The newest `MAX_OPEN` impressions of this process are remembered;
reactions to older ones, and to those of other processes, are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cachetools import FIFOCache
from sqlalchemy import Connection

from afterclick.events import Action
from serving.control.experiments import Assigned
from serving.control.store import Database, insert_into
from serving.control.tables import experiment_users as table
from serving.control.write_behind import PendingRows

MAX_OPEN: Final = 50_000
MAX_PENDING: Final = 100_000
"""Users whose counts may wait for SQL."""
REACTIONS: Final = frozenset({Action.CLICK, Action.LIKE, Action.BASKET, Action.PURCHASE})


class ExperimentCounts(NamedTuple):
    """Increments of one user's counts in an experiment."""

    arm: str
    lists: int = 0
    clicked: int = 0
    clicks: int = 0
    purchased: int = 0

    def merge(self, more: ExperimentCounts) -> ExperimentCounts:
        sums = (mine + other for mine, other in zip(self[1:], more[1:], strict=True))
        return ExperimentCounts(self.arm, *sums)


@dataclass
class ImpressionStats:
    """Of one source and model: lists, lists reacted to, items in them, clicks on items."""

    lists: int = 0
    reacted: int = 0
    items: int = 0
    clicks: int = 0


class ShownList(NamedTuple):
    """A list that was shown."""

    impression_id: str
    user_id: str
    source: str
    model_version: str | None
    items: int
    assigned: Assigned | None = None


@dataclass(slots=True)
class _OpenImpression:
    user_id: str
    stats: ImpressionStats
    assigned: Assigned | None
    clicked: bool = False
    purchased: bool = False


class ReactionCounter:
    """Counts on the event loop; `sync` is for the write-behind thread."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.pending = PendingRows[tuple[str, str], ExperimentCounts](
            MAX_PENDING, ExperimentCounts.merge
        )
        self._open: FIFOCache[str, _OpenImpression] = FIFOCache(max_open)
        self._stats: dict[tuple[str, str], ImpressionStats] = {}
        self._lengths: Counter[int] = Counter()
        self._clicks_by_rank: Counter[int] = Counter()

    def on_impression(self, shown: ShownList) -> None:
        """Count a list that was shown."""
        key = (shown.source, shown.model_version or "")
        stats = self._stats.setdefault(key, ImpressionStats())
        stats.lists += 1
        stats.items += shown.items
        self._lengths[shown.items] += 1
        opened = _OpenImpression(shown.user_id, stats, shown.assigned)
        self._open[shown.impression_id] = opened
        self._count(opened, lists=1)

    def on_feedback(
        self, impression_id: str | None, action: Action, rank: int | None = None
    ) -> None:
        """Count a reaction to an item of a list; `rank` counts from 0, None where it is unknown."""
        opened = self._open.get(impression_id or "")
        if opened is None or action not in REACTIONS:
            return
        click, purchase = action is Action.CLICK, action is Action.PURCHASE
        opened.stats.clicks += click
        opened.stats.reacted += not opened.clicked
        if click and rank is not None:
            self._clicks_by_rank[rank] += 1
        self._count(
            opened,
            clicked=int(not opened.clicked),
            clicks=int(click),
            purchased=int(purchase and not opened.purchased),
        )
        opened.clicked = True
        opened.purchased |= purchase

    def rows(self) -> list[dict[str, Any]]:
        """A row per source and model, the most shown first."""
        ordered = sorted(self._stats.items(), key=lambda entry: -entry[1].lists)
        return [
            {"source": source, "model_version": model or None, **vars(stats)}
            for (source, model), stats in ordered
        ]

    def by_rank(self) -> list[dict[str, int]]:
        """A row per rank, from 1: items shown there, and clicks on them."""
        shown, rows = 0, []
        for rank in range(max(self._lengths, default=0), 0, -1):
            shown += self._lengths[rank]
            rows.append({"place": rank, "shown": shown, "clicks": self._clicks_by_rank[rank - 1]})
        return rows[::-1]

    def sync(self, database: Database) -> bool:
        """Add a batch of counts to SQL. Raises Unavailable; no count is lost."""
        return self.pending.flush(database, _increment)

    def _count(self, opened: _OpenImpression, **counts: int) -> None:
        if opened.assigned is not None:
            key = (opened.assigned.experiment, opened.user_id)
            self.pending.add(key, ExperimentCounts(opened.assigned.arm, **counts))


def _increment(connection: Connection, batch: Mapping[tuple[str, str], ExperimentCounts]) -> None:
    """Upsert in the order of the keys, the same in every process: no deadlocks."""
    insert = insert_into(connection, table)
    added: dict[str, Any] = {
        name: table.c[name] + insert.excluded[name] for name in ExperimentCounts._fields[1:]
    }
    upsert = insert.on_conflict_do_update(index_elements=["experiment", "user_id"], set_=added)
    rows = [
        {"experiment": experiment, "user_id": user_id, **counts._asdict()}
        for (experiment, user_id), counts in sorted(batch.items())
    ]
    connection.execute(upsert, rows)
