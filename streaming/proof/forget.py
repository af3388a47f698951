"""Forget a user: remove every effect of their past events from the state and the log.

reads   redis    {u:<user>}:ledger:*, {p:<topic>:<partition>}:position
        delta    <archive>; topic reviews, feedback for events not archived yet
writes  redis    forgotten, {u:<user>}:*
                 {p:<topic>:<partition>}:counts, :uniques, :ratings, :trends, :retracted
                 what streaming.proof.forget_lists writes
        delta    <archive>, <archive>-impressions

The order of the steps makes a crash repairable by running them again: let Redis reject the user's
events; wait for events in flight; retract what was counted, in offset order and in calls of
bounded size, each once; store the report; delete the ledgers; erase the rows of the log.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

import orjson
import redis
from redis.client import Pipeline

from afterclick.events import SESSION, stable_id
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.forgotten import publish_forgotten
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import (
    Effects,
    Forgetting,
    LogPosition,
    TopicPartition,
    decode_compensations,
    pack_offset,
    unpack_offset,
)
from streaming import positions
from streaming.apply import CHUNK, Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.exposures import exposed_offsets
from streaming.proof.archive_log import erase
from streaming.proof.forget_lists import ListForgetter
from streaming.proof.rebuild import no_record
from streaming.proof.user_log import (
    UserLog,
    UserLogEvent,
    archived_rows_of,
    positions_of,
    read_topics,
)


@dataclass(frozen=True)
class Begun:
    """A forgetting that has begun."""

    until_ms: int
    """Event time up to which the user is forgotten."""
    archived: Mapping[str, int]
    """Offset per `topic/partition` up to which the archive had the user's events. It leaves out
    later ones."""
    exposed: Mapping[str, int] = field(default_factory=dict)
    """The same up to which lists and reactions were counted."""


@dataclass(frozen=True, slots=True)
class _LedgerEntry:
    event_id: str
    position: LogPosition
    effects: Effects


_Effects = Iterable[tuple[UserLogEvent, Effects]]


@dataclass(frozen=True)
class _Past:
    """What is known of a user's events up to a time."""

    since_ms: int
    """Event time of the last forgetting."""
    until_ms: int
    applied: positions.AppliedOffsets
    counted: dict[LogPosition, _LedgerEntry]
    uncounted: list[_LedgerEntry]
    """In the ledger, but not applied to the partition."""
    missing: int
    """Counted events of the ledger that no log has."""
    is_full: bool
    """A ledger has its full length, and may have dropped entries."""
    first: dict[str, float]
    """Topic → offset of the first entry in its ledger, also of a later event."""
    log: UserLog
    """Also later events."""

    def is_trimmed(self, logged: UserLogEvent) -> bool:
        """Whether it was counted, and the ledgers no longer have it."""
        at = logged.position
        return (
            self.since_ms < logged.event.time_ms <= self.until_ms
            and at.offset <= self.applied.get(at.topic_partition, -1)
            and at.offset < self.first.get(at.topic, math.inf)
        )


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
            begun = self.begin(until_ms)
            finished_ms = begun.until_ms
            if finished_ms > until_ms:  # every other reader of the log must know
                publish_forgotten(self.settings.kafka, self.user_id, finished_ms)
            settle()
            past = self._past(begun)
            for session in past.log.sessions:
                self._forget_session(session, finished_ms, settle)
            self._forget_lists(begun, past)
            retracted = self.retract(past)
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
        self.client.set(self.settings.redis.keys.erased(self.user_id), report.model_dump_json())
        return report

    def begin(self, until_ms: int) -> Begun:
        """Reject the user's events from now on; returns the forgetting to finish.

        Its time is that of the user's newest applied event, if that is later than `until_ms`.
        """
        keys, user = self.settings.redis.keys, self.user_id
        offsets = {"archived": self._archived_offsets(), "exposed": self._exposed_offsets()}
        self.client.sadd(keys.forgotten_users, user)
        names = (keys.forgotten(user), keys.forgetting(user), keys.history(user), keys.votes(user))
        reply: Any = self.client.fcall(
            "afterclick_forget_user", len(names), *names, str(until_ms), orjson.dumps(offsets)
        )
        until, _, begun = reply.partition(b" ")
        known = orjson.loads(begun or b"{}")
        if "archived" not in known:  # an earlier version began it
            known = {"archived": known}
        return Begun(int(until), **known)

    def _exposed_offsets(self) -> dict[str, int]:
        with KafkaLog(self.settings.kafka) as log:
            partitions = log.partitions(*self.settings.kafka.topics.logged)
        keys = self.settings.redis.keys
        offsets = exposed_offsets(self.client, keys, partitions)
        return {str(name): offset for name, offset in offsets.items()}

    def _forget_session(self, session: str, until_ms: int, settle: Callable[[], None]) -> None:
        """Forget a session whose events the user got at login: they are the user's."""
        if self.user_id.startswith(SESSION):  # a session belongs to users only
            return
        publish_forgotten(self.settings.kafka, session, until_ms)
        Forgetter(self.settings, self.client, session).complete(until_ms, settle)

    def _forget_lists(self, begun: Begun, past: _Past) -> None:
        exposed = {TopicPartition.parse(name): at for name, at in begun.exposed.items()}
        lists = ListForgetter(self.settings, self.client, self.user_id, begun.until_ms, exposed)
        lists.retract(past.log)

    def retract(self, past: _Past) -> Forgetting:
        """Retract the counted events, store the number, delete the ledger."""
        report = last_forgetting(self.client, self.settings.redis.keys, self.user_id)
        if report is None or report.until_ms < past.until_ms:
            report = self._retract(past)
            with self.client.pipeline() as step:  # uncounted events are rejected from now on
                self._delete(step, past.uncounted)
                step.set(self.settings.redis.keys.erased(self.user_id), report.model_dump_json())
                step.execute()
        self.delete_entries(past.counted.values())
        return report

    def delete_entries(self, entries: Iterable[_LedgerEntry]) -> None:
        with self.client.pipeline(transaction=False) as commands:
            self._delete(commands, entries)
            commands.execute()

    def _delete(self, commands: Pipeline, entries: Iterable[_LedgerEntry]) -> None:
        keys, user = self.settings.redis.keys, self.user_id
        for entry in entries:
            commands.zrem(keys.ledger(user, entry.position.topic), entry.event_id)
            commands.hdel(keys.compensations(user, entry.position.topic), entry.event_id)

    def _past(self, begun: Begun) -> _Past:
        applied, keys = self._applied(), self.settings.redis.keys
        topics = self.settings.kafka.topics.interactions
        ledger = [entry for topic in topics for entry in self._ledger(keys, topic)]
        log = self._log(ledger, begun, applied)
        known = {entry.position for entry in ledger}
        times = {e.position: e.event.time_ms for e in log if e.position in known}
        past = [entry for entry in ledger if times.get(entry.position, -1) <= begun.until_ms]
        counted: dict[LogPosition, _LedgerEntry] = {}
        uncounted: list[_LedgerEntry] = []
        for entry in past:
            if entry.position.offset <= applied[entry.position.topic_partition]:
                counted[entry.position] = entry
            else:
                uncounted.append(entry)
        lengths = Counter(entry.position.topic for entry in ledger)
        last = last_forgetting(self.client, keys, self.user_id)
        return _Past(
            since_ms=last.until_ms if last else -1,
            until_ms=begun.until_ms,
            applied=applied,
            counted=counted,
            uncounted=uncounted,
            missing=len(counted.keys() - times.keys()),
            is_full=max(lengths.values(), default=0) >= self.settings.stream.ledger_length,
            first=_first_offsets(ledger),
            log=log,
        )

    def _retract(self, past: _Past) -> Forgetting:
        """Retract each event once.

        The effects of events that a full ledger has dropped are those of applying all of the user's
        events again. Where the ledger was deleted instead, it is not known what was counted.
        """
        remaining, counted = past.missing, past.counted
        if past.is_full and any(map(past.is_trimmed, past.log)):
            effects = self._apply_again(past)
        else:
            remaining += sum(map(past.is_trimmed, past.log))
            effects = ((e, counted[e.position].effects) for e in past.log if e.position in counted)
        events = self._retract_all(effects, past.until_ms)
        return Forgetting(until_ms=past.until_ms, events=events, remaining=remaining)

    def _apply_again(self, past: _Past) -> _Effects:
        """The effects of the counted and the trimmed events in a state of their own."""
        settings = self.settings
        keys = Keys(f"{settings.redis.prefix}forgetting:")
        self._delete_scratch(keys)
        set_aside = positions.set_aside_records(self.client, settings.redis.keys)
        config = replace(ApplyConfig.of(settings, 1), keys=keys, set_aside=set_aside)
        applier = Applier(config, NodeConnection(settings.redis.client_url), log_holds=no_record)
        events = (e for e in past.log if e.position in past.counted or past.is_trimmed(e))
        for partition, run in groupby(events, lambda e: e.position.topic_partition):
            while chunk := list(islice(run, CHUNK)):
                records = [logged.record for logged in chunk]
                for _ in applier.apply(partition.topic, partition.partition, records):
                    pass
                first = pack_offset(partition.partition, chunk[0].position.offset)
                ledger = self._ledger(keys, partition.topic, first)
                effects = {entry.position: entry.effects for entry in ledger}
                yield from ((e, effects[e.position]) for e in chunk if e.position in effects)
                # not needed: the state of one user stays small
                kinds = (keys.counts, keys.uniques, keys.ratings, keys.trends)
                self.client.unlink(*(key(*partition) for key in kinds))
        self._delete_scratch(keys)

    def _delete_scratch(self, keys: Keys) -> None:
        topics = self.settings.kafka.topics.interactions
        names = keys.state_of_user(self.user_id, topics)
        for partition in positions.topic_partitions(self.settings.kafka):
            names += keys.state_of_partition(*partition)
        self.client.unlink(*names)

    def _applied(self) -> positions.AppliedOffsets:
        partitions = positions.topic_partitions(self.settings.kafka)
        return positions.applied_offsets(self.client, self.settings.redis.keys, partitions)

    def _ledger(self, keys: Keys, topic: str, first: float = 0) -> Iterator[_LedgerEntry]:
        """The entries from a score of `pack_offset` on."""
        signals = self.settings.stream.signals
        key, start = keys.ledger(self.user_id, topic), f"{first:.0f}"
        while True:
            entries: Any = self.client.zrange(
                key, start, "+inf", byscore=True, offset=0, num=CHUNK, withscores=True
            )
            if not entries:
                return
            ids = [event_id for event_id, _ in entries]
            raw: Any = self.client.hmget(keys.compensations(self.user_id, topic), ids)
            for (event_id, score), encoded in zip(entries, raw, strict=True):
                partition, offset, first_user_item, established = unpack_offset(score)
                compensations = decode_compensations(encoded or b"[]", signals)
                position = LogPosition(topic, partition, offset)
                effects = Effects(first_user_item, established, compensations)
                yield _LedgerEntry(event_id.decode(), position, effects)
            start = f"({score:.0f}"

    def _log(
        self, ledger: list[_LedgerEntry], begun: Begun, applied: positions.AppliedOffsets
    ) -> UserLog:
        """The user's events in the archive, and those that it may lack in the topics."""
        rows = archived_rows_of(self.settings.archive, self.user_id)
        starts = {name: begun.archived.get(str(name), -1) + 1 for name in applied}
        exposed = exposed_offsets(self.client, self.settings.redis.keys, applied)
        ends = {name: max(offset, exposed[name]) + 1 for name, offset in applied.items()}
        for position in {entry.position for entry in ledger}.difference(positions_of(rows)):
            name = position.topic_partition
            starts[name] = min(starts[name], position.offset)
            ends[name] = max(ends[name], position.offset + 1)
        ranges = {name: OffsetRange(start, ends[name]) for name, start in starts.items()}
        return UserLog(rows, list(read_topics(self.settings.kafka, ranges, self.user_id)))

    def _archived_offsets(self) -> dict[str, int]:
        try:
            archive = EventArchive.open(self.settings.archive)
        except MissingArchive:
            return {}
        partitions = positions.topic_partitions(self.settings.kafka)
        return {str(name): offset for name, offset in archive.offsets(partitions).items()}

    def erase_rows(self, until_ms: int) -> int:
        uris = self.settings.archive, self.settings.impression_archive
        return sum(erase(uri, self.user_id, until_ms) for uri in uris)

    def _retract_all(self, effects: _Effects, until_ms: int) -> int:
        """Retract events in calls of about `CHUNK` deltas; returns the number of events."""
        signals, count = self.settings.stream.signals, 0
        for partition, run in groupby(effects, lambda pair: pair[0].position.topic_partition):
            deltas: list[tuple[str | int, ...]] = []
            for logged, its_effects in run:
                if len(deltas) >= CHUNK:
                    self.retract_deltas(partition, until_ms, deltas)
                    deltas = []
                count += 1
                event, offset = logged.event, logged.position.offset
                vote, item_id = signals.vote_of(event), event.data.item_id
                found = its_effects.deltas(item_id, event.time_ms, vote.weight, vote.stars)
                deltas += [(offset, *delta.arguments()) for delta in found]
            self.retract_deltas(partition, until_ms, deltas)
        return count

    def retract_deltas(
        self, partition: TopicPartition, until_ms: int, deltas: list[tuple[str | int, ...]]
    ) -> None:
        """Retract deltas of whole events, in offset order, unless they were retracted before."""
        keys = self.settings.redis.keys
        names = (
            keys.counts(*partition),
            keys.uniques(*partition),
            keys.trends(*partition),
            keys.retractions(*partition),
            keys.ratings(*partition),
        )
        token = stable_id(self.user_id, *partition, until_ms)
        arguments: Any = (token, *(value for delta in deltas for value in delta))
        self.client.fcall("afterclick_take_back", len(names), *names, *arguments)


def _first_offsets(ledger: list[_LedgerEntry]) -> dict[str, float]:
    """Topic → offset of its first entry."""
    first: dict[str, float] = {}
    for entry in ledger:
        at = entry.position
        first[at.topic] = min(at.offset, first.get(at.topic, math.inf))
    return first
