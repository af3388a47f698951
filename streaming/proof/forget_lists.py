"""Forget the lists that a user was shown: retract their counts, and delete what was kept to join
reactions.

reads   redis    {u:<user>}:impression:*, {p:<topic>:<partition>}:exposed
        delta    <archive>-impressions; topic impressions for lists not archived yet
writes  redis    {p:<topic>:<partition>}:exposures:<day>, :retracted, {u:<user>}:impression:*

The user's lists and reactions in the log are joined again, and what they add to the counts is
subtracted, once per partition. Records that were read while the forgetting began are in doubt: of
those, the keys of the lists say what was counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from afterclick.errors import BadEvent
from afterclick.events import Impression, stable_id
from afterclick.exposures import OTHER, Counts
from afterclick.io.event_archive import EventArchive, MissingArchive, sql_text
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.settings import Settings
from afterclick.state import LogPosition, TopicPartition
from streaming.exposures import exposed_offsets
from streaming.proof.archive_log import impression_record
from streaming.proof.exposure_recount import ExposureRecount
from streaming.proof.user_log import UserLogEvent
from streaming.records import Record, decode_shown

_BLOCK = 500


@dataclass(frozen=True, slots=True)
class _List:
    position: LogPosition
    record: Record
    shown: Impression
    time_ms: int


@dataclass
class ListForgetter:
    """Forgets the lists of one user up to an event time. Each step is safe to repeat."""

    settings: Settings
    client: redis.Redis
    user_id: str
    until_ms: int
    counted: Mapping[TopicPartition, int]
    """Offset up to which each partition was counted when the forgetting began."""
    _offsets: Mapping[TopicPartition, int] = field(init=False)
    _lists: dict[str, list[_List]] = field(default_factory=lambda: defaultdict(list), init=False)
    _reactions: dict[str, list[UserLogEvent]] = field(
        default_factory=lambda: defaultdict(list), init=False
    )

    def __post_init__(self) -> None:
        self._offsets = exposed_offsets(self.client, self.settings.redis.keys, self.counted)

    def retract(self, events: Iterable[UserLogEvent]) -> None:
        """Retract the counts, then delete the keys; `events`: the user's interactions.

        Raises redis.RedisError and Unavailable.
        """
        for event in events:
            data = event.event.data
            if data.impression_id is not None:
                self._reactions[data.impression_id].append(event)
        for one in self._logged():
            self._lists[one.shown.impression_id].append(one)
        for partition, counts in self._counts().items():
            self._subtract(partition, counts)
        self._delete_keys()

    def _logged(self) -> Iterator[_List]:
        """The user's lists in the archive, and those that it lacks in the topic: also those that
        are not counted, as a task may have died between the steps."""
        topic = self.settings.kafka.topics.impressions
        names = [name for name in self._offsets if name.topic == topic]
        try:
            archive = EventArchive.open(self.settings.impression_archive)
        except MissingArchive:
            archived = dict.fromkeys(names, -1)
        else:
            archived = archive.offsets(names)
            for row in archive.read(f'"user_id" = {sql_text(self.user_id)}').to_pylist():
                name = TopicPartition(row["topic"], row["partition"])
                yield from self._list(name, impression_record(row))
        with KafkaLog(self.settings.kafka) as log:
            held = log.ranges(topic)
            ranges = {
                name: OffsetRange(max(span.begin, archived.get(name, -1) + 1), span.end)
                for name, span in held.items()
            }
            for message in log.read(ranges):
                name = TopicPartition(topic, message.partition() or 0)
                log_ms = float(message.timestamp()[1])
                record = Record(message.offset() or 0, None, message.value(), log_ms)
                yield from self._list(name, record)

    def _list(self, name: TopicPartition, record: Record) -> Iterator[_List]:
        try:
            event = decode_shown(record, self.settings.stream.ahead_s * 1000)
        except BadEvent:
            return
        if event.data.user_id == self.user_id:
            position = LogPosition(*name, record.offset)
            yield _List(position, record, event.data, event.time_ms)

    def _counts(self) -> dict[TopicPartition, Counts]:
        """What the forgotten lists and reactions have added, by the partition of the list."""
        recount = ExposureRecount.of(self.settings, self._offsets)
        for impression_id, lists in self._lists.items():
            key = self._key(impression_id)
            for one in lists:
                if self._was_counted(one.position) or self._is_first(key, one.position):
                    name, offset = one.position.topic_partition, one.position.offset
                    recount.add(name, offset, one.record.value, one.record.log_ms)
            stays = any(one.time_ms > self.until_ms for one in lists)
            for event in self._reactions.get(impression_id, ()):
                counted = not stays and self._was_counted(event.position)
                if counted or self._is_joined(key, event):
                    recount.add_reaction(event.event, event.record.log_ms)
        totals: dict[TopicPartition, Counts] = defaultdict(Counter)
        for name, counts in recount.by_partition():
            totals[name].update(counts)
        for name, counts in recount.by_partition(since_ms=self.until_ms):
            totals[name].subtract(counts)
        return totals

    def _was_counted(self, position: LogPosition) -> bool:
        return position.offset <= self.counted.get(position.topic_partition, -1)

    def _is_first(self, key: str, position: LogPosition) -> bool:
        at: Any = self.client.hget(key, "at")
        return at is not None and at.decode() == str(position)

    def _is_joined(self, key: str, event: UserLogEvent) -> bool:
        value: Any = self.client.hget(key, _field(event))
        if value is None or value.startswith(b"|"):
            return False
        at = LogPosition.parse(value.decode().partition("|")[0])
        return at.offset <= self._offsets.get(at.topic_partition, -1)

    def _subtract(self, partition: TopicPartition, counts: Counts) -> None:
        keys, changed = self.settings.redis.keys, {cell: n for cell, n in counts.items() if n}
        days = sorted({cell.day for cell in changed})
        names = [keys.retractions(*partition)]
        names += [keys.exposures(*partition, day) for day in days]
        token = stable_id("lists", self.user_id, *partition, self.until_ms)
        arguments: list[Any] = [token, OTHER.encode()]
        for cell, n in changed.items():
            arguments += (days.index(cell.day) + 1, cell.field, n)
        if changed:
            self.client.fcall("afterclick_retract_exposures", len(names), *names, *arguments)

    def _delete_keys(self) -> None:
        """Delete forgotten lists, and forgotten reactions to lists that stay or did not come."""
        positive = self.settings.stream.signals.reactions
        ids = sorted(self._lists.keys() | self._reactions.keys())
        for start in range(0, len(ids), _BLOCK):
            with self.client.pipeline(transaction=False) as commands:
                for impression_id in ids[start : start + _BLOCK]:
                    key, lists = self._key(impression_id), self._lists.get(impression_id, ())
                    if lists and all(one.time_ms <= self.until_ms for one in lists):
                        commands.unlink(key)
                        continue
                    reactions = self._reactions.get(impression_id, [])
                    past = [one for one in reactions if one.event.time_ms <= self.until_ms]
                    if past:
                        commands.hdel(key, *map(_field, past))
                    if lists and not any(
                        one.event.data.action in positive for one in reactions if one not in past
                    ):
                        commands.hdel(key, "reacted")
                commands.execute()

    def _key(self, impression_id: str) -> str:
        return self.settings.redis.keys.impression(self.user_id, impression_id)


def _field(event: UserLogEvent) -> str:
    return f"r:{event.event.data.action}:{event.event.data.item_id}"
