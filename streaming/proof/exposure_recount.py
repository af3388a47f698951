"""An independent recount of the lists that users were shown and of the reactions to them.

Shares the codecs of records and of counts with the stream and nothing else: it joins all events of
a list at once, in any order.

reads   redis  {p:<topic>:<partition>}:exposed, :exposures:<day>
        delta  <archive>-impressions, for what the topic no longer holds
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis

from afterclick.errors import BadEvent, LogTruncated
from afterclick.events import (
    MAX_LEAD_MS,
    Action,
    ImpressionEvent,
    InteractionEvent,
    decode_impression,
    decode_interaction,
)
from afterclick.exposures import (
    LISTS,
    MAX_PLACES,
    OTHER,
    REACTED,
    Cell,
    Counts,
    Dimensions,
    day_of,
    end_ms,
    list_columns,
    place_of,
)
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from afterclick.trends import DAY_MS
from streaming.proof.archive_log import archived_rows, impression_record

_ACTIONS = frozenset(map(str, Action))


class _Shown(NamedTuple):
    name: TopicPartition
    offset: int
    log_ms: float
    time_ms: int
    dimensions: str
    items: tuple[str, ...]


class _Reaction(NamedTuple):
    log_ms: float
    time_ms: int
    action: str
    item_id: str


@dataclass
class ExposureRecount:
    """The counts that a log results in, up to an offset per partition."""

    impressions: str
    """The topic."""
    window_ms: float
    max_ahead_ms: float
    positive: frozenset[Action]
    """Reactions by which a list counts as reacted to."""
    offsets: Mapping[TopicPartition, int]
    until: Mapping[str, int] = field(default_factory=dict)
    """user_id → event time ms up to which the user is forgotten."""
    _shown: dict[tuple[str, str], list[_Shown]] = field(default_factory=lambda: defaultdict(list))
    _reactions: dict[tuple[str, str], list[_Reaction]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @classmethod
    def of(cls, settings: Settings, offsets: Mapping[TopicPartition, int]) -> ExposureRecount:
        stream = settings.stream
        window_ms, ahead_ms = stream.impression_ttl_days * DAY_MS, stream.ahead_s * 1000
        positive = stream.signals.reactions
        return cls(settings.kafka.topics.impressions, window_ms, ahead_ms, positive, offsets)

    def add(self, name: TopicPartition, offset: int, value: bytes | None, log_ms: float) -> None:
        """Take one record of the log."""
        if offset > self.offsets.get(name, -1):
            return
        try:
            if name.topic == self.impressions:
                self.add_list(name, offset, decode_impression(value), log_ms)
            elif b"impression_id" in (value or b""):
                self.add_reaction(decode_interaction(value), log_ms)
        except BadEvent:
            return

    def add_list(
        self, name: TopicPartition, offset: int, event: ImpressionEvent, log_ms: float
    ) -> None:
        """Take a valid list."""
        time_ms, shown = self._time_ms(event, log_ms), event.data
        if time_ms is not None and time_ms > self.until.get(shown.user_id, -1):
            items = tuple(item.item_id for item in shown.items[:MAX_PLACES])
            dimensions = Dimensions.of(shown).encode()
            row = _Shown(name, offset, log_ms, time_ms, dimensions, items)
            self._shown[shown.user_id, shown.impression_id].append(row)

    def add_reaction(self, event: InteractionEvent, log_ms: float) -> None:
        """Take a valid interaction, which may be a reaction to a list."""
        data, time_ms = event.data, self._time_ms(event, log_ms)
        joined = self.positive | {Action.SKIP}
        if data.impression_id is None or data.action not in joined or event.is_copy:
            return
        if time_ms is not None and time_ms > self.until.get(data.user_id, -1):
            row = _Reaction(log_ms, time_ms, str(data.action), data.item_id)
            self._reactions[data.user_id, data.impression_id].append(row)

    def _time_ms(self, event: InteractionEvent | ImpressionEvent, log_ms: float) -> int | None:
        """Event time, as far as it may lead the log; None: too far ahead to be valid."""
        if event.time_ms - log_ms > self.max_ahead_ms:
            return None
        return min(event.time_ms, round(log_ms) + MAX_LEAD_MS)

    def counts(self) -> Counts:
        """All counts."""
        total: Counts = Counter()
        for _, counts in self.by_partition():
            total.update(counts)
        return total

    def by_partition(self, since_ms: float = -1) -> Iterator[tuple[TopicPartition, Counts]]:
        """The counts of each list, with the partition that has the list.

        Only of lists and reactions with an event time after `since_ms`.
        """
        for named, rows in self._shown.items():
            waiting = [row for row in self._reactions.get(named, ()) if row.time_ms > since_ms]
            until_ms = -float("inf")
            for shown in sorted(row for row in rows if row.time_ms > since_ms):
                if shown.log_ms <= until_ms:
                    continue  # the same list again
                until_ms = shown.log_ms + self.window_ms
                joined = [row for row in waiting if self._joins(row, shown)]
                waiting = [row for row in waiting if row not in joined]
                yield shown.name, _counts_of(shown, joined, self.positive)

    def _joins(self, reaction: _Reaction, shown: _Shown) -> bool:
        near = abs(reaction.log_ms - shown.log_ms) <= self.window_ms
        return near and reaction.item_id in shown.items

    def read_archive(self, uri: str, begins: Mapping[TopicPartition, int]) -> None:
        """Take the lists before the beginning of each partition of the topic.

        Raises LogTruncated if the archive does not have them, and Unavailable.
        """
        ends = {
            name: min(begin, self.offsets[name] + 1)
            for name, begin in begins.items()
            if begin and self.offsets.get(name, -1) >= 0
        }
        if not ends:
            return
        try:
            archive = EventArchive.open(uri)
        except MissingArchive:
            raise LogTruncated(
                f"lists are missing from the log, and there is no archive in {uri}; their counts "
                "cannot be verified"
            ) from None
        for name, end in ends.items():
            for row in archived_rows(archive, name, end):
                record = impression_record(row)
                self.add(name, record.offset, record.value, record.log_ms)


def _counts_of(shown: _Shown, joined: Iterable[_Reaction], positive: frozenset[Action]) -> Counts:
    pairs = {(row.action, row.item_id) for row in joined}
    columns = [f"{action}:{shown.items.index(item)}" for action, item in pairs]
    columns += list_columns(len(shown.items))
    if any(action in positive for action, _ in pairs):
        columns.append(REACTED)
    return Counter(Cell(day_of(shown.log_ms), shown.dimensions, column) for column in columns)


@dataclass
class ExposureState:
    """The counts in Redis over all partitions, each read in one transaction."""

    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counter)


def read_state(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition], days: int
) -> ExposureState:
    """Read the counts of the last `days` days. Raises redis.RedisError."""
    state, today = ExposureState(), datetime.now(UTC).date()
    names = [(today - timedelta(days=n)).isoformat() for n in range(-1, days + 2)]
    for partition in partitions:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.get(keys.exposed_offset(*partition))
            for day in names:
                pipeline.hgetall(keys.exposures(*partition, day))
            offset, *found = pipeline.execute()
        state.offsets[partition] = -1 if offset is None else int(offset)
        for day, fields in zip(names, found, strict=True):
            for name, value in fields.items():
                state.counts[Cell.parse(day, name)] += int(value)
    return state


@dataclass(frozen=True)
class ExposureTotals:
    """Lists and reactions of the days that were compared."""

    lists_in_state: int
    lists_in_log: int
    reactions_in_state: int
    reactions_in_log: int


def compare_exposures(
    add: Callable[[str, str, object, object], None], state: Counts, log: Counts, days: int
) -> ExposureTotals:
    """Report each count of the last `days` days that differs.

    Of a day with too many dimensions, the sums over all of them are compared.
    """
    now_ms = time.time() * 1000
    crowded = {cell.day for cell in state if cell.dimensions == OTHER.encode()}
    sums: list[Counts] = []
    for counts in (state, log):
        total: Counts = Counter()
        for cell, n in counts.items():
            if end_ms(cell.day, days) > now_ms:
                total[cell._replace(dimensions="") if cell.day in crowded else cell] += n
        sums.append(total)
    in_state, in_log = sums
    for cell in sorted(in_state.keys() | in_log.keys()):
        if in_state[cell] != in_log[cell]:
            where = f"of {cell.day} {cell.dimensions} {cell.column}"
            add("exposure", where, in_state[cell], in_log[cell])
    return ExposureTotals(
        _sum(in_state, {LISTS}),
        _sum(in_log, {LISTS}),
        _sum(in_state, _ACTIONS),
        _sum(in_log, _ACTIONS),
    )


def _sum(counts: Counts, kinds: Iterable[str]) -> int:
    return sum(n for cell, n in counts.items() if place_of(cell.column)[0] in kinds)
