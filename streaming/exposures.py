"""Count the lists that users were shown, and join reactions to them: each once, by two steps.

reads   redis  {u:<user>}:forgotten, {p:<topic>:<partition>}:exposed, lease
writes  redis  {u:<user>}:impression:<id>
        redis  {p:<topic>:<partition>}:exposed, :exposures:<day>
        topic  impressions.dlq, by `send_to_dlq`

A reaction joins the list that it names if both are of the same user, the list has the item, and at
most `window_ms` lie between their times of arrival in the log. It counts on the day of the list.
Whichever is applied first waits for the other. One task at a time counts a partition.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import redis

from afterclick.errors import BadEvent, LogTruncated, StateConflict
from afterclick.events import Action
from afterclick.exposures import (
    MAX_FIELDS,
    MAX_PLACES,
    OTHER,
    Counts,
    Dimensions,
    cells,
    day_of,
    end_ms,
    list_columns,
)
from afterclick.io.kafka_log import OffsetRange, OffsetRanges
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import LogPosition, TopicPartition
from afterclick.trends import DAY_MS
from streaming import positions
from streaming.connection import Command, Connection
from streaming.fault_points import NO_FAULTS, FaultPoints
from streaming.lease import NO_LEASE, Lease
from streaming.positions import AppliedOffsets, Offsets
from streaming.records import Output, Record, dead_letter, decode_record, decode_shown

CHUNK = 200
"""Lists and reactions per server-side call."""
_NAMES_LIST = b'"impression_id"'
_CODES = (b"0", b"2", b"5")


@dataclass(frozen=True)
class ExposureConfig:
    """Picklable configuration for Spark workers."""

    url: str
    keys: Keys
    impressions: str
    """The topic."""
    window_ms: float
    days: int
    max_ahead_ms: float
    positive: frozenset[Action]
    """Reactions by which a list counts as reacted to."""
    max_fields: int = MAX_FIELDS
    faults: FaultPoints = NO_FAULTS
    lease: Lease = NO_LEASE

    @classmethod
    def of(cls, settings: Settings, lease: Lease = NO_LEASE) -> ExposureConfig:
        stream = settings.stream
        return cls(
            url=settings.redis.client_url,
            keys=settings.redis.keys,
            impressions=settings.kafka.topics.impressions,
            window_ms=stream.impression_ttl_days * DAY_MS,
            days=stream.exposure_days,
            max_ahead_ms=stream.ahead_s * 1000,
            positive=stream.signals.reactions,
            faults=FaultPoints.of(stream),
            lease=lease if stream.fence else NO_LEASE,
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """A list or a reaction on its way through the two steps."""

    record: Record
    names: tuple[str, str]
    """Keys of step 1."""
    arguments: tuple[str | int, ...]
    """Arguments of step 1."""
    day: str = ""
    dimensions: str = ""
    n_items: int | None = None
    """None: a reaction."""

    def counts(self, reply: Any) -> Counts:
        """What step 2 adds for a reply of step 1."""
        if isinstance(reply, bytes):  # a code
            return Counter()
        columns = [column.decode() for column in reply]
        if self.n_items is not None:
            return cells(self.day, self.dimensions, list_columns(self.n_items) + columns[1:])
        return cells(columns[0], columns[1], columns[2:])


@dataclass
class ExposureApplier:
    """Counts records in offset order; those that are counted already change nothing.

    `send_to_dlq` returns when its records are acknowledged; it is called before the offset passes
    them. `log_holds` is asked whether records are missing before the first one.
    """

    config: ExposureConfig
    connection: Connection
    send_to_dlq: Callable[[Sequence[Output]], None] = lambda _: None
    log_holds: Callable[[TopicPartition, OffsetRange], bool] | None = None
    _counted: dict[TopicPartition, int] = field(default_factory=dict, init=False)
    """Offset up to which this task has found a partition counted, or counted it."""

    def apply(self, name: TopicPartition, records: Sequence[Record]) -> None:
        """Count the records of a partition, and move its offset to the last one.

        Raises redis.RedisError, and StateConflict if records before the first one are not counted;
        applying the same records again is safe.
        """
        fence = self.config.faults.fence
        if name not in self._counted:
            self._counted[name] = self._counted_offset(name)
        if fence:
            records = [record for record in records if record.offset > self._counted[name]]
        if not records:
            return
        self._check_gap(name, records[0].offset)
        steps, letters = self._decode(name, records)
        for start in range(0, max(len(steps), 1), CHUNK):
            chunk, rest = steps[start : start + CHUNK], len(steps) > start + CHUNK
            counts = self._join(chunk)
            letters += [dead_letter(*name, step.record, reason) for step, reason in counts.damaged]
            if chunk:
                self.config.faults.between_joins()
            if not rest:
                self.send_to_dlq(letters)
            last = chunk[-1].record.offset if rest else records[-1].offset
            self._count(name, counts.total, last)

    def _counted_offset(self, name: TopicPartition) -> int:
        (value,) = self.connection.call([("GET", self.config.keys.exposed_offset(*name))])
        return -1 if value is None else int(value)

    def _check_gap(self, name: TopicPartition, first: int) -> None:
        """Offsets without a record are normal: transaction markers, retention before a start."""
        missing = OffsetRange(self._counted[name] + 1, first)
        if not len(missing) or self.log_holds is None or not self.config.faults.fence:
            return
        if self.log_holds(name, missing):
            raise StateConflict(f"lists of {name} from {missing.begin} to {first} are not counted")

    def _decode(
        self, name: TopicPartition, records: Sequence[Record]
    ) -> tuple[list[_Step], list[Output]]:
        """The lists and reactions among the records, and the dead letters of malformed lists."""
        if name.topic != self.config.impressions:
            found = (self._reaction(name, record) for record in records)
            return [step for step in found if step is not None], []
        steps, letters = [], []
        for record in records:
            try:
                steps.append(self._list(name, record))
            except BadEvent as error:
                letters.append(dead_letter(*name, record, str(error)))
        return steps, letters

    def _list(self, name: TopicPartition, record: Record) -> _Step:
        event = decode_shown(record, self.config.max_ahead_ms)
        shown, day = event.data, day_of(record.log_ms)
        dimensions = Dimensions.of(shown).encode()
        items = [item.item_id for item in shown.items[:MAX_PLACES]]
        details = (day, dimensions, orjson.dumps(items).decode())
        arguments = self._arguments("list", name, record, event.time_ms, details)
        names = self._names(shown.user_id, shown.impression_id)
        return _Step(record, names, arguments, day, dimensions, len(items))

    def _reaction(self, name: TopicPartition, record: Record) -> _Step | None:
        """None for a record that is no reaction to a list. (The state has its dead letter.)"""
        if _NAMES_LIST not in (record.value or b""):
            return None
        try:
            event = decode_record(record, self.config.max_ahead_ms)
        except BadEvent:
            return None
        data = event.data
        if data.impression_id is None or event.is_copy:
            return None
        if data.action is not Action.SKIP and data.action not in self.config.positive:
            return None
        details = (str(data.action), data.item_id, "")
        arguments = self._arguments("reaction", name, record, event.time_ms, details)
        return _Step(record, self._names(data.user_id, data.impression_id), arguments)

    def _names(self, user_id: str, impression_id: str) -> tuple[str, str]:
        keys = self.config.keys
        return keys.impression(user_id, impression_id), keys.forgotten(user_id)

    def _arguments(
        self,
        kind: str,
        name: TopicPartition,
        record: Record,
        time_ms: int,
        details: tuple[str, str, str],
    ) -> tuple[str | int, ...]:
        # a day more than the window; of a list of the past, a day for reactions to be applied
        left_ms = record.log_ms + self.config.window_ms - time.time() * 1000
        ttl = round(max(left_ms, 0.0) + DAY_MS)
        position = str(LogPosition(*name, record.offset))
        return (kind, position, round(record.log_ms), time_ms, ttl, *details)

    def _join(self, steps: list[_Step]) -> _Joined:
        """Step 1, in one call."""
        if not steps:
            return _Joined()
        lease, window = self.config.lease, round(self.config.window_ms)
        names = [lease.key, *(name for step in steps for name in step.names)]
        arguments = [argument for step in steps for argument in step.arguments]
        call: Command = (
            "FCALL",
            "afterclick_join_exposures",
            len(names),
            *names,
            lease.owner,
            window,
            f"|{'|'.join(sorted(self.config.positive))}|",
            *arguments,
        )
        (replies,) = self.connection.call([call])
        joined = _Joined()
        for step, reply in zip(steps, replies, strict=True):
            if isinstance(reply, bytes) and reply not in _CODES:
                if step.n_items is not None:
                    joined.damaged.append((step, reply.decode()))
            else:
                joined.total.update(step.counts(reply))
        return joined

    def _count(self, name: TopicPartition, counts: Counts, last: int) -> None:
        """Step 2: add the counts and move the offset, in one transaction."""
        config, keys = self.config, self.config.keys
        days = sorted({cell.day for cell in counts})
        names = [keys.exposed_offset(*name), config.lease.key]
        names += [keys.exposures(*name, day) for day in days]
        before = str(self._counted[name]) if config.faults.fence else ""
        arguments: list[str | int] = [config.lease.owner, before, last, config.max_fields]
        now_ms = round(time.time() * 1000)
        arguments += [OTHER.encode(), *(end_ms(day, config.days + 1) - now_ms for day in days)]
        for cell, n in counts.items():
            arguments += (days.index(cell.day) + 1, cell.field, n)
        self.connection.call(
            [("FCALL", "afterclick_count_exposures", len(names), *names, *arguments)]
        )
        self._counted[name] = last


@dataclass
class _Joined:
    """The result of step 1."""

    total: Counts = field(default_factory=Counter)
    damaged: list[tuple[_Step, str]] = field(default_factory=list)
    """Lists whose key in Redis cannot be changed, with the reason."""


def exposed_offsets(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition]
) -> AppliedOffsets:
    """The offset up to which each partition is counted; -1: none. Raises Unavailable."""
    with positions.redis_errors():
        values = {name: client.get(keys.exposed_offset(*name)) for name in partitions}
    return {name: -1 if value is None else int(value) for name, value in values.items()}


def start_counting(
    client: redis.Redis, keys: Keys, ranges: OffsetRanges, *, is_first: bool, fence: bool = True
) -> Offsets:
    """The next offset to count of each partition.

    With `is_first`, and nothing counted, the past that the log no longer has is left out. Otherwise
    raises LogTruncated if retention has deleted records that are not counted. Raises StateConflict
    if the log ends before what is counted, and Unavailable.
    """
    exposed = exposed_offsets(client, keys, ranges)
    is_first = is_first and max(exposed.values(), default=-1) < 0
    offsets: Offsets = {}
    for name, held in ranges.items():
        start = exposed[name] + 1
        if start > held.end and fence:
            raise StateConflict(
                f"{name} ends at offset {held.end}, but its lists are counted up to {start - 1}: "
                "the topic was created anew. Stop the stream, move both archives away, empty Redis"
            )
        if start < held.begin:
            if not is_first and fence:
                raise LogTruncated(
                    f"{held.begin - start} records of {name} are missing, whose lists or reactions "
                    "are not counted; run `afterclick rebuild`"
                )
            with positions.redis_errors():
                client.set(keys.exposed_offset(*name), held.begin - 1)
        offsets.setdefault(name.topic, {})[name.partition] = min(max(start, held.begin), held.end)
    return offsets
