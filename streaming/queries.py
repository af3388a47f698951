"""The queries that the job keeps running: the live one under either trigger, and the archive.

reads   topic  reviews, feedback (offsets, to know how far behind the state is)
        redis  {p:<topic>:<partition>}:position, :announced
writes  redis  {p:<topic>:<partition>}:announced
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import redis
import structlog
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.errors import Unavailable
from afterclick.settings import Settings
from streaming import archive, forgotten, live, positions, realtime
from streaming.apply import Plan
from streaming.kafka_source import Offsets
from streaming.positions import Place

log = structlog.get_logger()

_CHECK_EVERY_S = 2.0
_OVERRUN = 4
_MOST_ROWS = (
    100_000  # the worker's unread answers fill its socket after some 200,000 rows of a partition
)
_GRACE_S = 2.0


@dataclass(frozen=True)
class Context:
    """What starting a query takes."""

    settings: Settings
    client: redis.Redis
    spark: SparkSession

    @property
    def checkpoints(self) -> Path:
        return self.settings.home.absolute() / "checkpoints"

    def plan(self) -> Plan:
        kafka = self.settings.kafka
        return Plan.of(self.settings, positions.partitions_of(kafka, kafka.topics.state_changes))

    def read_positions(self) -> tuple[dict[Place, int], positions.Spans]:
        """Where the state stands, and the log as it was no earlier."""
        kafka, keys = self.settings.kafka, self.settings.redis.keys
        at = positions.read_positions(self.client, keys, positions.places(kafka))
        return at, positions.read_log(kafka)

    def resume(self, at: dict[Place, int], spans: positions.Spans) -> Offsets:
        """Where a live query has to begin for positions `at`; by then Redis knows who is forgotten."""
        forgotten.restore(self.client, self.settings.redis.keys, self.settings.kafka)
        announced = positions.announced(self.client, self.settings.redis.keys, at)
        return positions.resume_offsets(at, announced, spans)

    def announce(self, query: StreamingQuery | None) -> None:
        """Say how far the sink of a micro-batch query has got: to the end of its last batch."""
        progress = query.lastProgress if query is not None and query.isActive else None
        if not progress:
            return
        for source in progress["sources"]:
            ends = json.loads(source["endOffset"] or "null") or {}
            offsets = {
                (topic, int(n)): end - 1 for topic, of in ends.items() for n, end in of.items()
            }
            positions.announce(self.client, self.settings.redis.keys, offsets)
        self.mark_boundary(datetime.fromisoformat(progress["timestamp"]).timestamp())

    def mark_boundary(self, moment: float) -> None:
        """Note when a batch began, or another query took over (epoch seconds). Raises Unavailable."""
        try:
            self.client.set(self.settings.redis.keys.last_batch_at, repr(moment))
        except redis.RedisError as error:
            raise Unavailable(f"Redis: {error}") from None


class Kept(Protocol):
    """Something the job keeps running."""

    name: str

    def begin(self) -> None:
        """Start, or start again after a failure."""

    def step(self) -> None:
        """Do what is due; called several times a second."""

    def running(self) -> list[StreamingQuery]:
        """The queries that ought to be active."""

    def moved(self) -> bool:
        """Whether anything was achieved since `begin`."""


@dataclass
class Archive:
    """The archive query. Its checkpoint knows where it stands."""

    context: Context
    name: str = "archive"
    _query: StreamingQuery | None = None

    def begin(self) -> None:
        context, checkpoint = self.context, self.context.checkpoints / "archive"
        if not checkpoint.exists():
            set_aside_log(context.settings)
        self._query = archive.start(context.spark, context.settings, checkpoint)

    def step(self) -> None:
        return

    def running(self) -> list[StreamingQuery]:
        return [self._query] if self._query else []

    def moved(self) -> bool:
        return bool(self._query and self._query.recentProgress)


@dataclass
class MicroBatch:
    """The live query under the micro-batch trigger."""

    context: Context
    name: str = "live"
    _query: StreamingQuery | None = None
    _began: dict[Place, int] = field(default_factory=dict)
    _check_at: float = 0.0

    def begin(self) -> None:
        context = self.context
        if not context.settings.stream.fence:
            checkpoint = context.checkpoints / "unfenced"
            self._query = live.start(
                context.spark, context.settings, context.plan(), None, checkpoint
            )
            return
        self._began, spans = context.read_positions()
        offsets = self.context.resume(self._began, spans)
        log.info("live query starts", behind=positions.lag(self._began, spans))
        self._query = live.start(
            context.spark, context.settings, context.plan(), offsets, fresh_checkpoint(context)
        )

    def step(self) -> None:
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_EVERY_S
            self.context.announce(self._query)

    def running(self) -> list[StreamingQuery]:
        return [self._query] if self._query else []

    def moved(self) -> bool:
        now, _ = self.context.read_positions()
        return now != self._began


@dataclass
class RealTime:
    """The live query under the real-time trigger.

    A backlog is drained by micro-batches first. A real-time query is never stopped before the next one is at
    work: both stand behind the same positions, so for a while two do the work of one, and no event waits.
    """

    context: Context
    name: str = "live"
    handovers: int = 0
    _current: StreamingQuery | None = None
    _next: StreamingQuery | None = None
    _draining: bool = False
    _since: float = 0.0
    _ready_at: float | None = None
    _check_at: float = 0.0
    _from: dict[Place, int] = field(default_factory=dict)
    _began: dict[Place, int] = field(default_factory=dict)

    def begin(self) -> None:
        self._drop(self._current, self._next)
        self._current = self._next = self._ready_at = None
        self._began, spans = self.context.read_positions()
        behind = positions.lag(self._began, spans)
        self._draining = behind > self.context.settings.stream.realtime_lag
        log.info("live query starts", behind=behind, draining=self._draining)
        self._current = self._start(self.context.resume(self._began, spans), self._draining)
        self._since, self._from = time.monotonic(), self._began

    def step(self) -> None:
        if self._next is not None:
            self._take_over_when_ready()
        elif time.monotonic() >= self._check_at:
            self._check()

    def running(self) -> list[StreamingQuery]:
        return [query for query in (self._current, self._next) if query is not None]

    def moved(self) -> bool:
        now, _ = self.context.read_positions()
        return now != self._began

    def _start(self, offsets: Offsets, draining: bool) -> StreamingQuery:
        context = self.context
        plan, checkpoint = context.plan(), fresh_checkpoint(context)
        if draining:
            return live.start(context.spark, context.settings, plan, offsets, checkpoint)
        return realtime.start(context.spark, context.settings, plan, offsets, checkpoint)

    def _begin_next(self, at: dict[Place, int], spans: positions.Spans) -> None:
        self._from = at
        self._next = self._start(self.context.resume(at, spans), draining=False)

    def _check(self) -> None:
        """Begin the next query where it is time: drained, overrun, old, or full of unread answers."""
        stream = self.context.settings.stream
        self._check_at = time.monotonic() + _CHECK_EVERY_S
        at, spans = self.context.read_positions()
        behind = positions.lag(at, spans)
        if self._draining:
            self.context.announce(self._current)
            if behind <= stream.realtime_lag:
                self._begin_next(at, spans)
        elif behind > _OVERRUN * stream.realtime_lag:
            log.warning("real-time query overrun", behind=behind)
            self.begin()
        elif (
            time.monotonic() - self._since > stream.handover_s
            or max(at[place] - self._from.get(place, -1) for place in at) > _MOST_ROWS
        ):
            self._begin_next(at, spans)

    def _take_over_when_ready(self) -> None:
        """Stop the old query once each partition has a task of the new one at work."""
        assert self._next is not None
        if self._ready_at is None:
            at, _ = self.context.read_positions()
            if realtime.tasks(self.context.spark, self._next) >= len(at):
                self._ready_at = time.monotonic() + _GRACE_S
        elif time.monotonic() > self._ready_at:
            old, self._current, self._next = self._current, self._next, None
            self._ready_at, self._draining, self._since = None, False, time.monotonic()
            self.handovers += 1
            self.context.mark_boundary(time.time())
            self._drop(old)
            log.info("real-time query took over", handovers=self.handovers)

    def _drop(self, *queries: StreamingQuery | None) -> None:
        for query in queries:
            if query is not None:
                query.stop()


def set_aside_log(settings: Settings) -> None:
    """Rename a Parquet log that has lost its checkpoint; it is written anew from the topics.

    Spark's sink would take the new query's batches for ones it has and drop them without a word. Raises
    LogTruncated where the topics no longer have all of it.
    """
    log_folder = Path(settings.archive)
    if not (log_folder / "_spark_metadata").exists():
        return
    spans = positions.read_log(settings.kafka)
    positions.starting_offsets(dict.fromkeys(spans, -1), spans)
    aside = log_folder.with_name(f"{log_folder.name}.{time.time():.0f}")
    log_folder.rename(aside)
    log.warning("the Parquet log had lost its checkpoint and is written anew", old=str(aside))


def fresh_checkpoint(context: Context) -> Path:
    """A new folder: Spark insists on a checkpoint, the state does not."""
    return context.checkpoints / "live" / uuid4().hex


def forget_checkpoints(context: Context) -> None:
    """Remove what earlier jobs left of their live queries' checkpoints."""
    shutil.rmtree(context.checkpoints / "live", ignore_errors=True)
