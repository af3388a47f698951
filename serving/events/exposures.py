"""The lists that users were shown and their reactions, as the stream counts them.

reads  redis  {p:<topic>:<partition>}:exposures:<day>
       topic  impressions, reviews, feedback (the number of partitions)
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import redis

from afterclick.arrays import Json
from afterclick.errors import Unavailable
from afterclick.events import Action
from afterclick.exposures import (
    LISTS,
    REACTED,
    SHOWN,
    Cell,
    Counts,
    Dimensions,
    place_of,
)
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis, redis_unavailable
from afterclick.settings import Settings
from afterclick.state import TopicPartition

TODAY_S: Final = 1.0
"""How long the counts of today are kept."""
PAST_S: Final = 30.0
"""The same for earlier days: late reactions and erasures change them."""
_PARTITIONS_S = 60.0
_TIMEOUT_S = 5.0
_NAMES: Final = {
    LISTS: "lists",
    REACTED: "reacted",
    SHOWN: "items",
    Action.CLICK: "clicks",
    Action.LIKE: "likes",
    Action.BASKET: "baskets",
    Action.PURCHASE: "purchases",
    Action.SKIP: "skips",
}
"""What a column counts → its name in responses."""
_OF_PLACE: Final = {name: "shown" if name == "items" else name for name in _NAMES.values()}


class SentLists:
    """Lists that this process has answered or pushed, by source and model. Event loop only."""

    def __init__(self) -> None:
        self._sent: Counter[tuple[str, str | None]] = Counter()

    def add(self, source: str, model_version: str | None) -> None:
        self._sent[source, model_version] += 1

    def report(self) -> list[list[Any]]:
        """Source, model and number, for `merge`."""
        return [[*name, n] for name, n in self._sent.items()]

    @staticmethod
    def merge(reports: Iterable[list[list[Any]]]) -> Counter[tuple[str, str | None]]:
        """The sums over several processes."""
        total: Counter[tuple[str, str | None]] = Counter()
        for report in reports:
            for source, model_version, n in report:
                total[source, model_version] += n
        return total


class ExposureReader:
    """Reads the counts of some days; every process returns the same. Blocks; for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._keys, self._topics = settings.redis.keys, settings.kafka.topics.logged
        self._max_days = settings.stream.exposure_days
        self._redis = create_redis(
            settings.redis, socket_timeout=_TIMEOUT_S, socket_connect_timeout=1
        )
        self._log = KafkaLog(settings.kafka, _TIMEOUT_S)
        self._lock = threading.Lock()
        self._partitions: Sequence[TopicPartition] = ()
        self._partitions_at = 0.0
        self._days: dict[str, tuple[float, Counts]] = {}
        """Day → when it was read (time.monotonic), and its counts."""

    def read(self, days: int) -> list[Counts]:
        """The counts of each of the last `days` days (UTC), today first.

        Raises Unavailable if Redis does not answer.
        """
        today = datetime.now(UTC).date()
        wanted = [(today - timedelta(days=n)).isoformat() for n in range(min(days, self._max_days))]
        with self._lock:
            now = time.monotonic()
            old = [day for day in wanted if now - self._read_at(day) > self._kept_s(day, wanted)]
            try:
                for day in old:
                    self._days[day] = (now, self._read_day(day))
            except redis.RedisError as error:
                raise redis_unavailable(error) from None
            for day in self._days.keys() - wanted:
                if now - self._read_at(day) > PAST_S:
                    del self._days[day]
            return [self._days[day][1] for day in wanted]

    def _read_at(self, day: str) -> float:
        return self._days[day][0] if day in self._days else float("-inf")

    @staticmethod
    def _kept_s(day: str, days: list[str]) -> float:
        return TODAY_S if day == days[0] else PAST_S

    def _read_day(self, day: str) -> Counts:
        total: Counts = Counter()
        with self._redis.pipeline(transaction=False) as pipeline:
            for partition in self._known_partitions():
                pipeline.hgetall(self._keys.exposures(*partition, day))
            replies: list[Any] = pipeline.execute()
        for fields in replies:
            for name, value in fields.items():
                total[Cell.parse(day, name)] += int(value)
        return total

    def _known_partitions(self) -> Sequence[TopicPartition]:
        """Those of the topics; the ones known before while Kafka is down."""
        if time.monotonic() - self._partitions_at > _PARTITIONS_S or not self._partitions:
            try:
                self._partitions = self._log.partitions(*self._topics)
            except Unavailable:
                if not self._partitions:
                    raise
            self._partitions_at = time.monotonic()
        return self._partitions

    def close(self) -> None:
        self._redis.close()
        self._log.close()


@dataclass
class ExposureReport:
    """Rows by source and model (of an experiment also by arm), and by place."""

    sent: Counter[tuple[str, str | None]]
    experiment: str | None = None
    _rows: dict[tuple[str, str | None, str | None], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter), init=False
    )
    _places: dict[int, Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter), init=False
    )

    def add(self, counts: Counts) -> None:
        """Add the counts of a day."""
        for cell, n in counts.items():
            dimensions = Dimensions.decode(cell.dimensions)
            if self.experiment is not None and dimensions.experiment != self.experiment:
                continue
            kind, place = place_of(cell.column)
            name = _NAMES.get(kind)
            if name is None:
                continue
            arm = dimensions.arm if self.experiment is not None else None
            self._rows[dimensions.source, dimensions.model_version, arm][name] += n
            if place >= 0:
                self._places[place][_OF_PLACE[name]] += n

    def as_json(self) -> Json:
        """The most shown first."""
        for source, model_version in self.sent if self.experiment is None else ():
            self._rows[source, model_version, None]["sent"] += self.sent[source, model_version]
        ordered = sorted(self._rows.items(), key=lambda row: (-row[1]["lists"], -row[1]["sent"]))
        names = ("sent", *_NAMES.values())
        of_place = [name for name in _OF_PLACE.values() if name not in ("lists", "reacted")]
        return {
            "rows": [
                {"source": source, "model_version": model, "arm": arm}
                | {name: row[name] for name in names}
                for (source, model, arm), row in ordered
            ],
            "places": [
                {"place": place + 1} | {name: row[name] for name in of_place}
                for place, row in sorted(self._places.items())
            ],
        }
