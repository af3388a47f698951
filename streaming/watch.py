"""Watch a running job: partitions that stand still, topics created anew, a lease taken by another.

reads   redis  {p:<topic>:<partition>}:position, lease, topics
        topic  reviews, feedback (offsets; the first record that is not applied)
        delta  <archive>, <archive>-impressions: which offsets are archived
writes  redis  aside, running, archived
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from afterclick.errors import StateConflict, Unavailable
from afterclick.io.event_archive import EventArchive
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.stalls import Stall, StallDetector
from afterclick.state import LogPosition, TopicPartition
from streaming import flows, positions
from streaming.handover import Context, ManagedQuery
from streaming.lease import check_lease, mark_running

log = structlog.get_logger()

_EVERY_S = 1.0
_TOPICS_EVERY_S = 10.0
_ARCHIVE_EVERY_S = 2.0
_IDLE_PATIENCE = 12
"""Times `stall_s` that a query may take to start its workers."""
_FAILURES = 2
"""Failures in a row at a record from which it counts as stalled: fewer than end the job."""


@dataclass
class Watch:
    """Decides when the apply query must be restarted.

    A stalled partition is applied record by record after the restart. If it stalls again, it does
    so at the record that is to blame: this one is set aside, and the query is restarted once more.
    A query that fails at the same record again and again stands still as well.
    """

    context: Context
    partitions: list[TopicPartition]
    _detector: StallDetector = field(init=False)
    _runs: set[str] = field(default_factory=set, init=False)
    """Spark's ids of the running queries: a hand-over changes them."""
    _next_at: float = field(default=0.0, init=False)
    _topics_at: float = field(default=0.0, init=False)
    _applied: Mapping[TopicPartition, int] = field(default_factory=dict, init=False)
    _moved_at: float = field(default=0.0, init=False)
    """When any partition last moved."""
    _reset_at: float = field(default_factory=time.time, init=False)
    """Since when workers that begin are those of the running queries, epoch seconds."""
    _checked_at: float = field(default_factory=time.time, init=False)
    """When the running queries were last looked up, epoch seconds."""
    _failures: dict[LogPosition, int] = field(default_factory=dict, init=False)
    """Record with which a worker began → failures in a row, up to now, that it did not survive."""
    _failed_at: float = field(default_factory=time.time, init=False)
    """When the query last failed, epoch seconds."""

    def __post_init__(self) -> None:
        settings = self.context.settings
        self._detector = StallDetector(KafkaLog(settings.kafka), settings.stream.stall_s)

    def wants_restart(self, query: ManagedQuery) -> bool:
        """Whether the query must be restarted now; does its work about once a second.

        Raises StateLocked if another job took the lease, StateConflict if a topic was created
        anew or has other partitions, and Unavailable.
        """
        now, context = time.monotonic(), self.context
        if now < self._next_at:
            return False
        self._next_at = now + _EVERY_S
        if context.settings.stream.fence:
            check_lease(context.client, context.lease)
        if now >= self._topics_at:
            self._topics_at = now + _TOPICS_EVERY_S
            self._check_topics()
        runs = {str(each.runId) for each in query.queries()}
        if not runs <= self._runs:  # started since the last check; its workers may have begun
            self._measure_from(max(self._reset_at, self._checked_at))
        self._runs, self._checked_at = runs, time.time()
        applied, ranges = context.progress()
        if applied != self._applied:
            self._applied, self._moved_at = applied, now
        if context.faults.unwatched:
            return False
        tasks = sum(flows.active_tasks(context.spark, each) for each in query.queries())
        return self._act(self._detector.check(ranges, applied), tasks)

    def reset(self) -> None:
        """The query was restarted, or Kafka or Redis was away: measure from now on.

        Failures of the query stay counted.
        """
        self._measure_from(time.time())

    def _measure_from(self, begun_s: float) -> None:
        """Measure progress from now on; workers that began since `begun_s` (epoch) are new."""
        self._detector.reset()
        self._moved_at, self._reset_at = time.monotonic(), begun_s

    def on_failure(self) -> None:
        """The query failed: maybe at a record that a worker had begun with and not applied."""
        context, settings = self.context, self.context.settings
        if context.faults.unwatched:
            return
        try:
            begun = self._not_applied()
            self._failures = {record: self._failures.get(record, 0) + 1 for record in begun}
            for record in [each for each in begun if self._failures[each] >= _FAILURES]:
                lease_s = settings.stream.lease_s
                mark_running(context.client, settings.redis.keys, context.lease, lease_s)
                log.error("query fails at a record", record=str(record))
                self._blame(record)
                del self._failures[record]
        except Unavailable as error:  # the cause is not a record
            log.debug("failure not counted", reason=str(error))
            self._failures.clear()
        self._failed_at = time.time()

    def _not_applied(self) -> list[LogPosition]:
        """The first record that is not applied, of partitions that a failed worker had begun with.

        Where records are applied one by one, the one with which it began: the one to blame.
        """
        context, records = self.context, []
        applied, ranges = context.progress()
        for name in self.partitions:
            offset, at = positions.last_attempt(context.client, context.settings.redis.keys, name)
            first = applied[name] + 1
            begun = at > self._failed_at and first < ranges[name].end
            if begun and (offset >= first or name not in context.careful):
                records.append(LogPosition(*name, max(offset, first)))
        return records

    def _check_topics(self) -> None:
        settings = self.context.settings
        positions.check_topics(self.context.client, settings.redis.keys, settings.kafka)
        now = self.context.kafka_log.partitions(*settings.kafka.topics.interactions)
        if now != self.partitions:
            raise StateConflict(
                f"the topics now have {len(now)} partitions instead of {len(self.partitions)}: "
                "start the job again"
            )

    def _act(self, stalls: list[Stall], tasks: int) -> bool:
        """Whether these stalls need a restart; decides what to do with their records.

        A worker that has not begun is slow to start, and no record is to blame.
        """
        stall_s = self.context.settings.stream.stall_s
        begun = [stall for stall in stalls if tasks and self._begun(stall)]
        patience_s = _IDLE_PATIENCE * stall_s
        idle = [stall for stall in stalls if stall.seconds >= patience_s]
        moving = time.monotonic() - self._moved_at < stall_s
        if not (begun or idle) or (tasks < len(self.partitions) and moving):  # some wait their turn
            return False
        keys, lease_s = self.context.settings.redis.keys, self.context.settings.stream.lease_s
        mark_running(self.context.client, keys, self.context.lease, lease_s)  # or it is Redis
        for stall in begun or idle:
            where = {"partition": str(stall.partition), "offset": stall.offset}
            log.error("partition stalled", **where, seconds=round(stall.seconds, 1))
        for stall in begun:
            self._blame(LogPosition(*stall.partition, stall.offset))
        return True

    def _begun(self, stall: Stall) -> bool:
        """Whether a worker of this query began there and has had its time since then."""
        context, partition = self.context, stall.partition
        offset, at = positions.last_attempt(context.client, context.settings.redis.keys, partition)
        if at < self._reset_at or (partition in context.careful and offset != stall.offset):
            return False
        return time.time() - at >= context.settings.stream.stall_s

    def _blame(self, record: LogPosition) -> None:
        """Look closer at the partition, or set aside the record at which it stands still."""
        context, partition = self.context, record.topic_partition
        if partition not in context.careful:
            context.careful.add(partition)
            return
        context.careful.discard(partition)
        positions.set_aside(context.client, context.settings.redis.keys, record)
        log.error("record set aside", record=str(record))


@dataclass
class ArchiveWatch:
    """Decides when the archive query must be restarted: records wait, and nothing is appended."""

    context: Context
    _detector: StallDetector = field(init=False)
    _archives: list[EventArchive] = field(default_factory=list, init=False)
    """Of events, of impressions."""
    _next_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        settings = self.context.settings
        self._detector = StallDetector(KafkaLog(settings.kafka), settings.stream.archive_stall_s)

    def wants_restart(self, _: ManagedQuery) -> bool:
        """Whether the query must be restarted; publishes its progress every few seconds.

        Raises StateConflict and Unavailable.
        """
        context, now = self.context, time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + max(_ARCHIVE_EVERY_S, context.settings.stream.archive_seconds)
        settings = context.settings
        if not self._archives:
            uris = settings.archive, settings.impression_archive
            self._archives = [EventArchive.open(uri) for uri in uris]
        topics = settings.kafka.topics
        ranges = context.kafka_log.ranges(*topics.logged)
        archived: positions.AppliedOffsets = {}
        for archive, names in zip(
            self._archives, (topics.interactions, (topics.impressions,)), strict=True
        ):
            archive.refresh()
            archived |= archive.offsets(name for name in ranges if name.topic in names)
        events = {name: at for name, at in archived.items() if name.topic in topics.interactions}
        positions.mark_archived(context.client, settings.redis.keys, events)
        if context.faults.unwatched:
            return False
        stalls = self._detector.check(ranges, archived)
        for stall in stalls:
            where = {"partition": str(stall.partition), "offset": stall.offset}
            log.error("archive stalled", **where, seconds=round(stall.seconds, 1))
        return bool(stalls)

    def reset(self) -> None:
        """The query was restarted, or Kafka or Redis was away: measure from now on."""
        self._detector.reset()

    def on_failure(self) -> None:
        """The query failed: it is restarted whatever the cause."""
