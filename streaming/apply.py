"""Apply records of one Kafka partition, in offset order, to the state. Both triggers and rebuild
use it.

reads   redis  {u:<user>}:ledger:<topic>, :votes, :forgotten, {p:<topic>:<partition>}:position
        redis  lease
writes  redis  {u:<user>}:history, :votes, :ledger:<topic>, :corrections:<topic>
        redis  {p:<topic>:<partition>}:position, :announced, :counts, :uniques, :ratings, :trends,
        :attempt
        topic  <topic>.dlq, by `send_to_dlq`
        (returned, to be sent) topic state-changes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from afterclick.errors import BadEvent
from afterclick.events import SESSION, InteractionEvent
from afterclick.io.kafka_log import OffsetRange
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.signals import EventVote, Signals
from afterclick.state import (
    LATE_ITEMS,
    Compensation,
    Effect,
    Effects,
    HistoryEntry,
    LogPosition,
    StateChange,
    TopicPartition,
    counted_weight,
    decode_compensations,
    pack_offset,
)
from afterclick.trends import DAY_MS
from streaming.connection import Command, Connection
from streaming.fault_points import NO_FAULTS, FaultPoints
from streaming.lease import NO_LEASE, Lease
from streaming.records import MAX_CHANGE_BYTES, Output, Record, dead_letter, decode_record

CHUNK = 500
"""Records per server-side call: other clients of the server wait a few milliseconds."""
_USERS = 50
"""Users per server-side call of step 1, for the same reason."""
_DUPLICATE, _FORGOTTEN = ord("0"), ord("5")
_NO_EFFECTS = Effects()


@dataclass(frozen=True)
class ApplyConfig:
    """Picklable configuration for Spark workers."""

    url: str
    cluster: bool
    keys: Keys
    topics: tuple[str, ...]
    state_changes: str
    state_changes_partitions: int
    signals: Signals
    history_length: int
    ledger_length: int
    max_ahead_ms: float
    """An event dated further after its arrival in the log becomes a dead letter."""
    established_ms: int
    """Time after the first event from which a user is established."""
    max_voted_items: int
    """Items that a user can vote on."""
    session_ttl_ms: int
    """Time without events after which the state of a session expires."""
    user_ttl_ms: int
    """The same for other users."""
    faults: FaultPoints = NO_FAULTS
    lease: Lease = NO_LEASE
    """Redis refuses the writes once this lease is lost."""
    watched: bool = False
    """Workers say with which record they begin, for `streaming.watch`."""
    careful: frozenset[TopicPartition] = frozenset()
    """Partitions to apply record by record, to find the one at which they stall."""
    set_aside: frozenset[LogPosition] = frozenset()
    """Records at which their partition stalled: they become dead letters."""

    @classmethod
    def of(cls, settings: Settings, state_changes_partitions: int) -> ApplyConfig:
        stream, topics = settings.stream, settings.kafka.topics
        return cls(
            url=settings.redis.client_url,
            cluster=settings.redis.cluster,
            keys=settings.redis.keys,
            topics=topics.interactions,
            state_changes=topics.state_changes,
            state_changes_partitions=state_changes_partitions,
            signals=stream.signals,
            history_length=stream.history_length,
            ledger_length=stream.ledger_length,
            max_ahead_ms=stream.ahead_s * 1000,
            established_ms=round(stream.established_days * DAY_MS),
            max_voted_items=stream.max_voted_items,
            session_ttl_ms=round(stream.session_ttl_days * DAY_MS),
            user_ttl_ms=round(stream.user_ttl_days * DAY_MS),
            faults=FaultPoints.of(stream),
        )


@dataclass(slots=True)
class _Step:
    """One event on its way through the two steps."""

    record: Record
    event: InteractionEvent
    time_ms: int
    vote: EventVote
    first: bool = False
    """This is the position that first applied the event id."""
    forgotten: bool = False
    effects: Effects = _NO_EFFECTS

    def resolve(self, code: int, compensations: tuple[Compensation, ...]) -> None:
        """Take over the reply of step 1."""
        self.forgotten = code == _FORGOTTEN
        self.first = code not in (_DUPLICATE, _FORGOTTEN)
        flags = code - ord("1") if self.first else 0
        self.effects = Effects(bool(flags & 1), bool(flags & 2), compensations)

    def deltas(self) -> Iterator[str | int]:
        """The arguments of step 2."""
        item_id = self.event.data.item_id
        vote = self.vote
        for delta in self.effects.deltas(item_id, self.time_ms, vote.weight, vote.stars):
            yield self.record.offset
            yield from delta.arguments()


_User = tuple[str, list[_Step]]
"""A user id, and the user's events of a chunk in log order."""


@dataclass
class Applier:
    """Applies records to the state by the two-step protocol: each event takes effect once.

    `send_to_dlq` returns when its records are acknowledged. It is called before the applied offset
    passes them: a crash may repeat a dead letter, but never loses one. Without it, dead letters are
    part of the outputs.
    """

    config: ApplyConfig
    connection: Connection
    send_to_dlq: Callable[[Sequence[Output]], None] | None = None
    log_holds: Callable[[TopicPartition, OffsetRange], bool] | None = None
    """Whether the log holds a record at any of these offsets. Without it, every offset counts."""
    published_offset: int = -1
    """Offset up to which the outputs of this partition were delivered; -1: unknown."""
    _chunks: int = field(default=0, init=False)
    _last: dict[TopicPartition, int] = field(default_factory=dict, init=False)
    """Offset of the last record that this applier has applied."""
    _changed: dict[TopicPartition, int] = field(default_factory=dict, init=False)
    """Offset of the last state change that it has returned."""

    def apply(self, topic: str, partition: int, records: Sequence[Record]) -> Iterator[Output]:
        """Apply records in offset order; yields one output per record (none for one sent to the
        DLQ).

        Raises redis.RedisError; applying the same records again is safe.
        """
        name = TopicPartition(topic, partition)
        size = 1 if name in self.config.careful else CHUNK
        for start in range(0, len(records), size):
            yield from self._apply_chunk(name, records[start : start + size])

    def _apply_chunk(
        self, partition: TopicPartition, records: Sequence[Record]
    ) -> Iterator[Output]:
        read_ms = time.time() * 1000
        config = self.config
        if config.watched and (partition not in self._last or partition in config.careful):
            self._announce(partition, records[0].offset, read_ms)
        steps: list[_Step | str] = [self._decode(partition, record) for record in records]
        events = [step for step in steps if isinstance(step, _Step)]
        rejected = self._apply_users(partition, events, records[0].offset)
        if rejected:
            steps = [_reason(step, rejected) for step in steps]
            events = [step for step in steps if isinstance(step, _Step)]
        self._chunks += 1
        self.config.faults.between_steps(self._chunks)
        if self.send_to_dlq:
            self.send_to_dlq(
                [
                    dead_letter(*partition, record, step)
                    for record, step in zip(records, steps, strict=True)
                    if isinstance(step, str)
                ]
            )
        applied = self._apply_partition(partition, events, records)
        self._last[partition] = records[-1].offset
        timestamps = (read_ms, time.time() * 1000)
        for record, step in zip(records, steps, strict=True):
            if isinstance(step, _Step):
                yield self._change(partition, step, applied, timestamps)
            elif self.send_to_dlq is None:
                yield dead_letter(*partition, record, step)

    def _announce(self, partition: TopicPartition, offset: int, now_ms: float) -> None:
        """Say that a worker begins here: what it does not finish is a stall, not a slow start."""
        value = f"{offset} {now_ms:.0f}"
        self.connection.call([("SET", self.config.keys.attempt(*partition), value)])

    def _decode(self, partition: TopicPartition, record: Record) -> _Step | str:
        """The record's event, or the reason to reject it."""
        aside = self.config.set_aside
        if aside and LogPosition(*partition, record.offset) in aside:
            return "stalled: the partition did not get past this record"
        try:
            event = decode_record(record, self.config.max_ahead_ms)
            step = _Step(record, event, event.time_ms, self.config.signals.vote_of(event))
        except BadEvent as error:
            self.config.faults.on_malformed(error)
            return str(error)
        except Exception as error:  # no record may stop the ones behind it
            return f"{type(error).__name__}: {error}"
        self.config.faults.on_event(event.data.user_id)
        return step

    def _apply_users(
        self, partition: TopicPartition, events: list[_Step], first_offset: int
    ) -> dict[str, str]:
        """Step 1, in one round trip: resolve each event and its compensations.

        Returns the users whose state cannot be changed, with the reason.
        """
        users: dict[str, list[_Step]] = {}
        for step in events:
            users.setdefault(step.event.data.user_id, []).append(step)
        floor, signals = pack_offset(partition.partition, first_offset), self.config.signals
        groups = list(users.items())
        rejected = {}
        replies = self._call_users(partition, floor, groups)
        for (user_id, steps), reply in zip(groups, replies, strict=True):
            if isinstance(reply, redis.ResponseError):
                rejected[user_id] = f"state of the user: {reply}"
                continue
            codes, *pairs = reply
            compensated = dict(zip(pairs[::2], pairs[1::2], strict=True))
            for number, (step, code) in enumerate(zip(steps, codes, strict=True)):
                raw = compensated.get(number)
                step.resolve(code, decode_compensations(raw, signals) if raw else ())
        return rejected

    def _call_users(self, partition: TopicPartition, floor: int, users: list[_User]) -> list[Any]:
        """The reply for each user: an error where the state of a user cannot be changed."""
        commands = [
            self._users_command(partition, floor, users[start : start + _USERS])
            for start in range(0, len(users), _USERS)
        ]
        try:
            replies = self.connection.call(commands) if commands else []
            return [reply for each in replies for reply in each]
        except redis.ResponseError as error:
            if not _is_about_data(error):
                raise
            if len(users) == 1:
                return [error]
        return [reply for user in users for reply in self._call_users(partition, floor, [user])]

    def _users_command(self, partition: TopicPartition, floor: int, users: list[_User]) -> Command:
        config, keys, topic = self.config, self.config.keys, partition.topic
        others = [other for other in config.topics if other != topic]
        names: list[str] = [config.lease.key]
        arguments: list[str | bytes | int] = [
            config.lease.owner,
            config.history_length,
            config.ledger_length,
            floor,
            config.established_ms,
            config.max_voted_items,
            LATE_ITEMS,
            5 + 2 * len(others),
        ]
        for user_id, steps in users:
            names += (
                keys.history(user_id),
                keys.votes(user_id),
                keys.ledger(user_id, topic),
                keys.compensations(user_id, topic),
                keys.forgotten(user_id),
            )
            for other in others:
                names += (keys.ledger(user_id, other), keys.compensations(user_id, other))
            is_session = user_id.startswith(SESSION)
            arguments += (config.session_ttl_ms if is_session else config.user_ttl_ms, len(steps))
            for step in steps:
                event, data, record = step.event, step.event.data, step.record
                entry = HistoryEntry(event.id, data.item_id, data.action, data.rating, step.time_ms)
                position = pack_offset(partition.partition, record.offset)
                arguments += (event.id, position, entry.member(), step.time_ms)
                arguments += (data.item_id, step.vote.code)
                arguments += (event.trusted_ms(record.log_ms), round(record.log_ms))
        return ("FCALL", "afterclick_apply_users", len(names), *names, *arguments)

    def _apply_partition(
        self, partition: TopicPartition, events: list[_Step], records: Sequence[Record]
    ) -> int:
        """Step 2: count first events and advance the applied offset. Returns the offset before.

        Offsets without a record are normal: transaction markers, compacted records. Between two
        records of one task nothing is missing; before the first one, the log is asked.
        """
        first, last = records[0].offset, self._last.get(partition)
        before = first - 1 if last is None or last >= first else last
        try:
            return self._count(partition, events, records[-1].offset, before)
        except redis.ResponseError as error:
            applied = _applied_at_gap(error)
            if applied is None or self.log_holds is None:
                raise
            if self.log_holds(partition, OffsetRange(applied + 1, first)):
                raise
            return self._count(partition, events, records[-1].offset, applied)

    def _count(self, partition: TopicPartition, events: list[_Step], last: int, before: int) -> int:
        keys = self.config.keys
        arguments: list[str | bytes | int] = [
            "1" if self.config.faults.fence else "0",
            before,
            last,
            self.published_offset,
            self.config.lease.owner,
        ]
        for step in events:
            if step.first:
                arguments += step.deltas()
        names = (
            keys.applied_offset(*partition),
            keys.counts(*partition),
            keys.uniques(*partition),
            keys.trends(*partition),
            keys.published_offset(*partition),
            self.config.lease.key,
            keys.ratings(*partition),
        )
        (applied,) = self.connection.call(
            [("FCALL", "afterclick_apply_partition", len(names), *names, *arguments)]
        )
        return int(applied)

    def _change(
        self,
        partition: TopicPartition,
        step: _Step,
        applied_before: int,
        timestamps: tuple[float, float],
    ) -> Output:
        """The `state-changes` record of an event."""
        data, record = step.event.data, step.record
        no_change_since = applied_before if applied_before < record.offset else None
        produced = step.event.producedtime
        change = StateChange(
            user_id=data.user_id,
            item_id=data.item_id,
            action=data.action,
            event_id=step.event.id,
            rating=data.rating,
            impression_id=data.impression_id,
            time_ms=step.time_ms,
            topic=partition.topic,
            partition=partition.partition,
            offset=record.offset,
            previous_offset=self._changed.get(partition, no_change_since),
            effect=self._effect(step, applied_before),
            is_copy=step.event.is_copy,
            weight=counted_weight(step.vote.weight, step.effects.established),
            stars=step.vote.stars or None,
            first_user_item=step.effects.first_user_item,
            established=step.effects.established,
            compensations=step.effects.compensations,
            produced_ms=produced.timestamp() * 1000 if produced else None,
            log_ms=record.log_ms,
            read_ms=timestamps[0],
            applied_ms=timestamps[1],
        )
        self._changed[partition] = record.offset
        value = change.encode()
        if len(value) > MAX_CHANGE_BYTES:
            value = change.without_compensations().encode()
        # one target partition per source partition, so that readers get changes in offset order
        target = partition.partition % self.config.state_changes_partitions
        return Output(self.config.state_changes, data.user_id.encode(), value, target)

    def _effect(self, step: _Step, applied_before: int) -> Effect:
        if not step.first:
            return Effect.FORGOTTEN if step.forgotten else Effect.DUPLICATE
        replayed = self.config.faults.fence and step.record.offset <= applied_before
        return Effect.REPLAYED if replayed else Effect.APPLIED


def _applied_at_gap(error: redis.ResponseError) -> int | None:
    """The applied offset that step 2 found to precede the records; None: another error."""
    text = str(error)
    return int(text.rsplit(" ", 1)[1]) if text.startswith("GAP ") else None


def _is_about_data(error: redis.ResponseError) -> bool:
    """Whether a function failed on a key of this user: the server works, repeating is no use."""
    text = str(error)
    return text.startswith("WRONGTYPE") or (text.startswith("ERR") and "script: " in text)


def _reason(step: _Step | str, rejected: dict[str, str]) -> _Step | str:
    """The step, or the reason to reject the events of its user."""
    return step if isinstance(step, str) else rejected.get(step.event.data.user_id, step)
