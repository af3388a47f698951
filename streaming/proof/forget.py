"""Forget a user: remove every effect of their past events from the state and the log.

reads   redis    {u:<user>}:ledger:*, {p:<topic>:<partition>}:position
        delta    <archive>; topic reviews, feedback for events not archived yet
writes  redis    forgotten, {u:<user>}:*, {p:<topic>:<partition>}:counts, :uniques, :trends, :taken
        delta    <archive>

The order of the steps makes a crash repairable by running them again: let Redis reject the user's
events; wait for events in flight; retract what was counted, partition by partition (once each, by a
token); delete the ledgers; erase the rows of the log; store the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import redis

from afterclick.errors import BadEvent
from afterclick.events import InteractionEvent, stable_id
from afterclick.io.event_archive import EventArchive, MissingArchive, sql_text
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import (
    Effects,
    Forgetting,
    LogPosition,
    TopicPartition,
    decode_compensations,
    unpack_offset,
    vote_codes,
)
from streaming import positions
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.proof.archive_log import erase, record_of
from streaming.proof.rebuild import no_record
from streaming.records import Record, decode_record

_UNLIMITED = 10**9


@dataclass(frozen=True, slots=True)
class _LedgerEntry:
    event_id: str
    position: LogPosition
    effects: Effects


@dataclass(frozen=True, slots=True)
class _LoggedEvent:
    record: Record
    event: InteractionEvent


_Events = dict[LogPosition, _LoggedEvent]


@dataclass(frozen=True)
class _Past:
    """What is known of a user's events up to a time."""

    counted: list[_LedgerEntry]
    uncounted: list[_LedgerEntry]
    """In the ledger, but not applied to the partition."""
    events: _Events
    """The events that a log has, also later ones."""
    trimmed: list[LogPosition]
    """Counted events that the ledgers no longer have."""


def last_forgetting(client: redis.Redis, keys: Keys, user_id: str) -> Forgetting | None:
    """The report of the user's last forgetting, if there was one. Raises Unavailable."""
    with positions.redis_errors():
        value: Any = client.get(keys.erased(user_id))
    return None if value is None else Forgetting.model_validate_json(value)


@dataclass
class Forgetter:
    """The steps of forgetting one user. Each is safe to repeat."""

    settings: Settings
    client: redis.Redis
    user_id: str

    def complete(self, until_ms: int, settle: Callable[[], None] = lambda: None) -> Forgetting:
        """Every step; first those of an interrupted forgetting.

        `settle` waits until no process works on events read before: without it, no stream may run.
        Raises redis.RedisError and Unavailable.
        """
        events, remaining, rows, finished_ms = 0, 0, 0, -1
        while finished_ms < until_ms:
            finished_ms = self.begin(until_ms)
            settle()
            retracted = self.retract(finished_ms)
            events, remaining = events + retracted.events, remaining + retracted.remaining
            rows += self.erase_rows(finished_ms)
            self.client.delete(self.settings.redis.keys.forgetting(self.user_id))
        report = Forgetting(
            until_ms=finished_ms,
            events=events,
            remaining=remaining,
            rows=rows,
            finished_ms=int(time.time() * 1000),
        )
        self._store(report)
        return report

    def begin(self, until_ms: int) -> int:
        """Reject the user's events from now on; returns the event time to finish up to."""
        keys, user = self.settings.redis.keys, self.user_id
        self.client.sadd(keys.forgotten_users, user)
        names = (keys.forgotten(user), keys.forgetting(user), keys.history(user), keys.votes(user))
        return int(self.client.fcall("afterclick_forget_user", len(names), *names, str(until_ms)))

    def retract(self, until_ms: int) -> Forgetting:
        """Retract the counted events, store the number, delete the ledger."""
        keys = self.settings.redis.keys
        past = self._past(until_ms)
        self.delete_entries(past.uncounted)  # they are rejected from now on
        report = last_forgetting(self.client, keys, self.user_id)
        if report is None or report.until_ms < until_ms:
            report = self._retract(past, until_ms)
            self._store(report)
        self.delete_entries(past.counted)
        return report

    def delete_entries(self, entries: Iterable[_LedgerEntry]) -> None:
        keys = self.settings.redis.keys
        ids: dict[str, list[str]] = {}
        for entry in entries:
            ids.setdefault(entry.position.topic, []).append(entry.event_id)
        for topic, of_topic in ids.items():
            self.client.zrem(keys.ledger(self.user_id, topic), *of_topic)
            self.client.hdel(keys.compensations(self.user_id, topic), *of_topic)

    def _past(self, until_ms: int) -> _Past:
        applied = self._applied()
        ledger = list(self._ledger(self.settings.redis.keys))
        events = self._events([entry.position for entry in ledger])
        past = [
            entry
            for entry in ledger
            if entry.position not in events or events[entry.position].event.time_ms <= until_ms
        ]
        counted: list[_LedgerEntry] = []
        uncounted: list[_LedgerEntry] = []
        for entry in past:
            is_counted = entry.position.offset <= applied[entry.position.topic_partition]
            (counted if is_counted else uncounted).append(entry)
        trimmed = self._trimmed(ledger, events, applied, until_ms)
        return _Past(counted, uncounted, events, trimmed)

    def _trimmed(
        self,
        ledger: list[_LedgerEntry],
        events: _Events,
        applied: positions.AppliedOffsets,
        until_ms: int,
    ) -> list[LogPosition]:
        """Logged events before the first one of the ledger, since the last forgetting."""
        first: dict[str, int] = {}
        for entry in ledger:
            at = entry.position
            first[at.topic] = min(at.offset, first.get(at.topic, at.offset))
        last = last_forgetting(self.client, self.settings.redis.keys, self.user_id)
        since_ms = last.until_ms if last else -1
        return [
            at
            for at, logged in events.items()
            if since_ms < logged.event.time_ms <= until_ms
            and at.offset <= applied.get(at.topic_partition, -1)
            and at.offset < first.get(at.topic, _UNLIMITED)
        ]

    def _retract(self, past: _Past, until_ms: int) -> Forgetting:
        """Retract each event once, by a token per partition.

        The effects of events that a full ledger has dropped are those of applying all of the user's
        events again. Where the ledger was deleted instead, it is not known what was counted.
        """
        found = [entry for entry in past.counted if entry.position in past.events]
        remaining = len(past.counted) - len(found)
        if past.trimmed and self._is_full(past.counted):
            found = self._apply_again([*(e.position for e in found), *past.trimmed], past.events)
        else:
            remaining += len(past.trimmed)
        for partition in {entry.position.topic_partition for entry in found}:
            entries = [entry for entry in found if entry.position.topic_partition == partition]
            pairs = [(e.effects, past.events[e.position].event) for e in entries]
            self._retract_partition(partition, until_ms, pairs)
        return Forgetting(until_ms=until_ms, events=len(found), remaining=remaining)

    def _is_full(self, entries: list[_LedgerEntry]) -> bool:
        """Whether a ledger has its full length, and may have dropped entries."""
        lengths: dict[str, int] = {}
        for entry in entries:
            lengths[entry.position.topic] = lengths.get(entry.position.topic, 0) + 1
        return max(lengths.values(), default=0) >= self.settings.stream.ledger_length

    def _apply_again(self, at: list[LogPosition], events: _Events) -> list[_LedgerEntry]:
        """The ledger, without a limit, that these events result in: in a state of their own."""
        settings = self.settings
        keys = Keys(f"{settings.redis.prefix}forgetting:")
        self._delete_scratch(keys)
        config = replace(ApplyConfig.of(settings, 1), keys=keys, ledger_length=_UNLIMITED)
        applier = Applier(config, NodeConnection(settings.redis.client_url), log_holds=no_record)
        ordered = sorted(at, key=lambda position: (events[position].record.log_ms, position))
        for (topic, number), run in groupby(ordered, lambda position: position.topic_partition):
            records = [events[position].record for position in run]
            for _ in applier.apply(topic, number, records):
                pass
        entries = list(self._ledger(keys))
        self._delete_scratch(keys)
        return entries

    def _delete_scratch(self, keys: Keys) -> None:
        topics = self.settings.kafka.topics.interactions
        names = keys.state_of_user(self.user_id, topics)
        for partition in positions.topic_partitions(self.settings.kafka):
            names += keys.state_of_partition(*partition)
        self.client.delete(*names)

    def _applied(self) -> positions.AppliedOffsets:
        partitions = positions.topic_partitions(self.settings.kafka)
        return positions.applied_offsets(self.client, self.settings.redis.keys, partitions)

    def _ledger(self, keys: Keys) -> Iterator[_LedgerEntry]:
        weights = {str(action): weight for action, weight in self.settings.stream.weights.items()}
        by_code = {code: weights[action] for action, code in vote_codes(weights).items() if code}
        for topic in self.settings.kafka.topics.interactions:
            entries: Any = self.client.zrange(
                keys.ledger(self.user_id, topic), 0, -1, withscores=True
            )
            raw: Any = self.client.hgetall(keys.compensations(self.user_id, topic))
            for event_id, score in entries:
                partition, offset, first_user_item, established = unpack_offset(score)
                compensations = decode_compensations(raw.get(event_id, b"[]"), by_code)
                position = LogPosition(topic, partition, offset)
                effects = Effects(first_user_item, established, compensations)
                yield _LedgerEntry(event_id.decode(), position, effects)

    def _events(self, wanted: list[LogPosition]) -> _Events:
        """The user's events in the archive, and those at these positions in the topics."""
        events = dict(self._archived())
        missing = set(wanted) - events.keys()
        return events | dict(_read_topics(self.settings.kafka, sorted(missing)))

    def _archived(self) -> Iterator[tuple[LogPosition, _LoggedEvent]]:
        try:
            archive = EventArchive.open(self.settings.archive)
        except MissingArchive:
            return
        for row in archive.read(f'"user_id" = {sql_text(self.user_id)}').to_pylist():
            record = record_of(row)
            position = LogPosition(row["topic"], row["partition"], row["offset"])
            yield position, _LoggedEvent(record, decode_record(record))

    def erase_rows(self, until_ms: int) -> int:
        return erase(self.settings.archive, self.user_id, until_ms)

    def _store(self, report: Forgetting) -> None:
        self.client.set(self.settings.redis.keys.erased(self.user_id), report.model_dump_json())

    def _retract_partition(
        self,
        partition: TopicPartition,
        until_ms: int,
        events: list[tuple[Effects, InteractionEvent]],
    ) -> None:
        keys = self.settings.redis.keys
        weights = {str(action): weight for action, weight in self.settings.stream.weights.items()}
        names = (
            keys.counts(*partition),
            keys.uniques(*partition),
            keys.trends(*partition),
            keys.retractions(*partition),
        )
        arguments: list[Any] = [stable_id(self.user_id, *partition, until_ms)]
        for effects, event in events:
            weight = weights.get(event.data.action, 0.0)
            for delta in effects.deltas(event.data.item_id, event.time_ms, weight):
                arguments += delta.arguments()
        self.client.fcall("afterclick_take_back", len(names), *names, *arguments)


def _read_topics(
    kafka: KafkaSettings, wanted: list[LogPosition]
) -> Iterator[tuple[LogPosition, _LoggedEvent]]:
    """The events at these positions that the topics still hold. Raises Unavailable."""
    if not wanted:
        return
    offsets: dict[TopicPartition, set[int]] = {}
    for position in wanted:
        offsets.setdefault(position.topic_partition, set()).add(position.offset)
    with KafkaLog(kafka) as kafka_log:
        held = kafka_log.ranges(*kafka.topics.interactions)
        ranges = {
            partition: OffsetRange(
                max(min(those), held[partition].begin), min(max(those) + 1, held[partition].end)
            )
            for partition, those in offsets.items()
        }
        for message in kafka_log.read(ranges):
            position = LogPosition(
                message.topic() or "", message.partition() or 0, message.offset() or 0
            )
            if position.offset not in offsets[position.topic_partition]:
                continue
            log_ms = float(message.timestamp()[1])
            record = Record(position.offset, message.key(), message.value(), log_ms)
            try:
                yield position, _LoggedEvent(record, decode_record(record))
            except BadEvent:
                continue
