"""The stream job: the live query and the archive query in one Spark application, restarted when they fail.

reads   topic  reviews, feedback
        redis  {p:<topic>:<partition>}:position, lease
writes  redis, topic, parquet  what streaming.apply and streaming.archive write
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import redis
import structlog
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.errors import StateConflict, Unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.trends import PACKED_BYTES
from streaming import lease, positions, realtime, session
from streaming.connection import load_functions
from streaming.positions import Place
from streaming.queries import Archive, Context, Kept, MicroBatch, RealTime, forget_checkpoints

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
            spans = positions.read_log(settings.kafka)
            refuse_older_form(client, settings.redis.keys, spans)
            real_time = settings.stream.trigger == "real-time"
            # a real-time task holds its slot, and while a query hands over there are two per partition
            slots = 3 * len(spans) + 2 if real_time else 4
            spark = session.build(settings, slots, realtime.SPARK if real_time else {})
            try:
                context = Context(settings, client, spark)
                kept: list[Kept] = [
                    RealTime(context) if real_time else MicroBatch(context),
                    Archive(context),
                ]
                forget_checkpoints(context)
                _Job(client, [_Watched(one) for one in kept]).run(stop)
            finally:
                spark.stop()


def client_of(settings: Settings) -> redis.Redis:
    """A client for the job's own few questions; 30 s to answer."""
    kind: Any = redis.RedisCluster if settings.redis.cluster else redis.Redis
    client: redis.Redis = kind.from_url(
        settings.redis.url, socket_timeout=30, socket_connect_timeout=5
    )
    return client


def function_library() -> str:
    """The source of the server-side functions."""
    return (files("streaming") / "functions.lua").read_text()


def refuse_older_form(client: redis.Redis, keys: Keys, places: Iterable[Place]) -> None:
    """Raises StateConflict where an earlier version of Afterclick wrote the state."""
    for place in places:
        found: Any = client.hrandfield(keys.trends(*place), 1, withvalues=True)
        if found and len(found[1]) != PACKED_BYTES:
            raise StateConflict(
                "an earlier version wrote the state in Redis: run `afterclick rebuild` once"
            )


@dataclass
class _Watched:
    """Something kept running, and how often it has failed in a row."""

    kept: Kept
    started: bool = False
    failures: int = 0
    retry_at: float = 0.0


@dataclass
class _Job:
    client: redis.Redis
    watched: list[_Watched]
    _report_at: float = field(default=0.0, init=False)

    def run(self, stop: threading.Event) -> None:
        try:
            for one in self.watched:
                one.kept.begin()
                one.started = True
            log.info("stream running")
            while not stop.wait(_POLL_S):
                for one in self.watched:
                    self._keep_running(one)
                self._report()
        finally:
            for one in self.watched:
                for query in one.kept.running():
                    query.stop()
            log.info("stream stopped")

    def _keep_running(self, one: _Watched) -> None:
        """Let it do what is due; start it again where it has failed, waiting longer each time."""
        try:
            if one.started:
                failed = [query for query in one.kept.running() if not query.isActive]
                if not failed:
                    one.kept.step()
                    return
                log.error("query failed", query=one.kept.name, reason=_reason(failed[0]))
                self._count_failure(one)
            if time.monotonic() >= one.retry_at:
                load_functions(self.client, function_library())
                one.kept.begin()
                one.started = True
        except Unavailable as error:
            if one.failures > _MOST_FAILURES:
                raise
            log.warning("query waits", query=one.kept.name, reason=str(error))
            one.retry_at = time.monotonic() + 1.0

    def _count_failure(self, one: _Watched) -> None:
        """Raises Unavailable after too many failures in which nothing moved."""
        one.started = False
        one.failures = 1 if _moved(one.kept) else one.failures + 1
        if one.failures > _MOST_FAILURES:
            raise Unavailable(
                f"the {one.kept.name} query failed {one.failures} times without moving; see the log"
            )
        one.retry_at = time.monotonic() + min(0.25 * 2**one.failures, _LONGEST_PAUSE_S)

    def _report(self) -> None:
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + _REPORT_S
        for query in [query for one in self.watched for query in one.kept.running()]:
            progress = query.lastProgress if query.isActive else None
            if progress and progress["numInputRows"]:
                rows = progress["numInputRows"]
                ms = max(progress["durationMs"].get("triggerExecution", 1), 1)
                log.info(
                    "batch", query=query.name, events=rows, ms=ms, per_s=round(rows / ms * 1000)
                )


def _moved(kept: Kept) -> bool:
    """Whether it achieved anything, or what it depends on is away: then waiting is right."""
    try:
        return kept.moved()
    except Unavailable:
        return True


def _reason(query: StreamingQuery) -> str:
    """The line of a failed query's error that says the most."""
    text = str(query.exception())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line]
    return (telling or lines or ["unknown"])[-1][:500]
