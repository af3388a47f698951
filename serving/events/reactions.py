"""Write impressions, and count reactions to the lists of this process: by source, model and rank.

writes  topic  impressions

While Kafka is down the producer buffers; impressions beyond its buffer are dropped and counted.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import orjson
from cachetools import FIFOCache
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from afterclick import events
from afterclick.arrays import Json
from afterclick.events import IMPRESSION_TYPE, Action
from afterclick.io.background import Heartbeat
from afterclick.io.kafka_clients import create_producer
from afterclick.settings import KafkaSettings
from afterclick.state import StateChange
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
        self._producer = producer or create_producer(
            settings,
            {
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": 50,
                "message.timeout.ms": 30_000,
                "queue.buffering.max.messages": BUFFER,
                "delivery.report.only.error": True,
                "on_delivery": self._on_delivery,
            },
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="impression-reports", daemon=True)
        self.heartbeat = Heartbeat("impression-reports")

    def start(self) -> None:
        self.heartbeat.beat()
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
            self.heartbeat.beat()
            self._producer.poll(0.2)
        self.heartbeat.beat(None)


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
        if "fallback" in experiment:
            impression["fallback"] = True
    if answer.context is not None:
        impression["context"] = answer.context.model_dump(exclude_none=True)
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


@dataclass
class ImpressionStats:
    """Of one source and model: lists, lists reacted to, items in them, clicks on items."""

    sent: int = 0
    lists: int = 0
    reacted: int = 0
    items: int = 0
    clicks: int = 0


class ShownList(NamedTuple):
    """A list that was shown."""

    impression_id: str
    user_id: str | None
    source: str
    model_version: str | None
    items: int


@dataclass(slots=True)
class _OpenImpression:
    user_id: str | None
    stats: ImpressionStats
    reacted: bool = False


class ReactionCounter:
    """Counts since the process started. Event loop only."""

    def __init__(self, reactions: Container[Action], max_open: int = MAX_OPEN) -> None:
        self._reactions = reactions
        self._open: FIFOCache[str, _OpenImpression] = FIFOCache(max_open)
        self._stats = defaultdict[tuple[str, str], ImpressionStats](ImpressionStats)
        self._lengths: Counter[int] = Counter()
        self._clicks_by_rank: Counter[int] = Counter()

    def on_sent(self, source: str, model_version: str | None) -> None:
        """Count a list that was answered or pushed."""
        self._stats[source, model_version or ""].sent += 1

    def on_impression(self, shown: ShownList) -> None:
        """Count a list that was shown."""
        stats = self._stats[shown.source, shown.model_version or ""]
        stats.lists += 1
        stats.items += shown.items
        self._lengths[shown.items] += 1
        self._open[shown.impression_id] = _OpenImpression(shown.user_id, stats)

    def on_change(self, change: StateChange, rank: int | None = None) -> None:
        """Count a reaction to an item of a list; `rank` counts from 0, None where it is unknown.

        Only of events that took effect, so that one sent again counts once, and only of the user
        who was shown the list. A list for nobody takes reactions of everybody.
        """
        opened = self._open.get(change.impression_id or "")
        if opened is None or change.action not in self._reactions or not change.effect.counts:
            return
        if opened.user_id not in (None, change.user_id):
            return
        click = change.action is Action.CLICK
        opened.stats.clicks += click
        opened.stats.reacted += not opened.reacted
        opened.reacted = True
        if click and rank is not None:
            self._clicks_by_rank[rank] += 1

    def forget(self, user_ids: Container[str]) -> None:
        """Take no more reactions to the lists of these users; what is counted stays."""
        for impression_id, opened in list(self._open.items()):
            if opened.user_id in user_ids:
                del self._open[impression_id]

    def report(self) -> Json:
        """The counts as JSON, for `merge`."""
        return {"rows": self.rows(), "places": self.by_rank()}

    @staticmethod
    def merge(reports: Sequence[Json]) -> Json:
        """The sums of reports of several processes, each of which counts its own lists."""
        merged = ReactionCounter(())
        for report in reports:
            for row in report["rows"]:
                stats = merged._stats[row["source"], row["model_version"] or ""]
                for name in vars(stats):
                    setattr(stats, name, getattr(stats, name) + row[name])
            for place, following in pairwise([*report["places"], {"shown": 0}]):
                merged._lengths[place["place"]] += place["shown"] - following["shown"]
                merged._clicks_by_rank[place["place"] - 1] += place["clicks"]
        return merged.report()

    def rows(self) -> list[dict[str, Any]]:
        """A row per source and model, the most shown first."""
        ordered = sorted(self._stats.items(), key=lambda entry: (-entry[1].lists, -entry[1].sent))
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
