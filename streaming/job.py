"""The stream job: the live query and the archive query in one Spark application, restarted when they fail.

reads   topic  reviews, feedback
        redis  {p:<topic>:<partition>}:position, lease
writes  redis, topic, parquet  what streaming.apply and streaming.archive write
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from uuid import uuid4

import redis
import structlog
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.errors import Unavailable
from afterclick.settings import Settings
from streaming import archive, lease, live, positions, session
from streaming.apply import Plan
from streaming.connection import load_functions

log = structlog.get_logger()

_POLL_S = 0.2
_REPORT_S = 10.0
_LONGEST_PAUSE_S = 5.0
_MOST_FAILURES = 5


def run(settings: Settings, stop: threading.Event) -> None:
    """Run both queries until `stop` is set.

    A query that fails is started again from the positions in Redis (live) or its checkpoint (archive). Raises
    Unavailable where it fails again and again without moving, and StateConflict where the log and the state
    no longer fit.
    """
    with closing(client_of(settings)) as client:
        load_functions(client, function_library())
        with lease.held(client, settings.redis.keys.lease, settings.stream.lease_s):
            positions.read_log(settings.kafka)
            spark = session.build(settings)
            try:
                _Job(settings, client, spark, stop).run()
            finally:
                spark.stop()


def client_of(settings: Settings) -> redis.Redis:
    """A client for the job's own few questions; 30 s to answer."""
    kind: Any = redis.RedisCluster if settings.redis.cluster else redis.Redis
    client: redis.Redis = kind.from_url(settings.redis.url, socket_timeout=30, socket_connect_timeout=5)
    return client


def function_library() -> str:
    """The source of the server-side functions."""
    return (files("streaming") / "functions.lua").read_text()


@dataclass
class _Watched:
    """A query that is kept running by `begin`."""

    name: str
    begin: Callable[[], StreamingQuery]
    query: StreamingQuery | None = None
    failures: int = 0
    retry_at: float = 0.0


@dataclass
class _Job:
    settings: Settings
    client: redis.Redis
    spark: SparkSession
    stop: threading.Event
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)

    def run(self) -> None:
        watched = [_Watched("live", self._begin_live), _Watched("archive", self._begin_archive)]
        report_at = 0.0
        try:
            for one in watched:
                one.query = one.begin()
            log.info("stream running", trigger=self.settings.stream.trigger)
            while not self.stop.wait(_POLL_S):
                for one in watched:
                    self._keep_running(one)
                if time.monotonic() >= report_at:
                    report_at = time.monotonic() + _REPORT_S
                    self._report(watched)
        finally:
            for one in watched:
                if one.query is not None:
                    one.query.stop()
            log.info("stream stopped")

    def _begin_live(self) -> StreamingQuery:
        root = self.settings.home.absolute() / "checkpoints"
        kafka = self.settings.kafka
        plan = Plan.of(self.settings, positions.partitions_of(kafka, kafka.topics.state_changes))
        if not self.settings.stream.fence:
            return live.start(self.spark, self.settings, plan, None, root / "unfenced")
        load_functions(self.client, function_library())
        spans = positions.read_log(self.settings.kafka)
        self._seen = positions.read_positions(self.client, self.settings.redis.keys, spans)
        offsets = positions.starting_offsets(self._seen, spans)
        log.info("live query starts", behind=sum(span.end for span in spans.values()) - _total(offsets))
        shutil.rmtree(root / "live", ignore_errors=True)
        return live.start(self.spark, self.settings, plan, offsets, root / "live" / uuid4().hex)

    def _begin_archive(self) -> StreamingQuery:
        return archive.start(
            self.spark, self.settings, self.settings.home.absolute() / "checkpoints" / "archive"
        )

    def _keep_running(self, one: _Watched) -> None:
        """Start a query again that has failed; wait longer each time."""
        if one.query is not None:
            if one.query.isActive:
                return
            log.error("query failed", query=one.name, reason=_reason(one.query))
            self._count_failure(one)
            one.query = None
        if time.monotonic() < one.retry_at:
            return
        try:
            one.query = one.begin()
        except Unavailable as error:
            log.warning("query waits", query=one.name, reason=str(error))
            one.retry_at = time.monotonic() + 1.0

    def _count_failure(self, one: _Watched) -> None:
        """Raises Unavailable after too many failures in which nothing moved."""
        moved = one.name == "live" and self._moved()
        one.failures = 1 if moved else one.failures + 1
        if one.failures > _MOST_FAILURES:
            raise Unavailable(f"the {one.name} query failed {one.failures} times without moving; see the log")
        one.retry_at = time.monotonic() + min(0.25 * 2**one.failures, _LONGEST_PAUSE_S)

    def _moved(self) -> bool:
        """Whether the state has moved since the live query was last started, or cannot be asked."""
        try:
            spans = dict.fromkeys(self._seen, positions.Span(0, 0))
            return positions.read_positions(self.client, self.settings.redis.keys, spans) != self._seen
        except Unavailable:
            return True

    def _report(self, watched: list[_Watched]) -> None:
        for one in watched:
            progress = one.query.lastProgress if one.query is not None and one.query.isActive else None
            if progress and progress["numInputRows"]:
                rows = progress["numInputRows"]
                ms = max(progress["durationMs"].get("triggerExecution", 1), 1)
                log.info("batch", query=one.name, events=rows, ms=ms, per_s=round(rows / ms * 1000))


def _total(offsets: dict[str, dict[int, int]]) -> int:
    return sum(offset for partitions in offsets.values() for offset in partitions.values())


def _reason(query: StreamingQuery) -> str:
    """The line of a failed query's error that says the most."""
    text = str(query.exception())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line]
    return (telling or lines or ["unknown"])[-1][:500]
