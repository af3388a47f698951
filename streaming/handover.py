"""The queries that the job keeps running: apply under either trigger, and the archive.

reads   topic  reviews, feedback, impressions (offsets)
        redis  {p:<topic>:<partition>}:position, :announced, :attempt, :exposed
writes  redis  {p:<topic>:<partition>}:announced, :exposed (where counting begins), boundary
        delta  <archive>, <archive>-impressions
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import redis
import structlog
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.io.background import BackgroundLoop
from afterclick.io.kafka_log import KafkaLog, OffsetRanges, lag
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming import flows, positions
from streaming.apply import ApplyConfig
from streaming.archive_table import IMPRESSIONS, create_archive, maintain, next_offsets
from streaming.exposures import ExposureConfig, start_counting
from streaming.fault_points import FaultPoints
from streaming.forgotten_users import restore_forgotten
from streaming.lease import NO_LEASE, Lease
from streaming.positions import AppliedOffsets, Offsets

log = structlog.get_logger()

_CHECK_EVERY_S = 2.0
_OVERRUN = 4
_MAX_ROWS = 100_000  # a worker's unread answers fill its socket after about 200,000 rows
_GRACE_S, _DRAINED_GRACE_S = 0.5, 2.0
_PATIENCE_S = 10.0
_MAINTAIN_EVERY_S = 300.0
_MAINTAIN_LIMIT_S = 900.0


@dataclass(frozen=True)
class Context:
    """What starting a query requires."""

    settings: Settings
    client: redis.Redis
    spark: SparkSession
    lease: Lease = NO_LEASE
    careful: set[TopicPartition] = field(default_factory=set)
    """Partitions to apply record by record."""

    @cached_property
    def kafka_log(self) -> KafkaLog:
        """The connection for the offsets of the log, which are read every second."""
        return KafkaLog(self.settings.kafka)

    @property
    def faults(self) -> FaultPoints:
        return FaultPoints.of(self.settings.stream)

    @property
    def checkpoints(self) -> Path:
        return self.settings.home.absolute() / "checkpoints"

    def apply_config(self) -> ApplyConfig:
        kafka = self.settings.kafka
        partitions = positions.partition_count(kafka, kafka.topics.state_changes)
        return replace(
            ApplyConfig.of(self.settings, partitions),
            lease=self.lease if self.faults.fence else NO_LEASE,
            watched=True,
            careful=frozenset(self.careful),
            set_aside=positions.set_aside_records(self.client, self.settings.redis.keys),
        )

    def progress(self) -> tuple[AppliedOffsets, OffsetRanges]:
        """Applied offsets, and the log's offset ranges read after them."""
        topics, keys = self.settings.kafka.topics.interactions, self.settings.redis.keys
        applied = positions.applied_offsets(self.client, keys, self.kafka_log.partitions(*topics))
        return applied, self.kafka_log.ranges(*topics)

    def resume(self, applied: AppliedOffsets, ranges: OffsetRanges) -> Offsets:
        """Offsets to start a query from; restores the forgotten users in Redis first.

        Raises StateConflict if a topic was created anew.
        """
        keys = self.settings.redis.keys
        positions.check_topics(self.client, keys, self.settings.kafka)
        restore_forgotten(self.client, keys, self.settings.kafka)
        published = positions.published_offsets(self.client, keys, applied)
        return positions.resume_offsets(applied, published, ranges)

    def mark_published(self, run: Run | None) -> None:
        """Store a micro-batch query's published offsets: the end of its last batch."""
        progress = run.query.lastProgress if run is not None and run.query.isActive else None
        if not progress:
            return
        for source in progress["sources"]:
            ends = json.loads(source["endOffset"] or "null") or {}
            offsets = {
                TopicPartition(topic, int(number)): end - 1
                for topic, partitions in ends.items()
                for number, end in partitions.items()
            }
            positions.mark_published(self.client, self.settings.redis.keys, offsets)
        self.mark_batch(datetime.fromisoformat(progress["timestamp"]).timestamp())

    def mark_batch(self, moment: float) -> None:
        """Store when a batch or a hand-over began (epoch seconds). Raises Unavailable."""
        with positions.redis_errors():
            self.client.set(self.settings.redis.keys.last_batch_at, repr(moment))


@dataclass(frozen=True)
class Run:
    """A Spark query and its checkpoint."""

    query: StreamingQuery
    checkpoint: Path
    fenced: bool = True
    """The state does not depend on the checkpoint."""

    def stop(self) -> None:
        """Stop the query; its checkpoint is of no use afterwards."""
        self.query.stop()
        if self.fenced:
            shutil.rmtree(self.checkpoint, ignore_errors=True)


class ManagedQuery(Protocol):
    """A query that the job starts, watches and restarts."""

    name: str

    def start(self) -> None:
        """Start, or restart after a failure."""

    def tick(self) -> None:
        """Do periodic work; called several times per second."""

    def queries(self) -> list[StreamingQuery]:
        """The Spark queries that should be active."""

    def made_progress(self) -> bool:
        """Whether anything was processed since `start`."""


@dataclass
class Archive:
    """The archive query, which also counts lists shown, and the maintenance of the archives.

    The archives hold their offsets, Redis those of the counts.
    """

    context: Context
    name: str = "archive"
    maintenance: BackgroundLoop = field(init=False)
    _run: Run | None = None

    def __post_init__(self) -> None:
        settings = self.context.settings
        self.maintenance = BackgroundLoop(
            "archive maintenance",
            partial(_maintain, settings),
            _MAINTAIN_EVERY_S,
            limit_s=_MAINTAIN_LIMIT_S,
        )

    def start(self) -> None:
        context, settings = self.context, self.context.settings
        _stop(self._run)
        offsets = self._offsets()
        is_first, checkpoint = self._run is None, new_checkpoint(context)
        exposures = ExposureConfig.of(settings, context.lease)
        query = flows.start_archive(context.spark, settings, exposures, offsets, checkpoint)
        self._run = Run(query, checkpoint)
        if is_first:
            self.maintenance.start()

    def _offsets(self) -> Offsets:
        """From where on anything is not archived or not counted."""
        context, settings = self.context, self.context.settings
        topics, fence = settings.kafka.topics, settings.stream.fence
        ids = context.kafka_log.topic_ids(*topics.logged)
        shown = {topics.impressions: ids.pop(topics.impressions)}
        archive = create_archive(settings.archive, ids)
        lists = create_archive(settings.impression_archive, shown, IMPRESSIONS)
        ranges = context.kafka_log.ranges(*topics.logged)
        of_lists = {name: held for name, held in ranges.items() if name.topic in shown}
        of_events = {name: held for name, held in ranges.items() if name.topic not in shown}
        offsets = next_offsets(archive, of_events, fence=fence)
        offsets |= next_offsets(lists, of_lists, fence=fence)
        client, keys = context.client, settings.redis.keys
        restore_forgotten(client, keys, settings.kafka)
        is_first = max(lists.offsets(of_lists).values(), default=-1) < 0
        uncounted = start_counting(client, keys, ranges, is_first=is_first, fence=fence)
        return {
            topic: {number: min(at, uncounted[topic][number]) for number, at in starts.items()}
            for topic, starts in offsets.items()
        }

    def tick(self) -> None:
        return

    def queries(self) -> list[StreamingQuery]:
        return [self._run.query] if self._run else []

    def made_progress(self) -> bool:
        return bool(self._run and self._run.query.recentProgress)

    def running_batch(self) -> str | None:
        """Identifies the batch that is being written; None between two batches."""
        query = self._run.query if self._run else None
        if query is None or not query.isActive or not query.status["isTriggerActive"]:
            return None
        progress = query.lastProgress
        return f"{query.runId}/{progress['batchId'] if progress else 'first'}"


@dataclass
class MicroBatch:
    """The apply query under the micro-batch trigger."""

    context: Context
    name: str = "stream"
    _run: Run | None = None
    _applied_at_start: AppliedOffsets = field(default_factory=dict)
    _check_at: float = 0.0

    def start(self) -> None:
        context, fenced = self.context, self.context.settings.stream.fence
        _stop(self._run)
        offsets, checkpoint = None, context.checkpoints / "unfenced"
        if fenced:
            self._applied_at_start, ranges = context.progress()
            offsets = context.resume(self._applied_at_start, ranges)
            checkpoint = new_checkpoint(context)
            log.info("stream query starts", lag=lag(ranges, self._applied_at_start))
        query = flows.start_micro_batch(
            context.spark, context.settings, context.apply_config(), offsets, checkpoint
        )
        self._run = Run(query, checkpoint, fenced)

    def tick(self) -> None:
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_EVERY_S
            self.context.mark_published(self._run)

    def queries(self) -> list[StreamingQuery]:
        return [self._run.query] if self._run else []

    def made_progress(self) -> bool:
        applied, _ = self.context.progress()
        return applied != self._applied_at_start


@dataclass
class RealTime:
    """The apply query under the real-time trigger, replaced from time to time without a pause.

    Micro-batches drain a backlog first. A real-time query is stopped only once the workers of its
    successor are at work: both apply the same offsets behind the same fence, so no event waits.
    """

    context: Context
    name: str = "stream"
    handovers: int = 0
    _current: Run | None = None
    _next: Run | None = None
    _draining: bool = False
    _current_since: float = 0.0
    _next_since: float = 0.0
    """When the next query was started, epoch seconds."""
    _tasks_since: float | None = None
    """Since when the next query has a task per partition (time.monotonic)."""
    _check_at: float = 0.0
    _applied_at_handover: AppliedOffsets = field(default_factory=dict)
    _applied_at_start: AppliedOffsets = field(default_factory=dict)

    def start(self) -> None:
        _stop(self._current, self._next)
        self._current = self._next = self._tasks_since = None
        applied, ranges = self.context.progress()
        behind = lag(ranges, applied)
        self._draining = behind > self.context.settings.stream.realtime_lag
        log.info("stream query starts", lag=behind, draining=self._draining)
        self._current = self._start_query(self.context.resume(applied, ranges), self._draining)
        self._current_since = time.monotonic()
        self._applied_at_start = self._applied_at_handover = applied

    def tick(self) -> None:
        if self._next is not None:
            self._hand_over_when_ready(self._next)
        elif time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_EVERY_S
            self._check()

    def queries(self) -> list[StreamingQuery]:
        return [run.query for run in (self._current, self._next) if run is not None]

    def made_progress(self) -> bool:
        applied, _ = self.context.progress()
        return applied != self._applied_at_start

    def _start_query(self, offsets: Offsets, draining: bool) -> Run:
        context, checkpoint = self.context, new_checkpoint(self.context)
        start = flows.start_micro_batch if draining else flows.start_real_time
        config = context.apply_config()
        return Run(start(context.spark, context.settings, config, offsets, checkpoint), checkpoint)

    def _start_next(self, applied: AppliedOffsets, ranges: OffsetRanges) -> None:
        self._applied_at_handover, self._next_since = applied, time.time()
        self._next = self._start_query(self.context.resume(applied, ranges), draining=False)

    def _check(self) -> None:
        """Start the next query if this one has drained, is old, or has many unread answers."""
        stream = self.context.settings.stream
        applied, ranges = self.context.progress()
        behind = lag(ranges, applied)
        if self._draining:
            self.context.mark_published(self._current)
            if behind <= stream.realtime_lag:
                self._start_next(applied, ranges)
        elif behind > _OVERRUN * stream.realtime_lag:
            log.warning("real-time query overrun", lag=behind)
            self.start()
        elif (
            time.monotonic() - self._current_since > stream.handover_s
            or max(applied[name] - self._applied_at_handover.get(name, -1) for name in applied)
            > _MAX_ROWS
        ):
            self._start_next(applied, ranges)

    def _hand_over_when_ready(self, successor: Run) -> None:
        """Stop the current query once the next one is at work."""
        now = time.monotonic()
        if self._tasks_since is None:
            tasks = flows.active_tasks(self.context.spark, successor.query)
            if tasks >= len(self._applied_at_handover):
                self._tasks_since = now
        elif self._is_at_work(now - self._tasks_since):
            old, self._current, self._next = self._current, successor, None
            self._tasks_since, self._draining = None, False
            self._current_since = now
            self.handovers += 1
            self.context.mark_batch(time.time())
            _stop(old)
            log.info("real-time query took over", handovers=self.handovers)

    def _is_at_work(self, seconds: float) -> bool:
        """Whether workers of the next query, whose tasks have run for `seconds`, may be left alone.

        A worker says so with its first record, which partitions without events do not have. Both
        queries apply each event meanwhile, so that this must not take long.
        """
        if self._draining:  # the workers of micro-batches say so with every batch
            return seconds > _DRAINED_GRACE_S
        if not _GRACE_S < seconds < _PATIENCE_S:
            return seconds >= _PATIENCE_S
        context, keys = self.context, self.context.settings.redis.keys
        before = self._applied_at_handover
        applied = positions.applied_offsets(context.client, keys, before)
        moved = [name for name in before if applied[name] > before[name]]
        attempts = (positions.last_attempt(context.client, keys, name) for name in moved)
        return all(at >= self._next_since for _, at in attempts)


def _maintain(settings: Settings) -> None:
    """Maintain both archives. Raises StateConflict, Unavailable."""
    for uri in (settings.archive, settings.impression_archive):
        maintain(uri, settings.stream.archive_days)


def _stop(*runs: Run | None) -> None:
    for run in runs:
        if run is not None:
            run.stop()


def new_checkpoint(context: Context) -> Path:
    """A new folder: Spark requires a checkpoint, the state does not."""
    return context.checkpoints / "stream" / uuid4().hex


def clean_checkpoints(context: Context) -> None:
    """Delete the checkpoints of the apply queries of earlier jobs."""
    shutil.rmtree(context.checkpoints / "stream", ignore_errors=True)
