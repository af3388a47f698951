"""The stream job: the apply query and the archive query in one Spark application, restarted on
failure.

reads   topic  reviews, feedback, impressions
        redis  {p:<topic>:<partition>}:position, lease
writes  redis, topic, delta  what streaming.flows writes
        redis  lease, running, heartbeats, weights
        redis, delta  what streaming.proof.forget writes, for each open request
        redis  what streaming.unknown_items writes
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.errors import StateConflict, Unavailable
from afterclick.io.background import Heartbeat
from afterclick.io.files import private_folder
from afterclick.io.heartbeats import HeartbeatWriter
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import PACKED_BYTES
from streaming import flows, positions
from streaming.connection import load_functions, redis_client
from streaming.handover import (
    Archive,
    Context,
    ManagedQuery,
    MicroBatch,
    RealTime,
    clean_checkpoints,
)
from streaming.lease import hold_lease, mark_running, renew_lease
from streaming.proof.forget_requests import ForgettingLoop
from streaming.unknown_items import UnknownItems
from streaming.watch import ArchiveWatch, Watch
from streaming.weights import require_weights

log = structlog.get_logger()

_TICK_S = 0.2
_REPORT_S = 10.0
_MAX_BACKOFF_S = 5.0
_MAX_FAILURES = 5
_LIMIT_S = 300.0
"""Starting and stopping queries may take minutes on a slow machine."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Run both queries until `stop` is set.

    A failed query is restarted from the applied offsets in Redis (stream) or in
    the archive. Raises Unavailable after repeated failures without progress, StateLocked if another
    job runs or takes the lease, and StateConflict if log and state do not match.
    """
    keys, lease_s = settings.redis.keys, settings.stream.lease_s
    private_folder(settings.home)
    with closing(redis_client(settings)) as client:
        load_functions(client)
        with hold_lease(client, keys, lease_s) as lease:
            partitions = positions.topic_partitions(settings.kafka)
            check_state_version(client, keys, partitions)
            positions.check_topics(client, keys, settings.kafka)
            require_weights(client, keys, settings.stream.signals, partitions)
            spark = flows.build_session(settings, len(partitions))
            try:
                context = Context(settings, client, spark, lease)
                clean_checkpoints(context)
                real_time = settings.stream.trigger == "real-time"
                apply = RealTime(context) if real_time else MicroBatch(context)
                archive = Archive(context)
                supervised = [
                    Supervised(apply, Watch(context, partitions)),
                    Supervised(archive, ArchiveWatch(context)),
                ]
                with (
                    closing(ForgettingLoop(settings, archive.running_batch)) as forgetting,
                    closing(UnknownItems(settings, lease)) as unknown_items,
                ):
                    forgetting.start()
                    unknown_items.start()
                    supervisor = _Supervisor(context, supervised)
                    beats = (
                        supervisor.heartbeat,
                        forgetting.heartbeat,
                        unknown_items.heartbeat,
                        archive.maintenance.heartbeat,
                    )
                    with closing(HeartbeatWriter(settings, "stream", beats)) as writer:
                        writer.start()
                        supervisor.run(stop)
            finally:
                spark.stop()


def check_state_version(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition]
) -> None:
    """Raise StateConflict if an earlier version of Afterclick wrote the state."""
    for name in partitions:
        with positions.redis_errors():
            entry: Any = client.hrandfield(keys.trends(*name), 1, withvalues=True)
        if entry and len(entry[1]) != PACKED_BYTES:
            raise StateConflict(
                "an earlier version wrote the state in Redis: run `afterclick rebuild` once"
            )


@dataclass
class Supervised:
    """A managed query with its consecutive failures."""

    query: ManagedQuery
    watch: Watch | ArchiveWatch
    started: bool = False
    failures: int = 0
    retry_at: float = 0.0


@dataclass
class _Supervisor:
    context: Context
    supervised: list[Supervised]
    heartbeat: Heartbeat = field(init=False)
    _report_at: float = field(default=0.0, init=False)
    _marked_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat("queries", _LIMIT_S)

    def run(self, stop: threading.Event) -> None:
        self.heartbeat.beat()
        try:
            for supervised in self.supervised:
                supervised.query.start()
                supervised.started = True
            self._mark_running()
            log.info("stream running")
            while not stop.wait(_TICK_S):
                self.heartbeat.beat()
                for supervised in self.supervised:
                    self._supervise(supervised)
                    self._watch(supervised)
                self._mark_running()
                self._report()
        finally:
            for query in self._spark_queries():
                query.stop()
            log.info("stream stopped")

    def _spark_queries(self) -> list[StreamingQuery]:
        return [query for supervised in self.supervised for query in supervised.query.queries()]

    def _supervise(self, supervised: Supervised) -> None:
        """Do the query's periodic work, or restart it after a failure and a growing pause."""
        try:
            if supervised.started:
                failed = [query for query in supervised.query.queries() if not query.isActive]
                if not failed:
                    supervised.query.tick()
                    return
                log.error("query failed", query=supervised.query.name, reason=_reason(failed[0]))
                self._count_failure(supervised)
            if time.monotonic() >= supervised.retry_at:
                self._prepare_redis()
                supervised.query.start()
                supervised.started = True
        except Unavailable as error:
            if supervised.failures > _MAX_FAILURES:
                raise
            log.warning("query waits", query=supervised.query.name, reason=str(error))
            supervised.retry_at = time.monotonic() + 1.0

    def _prepare_redis(self) -> None:
        """Raise StateLocked if another job took the lease. Raises Unavailable."""
        client, lease_s = self.context.client, self.context.settings.stream.lease_s
        load_functions(client)
        if self.context.faults.fence:
            renew_lease(client, self.context.lease, lease_s)

    def _watch(self, supervised: Supervised) -> None:
        """Stop a query if it is stalled: it is started again with the next tick."""
        watch = supervised.watch
        try:
            if not supervised.started:
                watch.reset()
            elif watch.wants_restart(supervised.query):
                for query in supervised.query.queries():
                    query.stop()
                supervised.started, supervised.retry_at = False, 0.0
                watch.reset()
        except Unavailable as error:
            watch.reset()
            log.debug("not watched", reason=str(error))

    def _count_failure(self, supervised: Supervised) -> None:
        """Raise Unavailable after too many failures without progress."""
        supervised.started = False
        supervised.watch.on_failure()
        supervised.failures = 1 if _made_progress(supervised.query) else supervised.failures + 1
        if supervised.failures > _MAX_FAILURES:
            raise Unavailable(
                f"the {supervised.query.name} query failed {supervised.failures} times "
                "without progress; see the log"
            )
        backoff_s = min(0.25 * 2**supervised.failures, _MAX_BACKOFF_S)
        supervised.retry_at = time.monotonic() + backoff_s

    def _mark_running(self) -> None:
        settings = self.context.settings
        if time.monotonic() < self._marked_at + settings.stream.lease_s / 3:
            return
        self._marked_at = time.monotonic()
        try:
            lease_s = settings.stream.lease_s
            mark_running(self.context.client, settings.redis.keys, self.context.lease, lease_s)
        except Unavailable as error:
            log.warning("running job not announced", reason=str(error))

    def _report(self) -> None:
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + _REPORT_S
        for query in self._spark_queries():
            progress = query.lastProgress if query.isActive else None
            if progress and (rows := progress["numInputRows"]):
                ms = max(progress["durationMs"].get("triggerExecution", 1), 1)
                per_s = round(rows / ms * 1000)
                log.info("batch", query=query.name, events=rows, ms=ms, per_s=per_s)


def _made_progress(query: ManagedQuery) -> bool:
    """True also if Redis or Kafka is unavailable: then waiting is right."""
    try:
        return query.made_progress()
    except Unavailable:
        return True


def _reason(query: StreamingQuery) -> str:
    """The most specific line of a failed query's error."""
    lines = [line.strip() for line in str(query.exception()).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "Exception" in line]
    return (errors or lines or ["unknown"])[-1][:500]
