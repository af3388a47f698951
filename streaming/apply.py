"""Apply records of one Kafka partition, in offset order, to the state. Both triggers call this alone.

reads   redis  {u:<user>}:ledger:<topic>, :forgotten, {p:<topic>:<partition>}:position
writes  redis  {u:<user>}:history, :items, :ledger:<topic>
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
from afterclick.keys import Keys
from afterclick.settings import Settings
from afterclick.state import Effect, HistoryEntry, StateChange, place
from afterclick.topics import dlq
from streaming.connection import Command, Connection

CHUNK = 500
"""Records per server-side call: some milliseconds, so that readers of the same server hardly wait."""
_FORGOTTEN = ord("3")
_ANSWERS = {
    ord("0"): (False, False),
    ord("1"): (True, False),
    ord("2"): (True, True),
    _FORGOTTEN: (False, False),
}


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
    forgotten: bool = False


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

    def _apply_users(self, topic: str, partition: int, events: list[_Step], first_offset: int) -> None:
        """Step 1, a call per user, in one round trip: sets `first` and `novel` of each event."""
        users: dict[str, list[_Step]] = {}
        for step in events:
            users.setdefault(step.event.data.user_id, []).append(step)
        floor = place(partition, first_offset)
        commands = [self._user_command(topic, partition, floor, *user) for user in users.items()]
        answers = self.connection.call(commands) if commands else []
        for steps, answer in zip(users.values(), answers, strict=True):
            for step, code in zip(steps, answer, strict=True):
                step.first, step.novel = _ANSWERS[code]
                step.forgotten = code == _FORGOTTEN

    def _user_command(
        self, topic: str, partition: int, floor: int, user_id: str, steps: list[_Step]
    ) -> Command:
        plan, keys = self.plan, self.plan.keys
        others = [keys.ledger(user_id, other) for other in plan.topics if other != topic]
        arguments: list[str | bytes | int] = [plan.history_length, plan.ledger_length, floor]
        for step in steps:
            event = step.event
            entry = HistoryEntry(
                event.id, event.data.item_id, event.data.action, event.data.rating, step.time_ms
            )
            arguments += (event.id, place(partition, step.record.offset), entry.member(), step.time_ms)
            arguments.append(event.data.item_id if step.weight > 0 else "")
        own = (keys.history(user_id), keys.items(user_id), keys.ledger(user_id, topic))
        names = (*own, keys.forgotten(user_id), *others)
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
                arguments += (step.record.offset, step.event.data.item_id, step.time_ms)
                arguments += (repr(step.weight), "1" if step.novel else "0")
        names = (
            keys.position(topic, partition),
            keys.counts(topic, partition),
            keys.uniques(topic, partition),
            keys.trends(topic, partition),
            keys.announced(topic, partition),
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
            effect = Effect.REPLAYED if self.plan.fence and record.offset <= position else Effect.APPLIED
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
            novel=step.novel,
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
