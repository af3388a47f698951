"""The live figures: once a second, what happens and how fresh it is, to every /ws/live connection.

reads   kafka  end offsets of reviews and feedback, for the lag, and of the dead letters
        redis  boundary
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import redis
import structlog
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from afterclick.errors import Unavailable
from afterclick.settings import Settings
from afterclick.trends import HALF_LIVES_MS
from serving.monitoring import STAGES, Metrics
from serving.push import Hub
from serving.state.dead_letter_reader import DeadLetters
from serving.state.live_trends import TrendFeed
from serving.state.snapshot import SnapshotStore

log = structlog.get_logger()
WINDOW_S = 10.0


class Figures:
    """Computes the figures; `run` sends them."""

    def __init__(
        self,
        settings: Settings,
        feed: TrendFeed,
        snapshots: SnapshotStore,
        hub: Hub,
        metrics: Metrics,
        letters: DeadLetters,
    ) -> None:
        self._settings, self._feed, self._snapshots = settings.kafka, feed, snapshots
        self._redis = redis.Redis.from_url(
            settings.redis.url, socket_timeout=settings.redis.timeout_s, socket_connect_timeout=1
        )
        self._boundary_key = settings.redis.keys.last_batch_at
        self._hub, self._metrics, self._letters = hub, metrics, letters
        self._admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap, "log_level": 0})
        self._then, self._seen, self._answered = time.monotonic(), 0, 0
        self._lag: dict[str, int] | None = None
        self._dead: dict[str, int] | None = None
        self._dead_at = 0.0
        self._boundary: float | None = None

    async def run(self) -> None:
        """Once a second, for ever."""
        while True:
            began = time.monotonic()
            try:
                self._hub.broadcast(await asyncio.to_thread(self._newest))
            except Exception:
                log.exception("no figures this second")
            await asyncio.sleep(max(0.1, 1.0 - (time.monotonic() - began)))

    def _newest(self) -> bytes:
        self.look()
        return orjson.dumps(self.now())

    def now(self) -> dict[str, Any]:
        """The figures of this moment; rates since the last call."""
        metrics, snapshot = self._metrics, self._snapshots.current
        moment = time.monotonic()
        elapsed = max(moment - self._then, 1e-3)
        events_per_s = (metrics.seen - self._seen) / elapsed
        requests_per_s = (metrics.answered - self._answered) / elapsed
        self._then, self._seen, self._answered = moment, metrics.seen, metrics.answered
        self._set_gauges()
        return {
            "type": "figures",
            "time": time.time(),
            "events_per_s": round(events_per_s, 1),
            "requests_per_s": round(requests_per_s, 1),
            "lag": None if self._lag is None else sum(self._lag.values()),
            "lag_by_partition": self._lag,
            "dead_letters": None if self._dead is None else sum(self._dead.values()),
            "refused": metrics.refused,
            "boundary": self._boundary,
            "freshness_ms": self._freshness(),
            "push_ms": _pair(metrics.push_recent.percentiles(60)),
            "latency_ms": _pair(metrics.latency_recent.percentiles(WINDOW_S)),
            "model_version": snapshot.loaded.version or None,
            "items": len(snapshot.heat),
            "interactions": int(snapshot.counts.sum()),
            "positions": dict(self._feed.positions),
            "watching": self._hub.watching,
            "live": self._hub.live,
        }

    def look(self) -> None:
        """RecommendationRequest Kafka and Redis for what the feeds do not know. Blocks."""
        self._lag = self._measure_lag()
        self._boundary = self._last_boundary()
        if time.monotonic() - self._dead_at > WINDOW_S:
            self._dead_at = time.monotonic()
            try:
                self._dead = self._letters.counts()
            except Unavailable:
                self._dead = None
            for topic, number in (self._dead or {}).items():
                self._metrics.dead_letters.labels(topic).set(number)

    def _last_boundary(self) -> float | None:
        """When the last batch of the stream began, or another query took over; None where nobody says."""
        try:
            found: Any = self._redis.get(self._boundary_key)
        except redis.RedisError:
            return None
        if found is None:
            return None
        self._metrics.boundary.set(float(found))
        return float(found)

    def _measure_lag(self) -> dict[str, int] | None:
        """Events of each partition that are not in the state; None where Kafka does not say. Blocks."""
        topics = self._settings.topics.interactions
        wanted = {
            TopicPartition(topic, partition): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for topic in topics
            for partition in range(self._settings.partitions)
        }
        try:
            answers = self._admin.list_offsets(wanted, request_timeout=2.0)
            ends = {
                f"{tp.topic}/{tp.partition}": future.result().offset
                for tp, future in answers.items()
            }
        except KafkaException:
            return None
        positions = dict(self._feed.positions)
        lag = {name: max(end - positions.get(name, -1) - 1, 0) for name, end in ends.items()}
        self._metrics.lag.set(sum(lag.values()))
        for name, behind in lag.items():
            self._metrics.lag_of.labels(name).set(behind)
            self._metrics.position.labels(name).set(positions.get(name, -1))
        return lag

    def _freshness(self) -> dict[str, Any] | None:
        found = self._metrics.fresh_recent.percentiles(WINDOW_S)
        if found is None:
            return None
        p50, p95, p99 = found.round(2).tolist()
        stages = {
            stage: {"p50": p50[i], "p95": p95[i], "p99": p99[i]} for i, stage in enumerate(STAGES)
        }
        return {**stages["total"], "stages": stages}

    def _set_gauges(self) -> None:
        snapshot, metrics = self._snapshots.current, self._metrics
        metrics.held.set(len(snapshot.held))
        metrics.established_share.set(snapshot.established_share)
        for name, trust in zip(HALF_LIVES_MS, snapshot.trust.tolist(), strict=True):
            metrics.trust.labels(name).set(trust)
        metrics.items.labels("known").set(len(snapshot.heat))
        metrics.items.labels("model").set(
            len(snapshot.loaded.model) if snapshot.loaded.model else 0
        )
        metrics.watchers.labels("user").set(self._hub.watching)
        metrics.watchers.labels("live").set(self._hub.live)
        metrics.model.clear()
        metrics.model.labels(snapshot.loaded.version or "none").set(1)


def _pair(found: Any) -> dict[str, float] | None:
    if found is None:
        return None
    p50, p95, p99 = (round(float(value), 3) for value in found[:, 0])
    return {"p50": p50, "p95": p95, "p99": p99}
