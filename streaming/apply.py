"""Apply records of one Kafka partition, in offset order, to the state. Both triggers call this alone.

reads   redis  {u:<user>}:ledger:<topic>, :votes, :forgotten, {p:<topic>:<partition>}:position
writes  redis  {u:<user>}:history, :votes, :ledger:<topic>, :corrections:<topic>
        redis  {p:<topic>:<partition>}:position, :announced, :counts, :uniques, :trends
        topic  <topic>.dlq, by `bury`
        (returned, to be sent) topic state-changes
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from afterclick.errors import BadEvent
from afterclick.events import InteractionEvent, decode_interaction
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import (
    Compensation,
    Effect,
    Effects,
    HistoryEntry,
    StateChange,
    decode_compensations,
    pack_offset,
    vote_codes,
)
from afterclick.topics import dlq
from afterclick.trends import DAY_MS
from streaming.connection import Command, Connection

CHUNK = 500
"""Records per server-side call: some milliseconds, so that readers of the same server hardly wait."""
_DUPLICATE, _FORGOTTEN = ord("0"), ord("5")


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record. `log_ms` is its timestamp, milliseconds since the epoch."""

    offset: int
    key: bytes | None
    value: bytes | None
    log_ms: float


@dataclass(frozen=True, slots=True)
class Output:
    """A record for the Kafka sink."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What applying depends on, in a form that travels to Spark's workers."""

    url: str
    cluster: bool
    keys: Keys
    topics: tuple[str, ...]
    state_changes: str
    state_changes_partitions: int
    weights: dict[str, float]
    history_length: int
    ledger_length: int
    ahead_ms: float
    age_ms: int
    """From when on, after their first event, a user is established."""
    fence: bool = True
    fault: str | None = None

    @classmethod
    def of(cls, settings: Settings, state_changes_partitions: int) -> Plan:
        stream, topics = settings.stream, settings.kafka.topics
        return cls(
            url=settings.redis.url,
            cluster=settings.redis.cluster,
            keys=settings.redis.keys,
            topics=topics.interactions,
            state_changes=topics.state_changes,
            state_changes_partitions=state_changes_partitions,
            weights={str(action): weight for action, weight in stream.weights.items()},
            history_length=stream.history_length,
            ledger_length=stream.ledger_length,
            ahead_ms=stream.ahead_s * 1000,
            age_ms=round(stream.established_days * DAY_MS),
            fence=stream.fence,
            fault=stream.fault,
        )


@dataclass(slots=True)
class _Step:
    """One event on its way through the two steps."""

    record: Record
    event: InteractionEvent
    time_ms: int
    weight: float
    first: bool = False
    novel: bool = False
    established: bool = False
    forgotten: bool = False
    corrections: tuple[Compensation, ...] = ()

    def learn(self, code: int) -> None:
        """What step 1 has answered."""
        self.forgotten = code == _FORGOTTEN
        self.first = code not in (_DUPLICATE, _FORGOTTEN)
        flags = code - ord("1") if self.first else 0
        self.novel, self.established = bool(flags & 1), bool(flags & 2)

    def effects(self) -> Iterator[str | bytes | int]:
        """Its deltas, as arguments of step 2."""
        data, effects = self.event.data, Effects(self.novel, self.established, self.corrections)
        for delta in effects.deltas(data.item_id, self.time_ms, self.weight):
            yield from (self.record.offset, *delta.arguments())


@dataclass
class Applier:
    """Applies records to the state by the two-step protocol: each event takes effect once.

    `bury` puts dead letters on their topic and returns when they are there. It is called before the position
    moves past them, so that a crash may repeat a dead letter but never loses one. Without `bury` they are
    among the outputs.
    """

    plan: Plan
    connection: Connection
    bury: Callable[[Sequence[Output]], None] | None = None
    announced: int = -1
    """Offset up to which the outputs of this partition are known to be delivered; -1: nobody can say."""
    _chunks: int = field(default=0, init=False)
    _codes: dict[str, str] = field(init=False)
    _weights: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self._codes = vote_codes(self.plan.weights)
        self._weights = {
            code: self.plan.weights[action] for action, code in self._codes.items() if code
        }

    def apply(self, topic: str, partition: int, records: Sequence[Record]) -> Iterator[Output]:
        """Apply records in the order of their offsets; yields an output per record, but for buried ones.

        Raises redis.RedisError where the server fails: applying the same records again is safe.
        """
        for start in range(0, len(records), CHUNK):
            yield from self._chunk(topic, partition, records[start : start + CHUNK])

    def _chunk(self, topic: str, partition: int, records: Sequence[Record]) -> Iterator[Output]:
        read_ms = time.time() * 1000
        steps: list[_Step | str] = [self._read(record) for record in records]
        events = [step for step in steps if isinstance(step, _Step)]
        self._apply_users(topic, partition, events, records[0].offset)
        self._fault_point()
        if self.bury:
            self.bury(
                [
                    dead_letter(topic, partition, record, step)
                    for record, step in zip(records, steps, strict=True)
                    if isinstance(step, str)
                ]
            )
        position = self._apply_partition(topic, partition, events, records)
        applied_ms = time.time() * 1000
        for record, step in zip(records, steps, strict=True):
            if isinstance(step, _Step):
                yield self._change(topic, partition, step, position, (read_ms, applied_ms))
            elif self.bury is None:
                yield dead_letter(topic, partition, record, step)

    def _read(self, record: Record) -> _Step | str:
        """The event in a record, or what is wrong with it."""
        try:
            event = decode_interaction(record.value)
        except BadEvent as error:
            if self.plan.fault == "no-dead-letters":
                raise
            return str(error)
        if event.time_ms > record.log_ms + self.plan.ahead_ms:
            return "time: the event is dated too far after it reached the log"
        return _Step(record, event, event.time_ms, self.plan.weights.get(event.data.action, 0.0))

    def _apply_users(
        self, topic: str, partition: int, events: list[_Step], first_offset: int
    ) -> None:
        """Step 1, a call per user, in one round trip: what each event is, and what it corrects."""
        users: dict[str, list[_Step]] = {}
        for step in events:
            users.setdefault(step.event.data.user_id, []).append(step)
        floor = pack_offset(partition, first_offset)
        commands = [self._user_command(topic, partition, floor, *user) for user in users.items()]
        answers = self.connection.call(commands) if commands else []
        for steps, (codes, *corrected) in zip(users.values(), answers, strict=True):
            for step, code in zip(steps, codes, strict=True):
                step.learn(code)
            for number, raw in zip(corrected[::2], corrected[1::2], strict=True):
                steps[number].corrections = decode_compensations(raw, self._weights)

    def _user_command(
        self, topic: str, partition: int, floor: int, user_id: str, steps: list[_Step]
    ) -> Command:
        plan, keys = self.plan, self.plan.keys
        others = [keys.ledger(user_id, other) for other in plan.topics if other != topic]
        arguments: list[str | bytes | int] = [
            plan.history_length,
            plan.ledger_length,
            floor,
            plan.age_ms,
        ]
        for step in steps:
            event = step.event
            entry = HistoryEntry(
                event.id, event.data.item_id, event.data.action, event.data.rating, step.time_ms
            )
            arguments += (
                event.id,
                pack_offset(partition, step.record.offset),
                entry.member(),
                step.time_ms,
            )
            arguments += (event.data.item_id, self._codes.get(event.data.action, ""))
        own = (keys.history(user_id), keys.votes(user_id), keys.ledger(user_id, topic))
        names = (*own, keys.compensations(user_id, topic), keys.forgotten(user_id), *others)
        return ("FCALL", "afterclick_apply_user", len(names), *names, *arguments)

    def _apply_partition(
        self, topic: str, partition: int, events: list[_Step], records: Sequence[Record]
    ) -> int:
        """Step 2: count what step 1 called first and move the position. Returns the position before."""
        plan, keys = self.plan, self.plan.keys
        arguments: list[str | bytes | int] = [
            "1" if plan.fence else "0",
            records[0].offset - 1,
            records[-1].offset,
            self.announced,
        ]
        for step in events:
            if step.first:
                arguments += step.effects()
        names = (
            keys.applied_offset(topic, partition),
            keys.counts(topic, partition),
            keys.uniques(topic, partition),
            keys.trends(topic, partition),
            keys.published_offset(topic, partition),
        )
        (position,) = self.connection.call(
            [("FCALL", "afterclick_apply_partition", len(names), *names, *arguments)]
        )
        return int(position)

    def _change(
        self, topic: str, partition: int, step: _Step, position: int, stamps: tuple[float, float]
    ) -> Output:
        """The record on `state-changes` that says what an event did."""
        data, record = step.event.data, step.record
        produced = step.event.producedtime
        effect = Effect.FORGOTTEN if step.forgotten else Effect.DUPLICATE
        if step.first:
            effect = (
                Effect.REPLAYED if self.plan.fence and record.offset <= position else Effect.APPLIED
            )
        change = StateChange(
            user_id=data.user_id,
            item_id=data.item_id,
            action=data.action,
            event_id=step.event.id,
            rating=data.rating,
            impression_id=data.impression_id,
            time_ms=step.time_ms,
            topic=topic,
            partition=partition,
            offset=record.offset,
            effect=effect,
            weight=step.weight,
            first_user_item=step.novel,
            established=step.established,
            compensations=step.corrections,
            produced_ms=produced.timestamp() * 1000 if produced else None,
            log_ms=record.log_ms,
            read_ms=stamps[0],
            applied_ms=stamps[1],
        )
        # a source partition's changes stay in one partition, so that a reader meets them in offset order
        target = partition % self.plan.state_changes_partitions
        return Output(self.plan.state_changes, data.user_id.encode(), change.encode(), target)

    def _fault_point(self) -> None:
        """Die as by `kill -9` between the steps, where a fault test has armed it."""
        self._chunks += 1
        if self.plan.fault == f"between-steps:{self._chunks}":
            os.kill(os.getpid(), signal.SIGKILL)


def dead_letter(topic: str, partition: int, record: Record, error: str) -> Output:
    """The record for the dead-letter topic: raw bytes, same key, headers that say why."""
    headers = {"topic": topic, "partition": partition, "offset": record.offset, "stage": "decode"}
    encoded = tuple((name, str(value).encode()) for name, value in headers.items())
    headers_out = (*encoded, ("error", error.encode()))
    return Output(dlq(topic), record.key, record.value, headers=headers_out)
