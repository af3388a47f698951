"""Live statistics: throughput, lag and latency, once a second to every /ws/live connection.

reads   kafka  end offsets of reviews and feedback, for the lag, and of the dead letters
        redis  {p:<topic>:<partition>}:position, boundary, archived, heartbeats
writes  redis  models
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import redis
import structlog

from afterclick.arrays import Json
from afterclick.errors import Unavailable
from afterclick.io.background import Heartbeat
from afterclick.io.heartbeats import StoredHeartbeat, read_heartbeats
from afterclick.io.kafka_log import KafkaLog, OffsetRanges
from afterclick.io.redis_clients import create_redis
from afterclick.io.stalls import Stall, StallDetector
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import HALF_LIVES_MS
from serving.monitoring import STAGES, Metrics, percentiles
from serving.push import Hub
from serving.state.kafka_reader import DeadLetterReader
from serving.state.live_trends import TrendFeed
from serving.state.snapshot_builder import SnapshotStore

log = structlog.get_logger()
WINDOW_S = 10.0
PUSH_WINDOW_S = 60.0
KAFKA_TIMEOUT_S = 2.0
MODELS_EVERY_S, MODELS_KEPT = 60.0, 100


class LiveStats:
    """`refresh` reads Kafka and Redis in a background thread; the rest is for any thread."""

    def __init__(
        self,
        settings: Settings,
        trends: TrendFeed,
        snapshots: SnapshotStore,
        hub: Hub,
        metrics: Metrics,
    ) -> None:
        self._trends, self._snapshots = trends, snapshots
        self._redis = create_redis(
            settings.redis, socket_timeout=settings.redis.timeout_s, socket_connect_timeout=1
        )
        self._keys = settings.redis.keys
        self._topics = settings.kafka.topics.interactions
        self._log = KafkaLog(settings.kafka, KAFKA_TIMEOUT_S)
        self._detector = StallDetector(self._log, settings.stream.stall_s)
        self.stalls: list[Stall] = []
        """Partitions with records that the stream does not apply."""
        self._known_stalls: dict[TopicPartition, float] = {}
        self._archive_detector = StallDetector(self._log, settings.stream.archive_stall_s)
        self.archive_stalls: list[Stall] = []
        """Partitions with records that the stream does not archive."""
        self.own_loops: Sequence[Heartbeat] = ()
        """Of this process."""
        self.worker: int | None = None
        """The number of this process among several workers."""
        self._other_loops: list[StoredHeartbeat] = []
        self._hub, self._metrics = hub, metrics
        self.dead_letters = DeadLetterReader(settings.kafka)
        self._measured_at, self._n_changes, self._n_requests = time.monotonic(), 0, 0
        self._events_per_s = self._requests_per_s = 0.0
        self._lag: dict[str, int] | None = None
        self._dead: dict[str, int] | None = None
        self._dead_at = self._models_at = 0.0
        self._last_batch_at: float | None = None

    def refresh(self) -> None:
        """Read Kafka and Redis, measure rates since the last call, set gauges. Blocks."""
        self._lag = self._read_lag()
        self._last_batch_at = self._read_last_batch()
        self._read_heartbeats()
        self._trends.read_approved(self._redis)
        if time.monotonic() - self._dead_at > WINDOW_S:
            self._dead_at = time.monotonic()
            self._dead = self._count_dead_letters()
        self._measure_rates()
        self._set_gauges()

    def of_worker(self) -> Json:
        """What the other workers of this API cannot know, as JSON for `now`."""
        metrics = self._metrics
        return {
            "requests_per_s": self._requests_per_s,
            "watching": self._hub.watching,
            "live": self._hub.live,
            "latency_ms": metrics.recent_latency.values(WINDOW_S)[:, 0].tolist(),
            "push_ms": metrics.recent_pushes.values(PUSH_WINDOW_S)[:, 0].tolist(),
            "frozen": self.frozen_here(),
        }

    def now(self, workers: Sequence[Json]) -> Json:
        """The current statistics of all workers: `of_worker` of each."""
        metrics, snapshot = self._metrics, self._snapshots.current

        def total(name: str) -> Any:
            return sum(worker[name] for worker in workers)

        def spread(name: str) -> dict[str, float] | None:
            return _p50_p95_p99([value for worker in workers for value in worker[name]])

        return {
            "type": "figures",
            "time": time.time(),
            "events_per_s": self._events_per_s,
            "requests_per_s": round(total("requests_per_s"), 1),
            "lag": None if self._lag is None else sum(self._lag.values()),
            "lag_by_partition": self._lag,
            "stalls": [str(stall) for stall in self.stalls],
            "archive_stalls": [str(stall) for stall in self.archive_stalls],
            "frozen": [
                f"{beat['loop']} for {beat['seconds']:.0f} s" for beat in self.frozen(workers)
            ],
            "dead_letters": None if self._dead is None else sum(self._dead.values()),
            "refused": metrics.n_duplicates,
            "boundary": self._last_batch_at,
            "freshness_ms": self._freshness(),
            "push_ms": spread("push_ms"),
            "latency_ms": spread("latency_ms"),
            "model_version": snapshot.loaded.version or None,
            "items": snapshot.n_shown,
            "interactions": int(snapshot.counts.sum()),
            "positions": dict(self._trends.positions),
            "watching": total("watching"),
            "live": total("live"),
        }

    def frozen(self, workers: Sequence[Json]) -> list[Json]:
        """The loops that are frozen now: of these workers, the stream job and the retrainer."""
        others = [_frozen(beat, beat.name) for beat in self._other_loops if beat.frozen]
        return [beat for worker in workers for beat in worker["frozen"]] + others

    def frozen_here(self) -> list[Json]:
        """The loops of this process that are frozen now."""
        prefix = "" if self.worker is None else f"worker {self.worker}: "
        return [_frozen(beat, prefix + beat.name) for beat in self.own_loops if beat.frozen]

    def publish_models(self, versions: Sequence[str]) -> None:
        """Store once a minute which models this API uses: training keeps them."""
        if not versions or time.monotonic() < self._models_at:
            return
        now = time.time()
        try:
            with self._redis.pipeline() as pipeline:
                pipeline.zadd(self._keys.models_in_use, dict.fromkeys(versions, now))
                pipeline.zremrangebyrank(self._keys.models_in_use, 0, -MODELS_KEPT - 1)
                pipeline.execute()
            self._models_at = time.monotonic() + MODELS_EVERY_S
        except redis.RedisError as error:
            log.debug("models in use not published", error=str(error))

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
        self.dead_letters.close()
        self._redis.close()

    def _measure_rates(self) -> None:
        """Events and requests per second since the last call."""
        metrics, now = self._metrics, time.monotonic()
        elapsed_s = max(now - self._measured_at, 1e-3)
        self._events_per_s = round((metrics.n_changes - self._n_changes) / elapsed_s, 1)
        self._requests_per_s = round((metrics.n_requests - self._n_requests) / elapsed_s, 1)
        self._measured_at = now
        self._n_changes, self._n_requests = metrics.n_changes, metrics.n_requests

    def _count_dead_letters(self) -> dict[str, int] | None:
        try:
            counts = self.dead_letters.counts()
        except Unavailable:
            return None
        for topic, number in counts.items():
            self._metrics.dead_letters.labels(topic).set(number)
        return counts

    def _read_heartbeats(self) -> None:
        """Read the loops of other processes; none while Redis is away."""
        known = {beat.name for beat in self._other_loops}
        try:
            self._other_loops = read_heartbeats(self._redis, self._keys)
        except Unavailable:
            self._other_loops = []
        for beat in self._other_loops:
            self._metrics.heartbeat_age.labels(beat.name).set(beat.age_s)
        for name in known - {beat.name for beat in self._other_loops}:
            self._metrics.heartbeat_age.remove(name)

    def _read_last_batch(self) -> float | None:
        """When the stream's last batch began, or its trigger changed; None if unknown."""
        try:
            value: Any = self._redis.get(self._keys.last_batch_at)
        except redis.RedisError:
            return None
        if value is None:
            return None
        self._metrics.last_batch.set(float(value))
        return float(value)

    def _read_lag(self) -> dict[str, int] | None:
        """Events of each partition that are not in the state; None without Kafka."""
        try:
            ranges = self._log.ranges(*self._topics)
        except Unavailable:
            return None
        self._detect_stalls(ranges)
        self._detect_archive_stalls(ranges)
        positions = dict(self._trends.positions)
        lag = {}
        for partition, offsets in ranges.items():
            name = str(partition)
            applied = positions.get(name, -1)
            lag[name] = max(offsets.end - applied - 1, 0)
            self._metrics.partition_lag.labels(name).set(lag[name])
            self._metrics.position.labels(name).set(applied)
        self._metrics.lag.set(sum(lag.values()))
        return lag

    def _detect_stalls(self, ranges: OffsetRanges) -> None:
        """Compare with Redis: the positions of the trends do not pass a dead letter."""
        keys = [self._keys.applied_offset(*name) for name in ranges]
        self.stalls = self._stalls(self._detector, ranges, lambda: self._redis.mget(keys))
        for stall in self.stalls:
            if stall.partition not in self._known_stalls:
                log.error("partition stalled", stall=str(stall))
        self._known_stalls = {stall.partition: stall.seconds for stall in self.stalls}
        for partition in ranges:
            seconds = self._known_stalls.get(partition, 0.0)
            self._metrics.stalled.labels(str(partition)).set(seconds)

    def _detect_archive_stalls(self, ranges: OffsetRanges) -> None:
        """Compare with the offsets that the stream publishes of its archive."""
        names = [str(name) for name in ranges]

        def read() -> Any:
            offsets: Any = self._redis.hmget(self._keys.archived, names)
            published = any(at is not None for at in offsets)  # else no stream has run yet
            return offsets if published else [held.end - 1 for held in ranges.values()]

        stalls = self._stalls(self._archive_detector, ranges, read)
        if stalls and not self.archive_stalls:
            log.error("archive stalled", stall=str(stalls[0]))
        self.archive_stalls = stalls
        seconds = max((stall.seconds for stall in stalls), default=0.0)
        self._metrics.archive_stalled.set(seconds)

    def _stalls(
        self, detector: StallDetector, ranges: OffsetRanges, read_offsets: Callable[[], Any]
    ) -> list[Stall]:
        """The partitions that are stalled; none while Kafka or Redis is away."""
        try:
            offsets = read_offsets()
            reached = {
                name: int(at) for name, at in zip(ranges, offsets, strict=True) if at is not None
            }
            return detector.check(ranges, reached)
        except (redis.RedisError, Unavailable):
            detector.reset()
            return []

    def _freshness(self) -> Json | None:
        found = percentiles(self._metrics.recent_freshness.values(WINDOW_S))
        if found is None:
            return None
        columns = found.round(2).T.tolist()
        stages = {
            stage: dict(zip(("p50", "p95", "p99"), column, strict=True))
            for stage, column in zip(STAGES, columns, strict=True)
        }
        return {**stages["total"], "stages": stages}

    def _set_gauges(self) -> None:
        snapshot, metrics = self._snapshots.current, self._metrics
        metrics.quarantined.set(len(snapshot.quarantined))
        metrics.established_share.set(snapshot.established_share)
        for name, weight in zip(HALF_LIVES_MS, snapshot.new_account_weight.tolist(), strict=True):
            metrics.new_account_weight.labels(name).set(weight)
        metrics.items.labels("known").set(snapshot.n_shown)
        model = snapshot.loaded.model
        metrics.items.labels("model").set(len(model) if model else 0)
        metrics.watchers.labels("user").set(self._hub.watching)
        metrics.watchers.labels("live").set(self._hub.live)
        metrics.model.clear()
        metrics.model.labels(snapshot.loaded.version or "none").set(1)


def _frozen(beat: Heartbeat | StoredHeartbeat, name: str) -> Json:
    return {"loop": name, "seconds": round(beat.age_s, 1)}


def _p50_p95_p99(values: Sequence[float]) -> dict[str, float] | None:
    found = percentiles(np.array(values)[:, None])
    if found is None:
        return None
    rounded = (round(float(value), 3) for value in found[:, 0])
    return dict(zip(("p50", "p95", "p99"), rounded, strict=True))
