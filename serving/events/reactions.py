"""Write impressions and count reactions: CTR by source, model and rank, and per experiment.

writes  topic  impressions

While Kafka is down the producer buffers; impressions beyond its buffer are dropped and counted.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from cachetools import FIFOCache
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from sqlalchemy import Connection

from afterclick import events
from afterclick.events import IMPRESSION_TYPE, Action
from afterclick.settings import KafkaSettings
from serving.control.experiments import Assigned
from serving.control.store import Database, insert_into
from serving.control.store import experiment_users as table
from serving.control.write_behind import PendingRows
from serving.response_cache import Recommendation

SOURCE = "/serving"
BUFFER = 20_000
VISITOR = "visitor"
"""User id of impressions without a user."""


class ImpressionLog:
    """A producer that never blocks."""

    def __init__(self, settings: KafkaSettings, producer: Producer | None = None) -> None:
        self._topic = settings.topics.impressions
        self.dropped = 0
        self._producer = producer or Producer(
            {
                "bootstrap.servers": settings.bootstrap,
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": 50,
                "message.timeout.ms": 30_000,
                "queue.buffering.max.messages": BUFFER,
                "log_level": 0,
                "delivery.report.only.error": True,
                "on_delivery": self._on_delivery,
            }
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="impression-reports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def append(self, answer: Recommendation) -> None:
        """Write one impression."""
        try:
            self._producer.produce(self._topic, encode(answer), answer.body["user_id"] or VISITOR)
        except (BufferError, KafkaException):  # KafkaException: unknown topic
            self.dropped += 1

    def stop(self, timeout_s: float = 2.0) -> None:
        """Flush for at most `timeout_s`, and end the thread."""
        self._producer.flush(timeout_s)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        self.dropped += error is not None

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(0.2)


def encode(answer: Recommendation) -> bytes:
    """The JSON of an ImpressionEvent, as `events.encode` writes it, without building the event."""
    body = answer.body
    impression: dict[str, Any] = {
        "impression_id": body["impression_id"],
        "user_id": body["user_id"] or VISITOR,
        "items": orjson.Fragment(answer.rendered.impression_rows),
        "model_version": body["model_version"],
        "source": body["source"],
        "policy": answer.policy,
    }
    experiment = body.get("experiment")
    if experiment is not None:
        impression |= {"experiment": experiment["name"], "arm": experiment["arm"]}
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": body["impression_id"],
            "source": SOURCE,
            "type": IMPRESSION_TYPE,
            "time": events.now(),
            "subject": body["user_id"] or VISITOR,
            "datacontenttype": "application/json",
            "data": impression,
        }
    )


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
        self._stats = defaultdict[tuple[str, str], ImpressionStats](ImpressionStats)
        self._lengths: Counter[int] = Counter()
        self._clicks_by_rank: Counter[int] = Counter()

    def on_impression(self, shown: ShownList) -> None:
        """Count a list that was shown."""
        stats = self._stats[shown.source, shown.model_version or ""]
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
