"""Forget a user: remove every effect of their past events from the state and the log.

reads   redis    {u:<user>}:ledger:*, {p:<topic>:<partition>}:position
        parquet  <archive>; topic reviews, feedback for events not archived yet
writes  topic    forgotten
        redis    forgotten, {u:<user>}:*, {p:<topic>:<partition>}:counts, :uniques, :trends, :taken
        parquet  <archive>

The order makes a crash repairable by running it again: write to the topic; let Redis reject the
user's events; wait for events in flight; retract what was counted, partition by partition (once
each, by a token); delete the ledgers last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
import redis

from afterclick.errors import BadEvent, StateConflict, StateLocked, Unavailable
from afterclick.events import decode_interaction, stable_id
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.io.redis_clients import redis_unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import (
    Effects,
    LogPosition,
    TopicPartition,
    decode_compensations,
    unpack_offset,
    vote_codes,
)
from streaming import positions
from streaming.connection import load_functions, redis_client
from streaming.forgotten_users import publish_forgotten
from streaming.lease import hold_lease
from streaming.proof.archive_log import archive_files, erase

_WAIT_S = 120.0


@dataclass(frozen=True)
class Forgetting:
    """What was removed of a user."""

    until_ms: int
    events: int
    """Events whose counts and trends were retracted."""
    unknown: int
    """Events that no log holds any more: their counts stay, without a user."""
    rows: int
    """Rows erased from the Parquet log."""


@dataclass(frozen=True, slots=True)
class _LedgerEntry:
    event_id: str
    position: LogPosition
    effects: Effects


@dataclass(frozen=True, slots=True)
class _LoggedEvent:
    item_id: str
    action: str
    time_ms: int


def forget(settings: Settings, user_id: str) -> Forgetting:
    """Forget a user's events up to now. The stream may run or not.

    Raises Unavailable if Kafka or Redis does not respond or the stream lags too far: run it again.
    """
    keys = settings.redis.keys
    with closing(redis_client(settings)) as client:
        load_functions(client)
        try:
            until_ms = _until_ms(client, keys, user_id)
            publish_forgotten(settings.kafka, user_id, until_ms)
            forgetter = Forgetter(settings, client, user_id)
            events, unknown, finished_ms = 0, 0, -1
            while finished_ms < until_ms:  # completes an interrupted forgetting first
                finished_ms = forgetter.begin(until_ms)
                counted, missing = forgetter.finish(finished_ms)
                events, unknown = events + counted, unknown + missing
        except redis.RedisError as error:
            raise redis_unavailable(error) from None
    return Forgetting(until_ms, events, unknown, erase(settings.archive, user_id, until_ms))


def _until_ms(client: redis.Redis, keys: Keys, user_id: str) -> int:
    """Now, or the user's newest event or previous forgetting if that is later."""
    newest: Any = client.zrevrange(keys.history(user_id), 0, 0, withscores=True)
    previous: Any = client.get(keys.forgotten(user_id))
    now_ms = int(time.time() * 1000)
    return max(now_ms, int(previous or 0), *(int(score) for _, score in newest))


@dataclass
class Forgetter:
    """The steps of a forgetting in Redis."""

    settings: Settings
    client: redis.Redis
    user_id: str

    @property
    def _weights(self) -> dict[str, float]:
        """Vote code → weight."""
        weights = {str(action): weight for action, weight in self.settings.stream.weights.items()}
        return {code: weights[action] for action, code in vote_codes(weights).items() if code}

    def begin(self, until_ms: int) -> int:
        """Reject the user's events from now on; returns the event time to finish up to."""
        keys, user = self.settings.redis.keys, self.user_id
        self.client.sadd(keys.forgotten_users, user)
        names = (keys.forgotten(user), keys.forgetting(user), keys.history(user), keys.votes(user))
        return int(self.client.fcall("afterclick_forget_user", len(names), *names, str(until_ms)))

    def finish(self, until_ms: int) -> tuple[int, int]:
        """Retract what was counted; returns the events retracted, and those that no log holds."""
        keys, lease_s = self.settings.redis.keys, self.settings.stream.lease_s
        try:
            with hold_lease(self.client, keys, lease_s):
                return self.retract(until_ms)
        except StateLocked:  # a running stream must count the events in flight first
            self._wait_for_stream()
            return self.retract(until_ms)

    def _applied(self) -> positions.AppliedOffsets:
        partitions = positions.topic_partitions(self.settings.kafka)
        return positions.applied_offsets(self.client, self.settings.redis.keys, partitions)

    def _wait_for_stream(self) -> None:
        ranges = positions.log_ranges(self.settings.kafka)
        deadline = time.monotonic() + _WAIT_S
        while positions.has_unapplied(self.settings.kafka, ranges, self._applied()):
            if time.monotonic() > deadline:
                raise Unavailable(
                    "the stream lags too far; "
                    "the user's events are already rejected, run it again later"
                )
            time.sleep(0.2)

    def retract(self, until_ms: int) -> tuple[int, int]:
        """Retract the counted events and delete the ledger."""
        applied = self._applied()
        ledger = list(self._ledger())
        events = self._events([entry.position for entry in ledger])
        past = [
            entry
            for entry in ledger
            if entry.position not in events or events[entry.position].time_ms <= until_ms
        ]
        counted: list[_LedgerEntry] = []
        uncounted: list[_LedgerEntry] = []  # not applied before, and rejected from now on
        for entry in past:
            is_counted = entry.position.offset <= applied[entry.position.topic_partition]
            (counted if is_counted else uncounted).append(entry)
        self.delete_entries(uncounted)
        found = [entry for entry in counted if entry.position in events]
        for partition in applied:
            entries = [entry for entry in found if entry.position.topic_partition == partition]
            if entries:
                pairs = [(entry.effects, events[entry.position]) for entry in entries]
                self._retract_partition(partition, until_ms, pairs)
        self.delete_entries(past)
        self.client.delete(self.settings.redis.keys.forgetting(self.user_id))
        return len(found), sum(entry.position not in events for entry in past)

    def _ledger(self) -> Iterator[_LedgerEntry]:
        keys = self.settings.redis.keys
        for topic in self.settings.kafka.topics.interactions:
            entries: Any = self.client.zrange(
                keys.ledger(self.user_id, topic), 0, -1, withscores=True
            )
            raw: Any = self.client.hgetall(keys.compensations(self.user_id, topic))
            for event_id, score in entries:
                partition, offset, first_user_item, established = unpack_offset(score)
                compensations = decode_compensations(raw.get(event_id, b"[]"), self._weights)
                position = LogPosition(topic, partition, offset)
                effects = Effects(first_user_item, established, compensations)
                yield _LedgerEntry(event_id.decode(), position, effects)

    def _events(self, wanted: list[LogPosition]) -> dict[LogPosition, _LoggedEvent]:
        """The events at these positions, from the Parquet log or else from the topics."""
        missing = set(wanted)
        events = {at: event for at, event in self._archived() if at in missing}
        events.update(_read_topics(self.settings.kafka, sorted(missing - events.keys())))
        return events

    def _archived(self) -> Iterator[tuple[LogPosition, _LoggedEvent]]:
        try:
            files = archive_files(self.settings.archive)
        except StateConflict:  # nothing was archived yet
            return
        table = ds.dataset(files).to_table(filter=pc.field("user_id") == self.user_id)
        for row in table.to_pylist():
            time_ms = round(row["event_time"].timestamp() * 1000)
            position = LogPosition(row["topic"], row["partition"], row["offset"])
            yield position, _LoggedEvent(row["item_id"], row["action"], time_ms)

    def _retract_partition(
        self,
        partition: TopicPartition,
        until_ms: int,
        events: list[tuple[Effects, _LoggedEvent]],
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
            weight = weights.get(event.action, 0.0)
            for delta in effects.deltas(event.item_id, event.time_ms, weight):
                arguments += delta.arguments()
        self.client.fcall("afterclick_take_back", len(names), *names, *arguments)

    def delete_entries(self, entries: Iterable[_LedgerEntry]) -> None:
        keys = self.settings.redis.keys
        for entry in entries:
            topic = entry.position.topic
            self.client.zrem(keys.ledger(self.user_id, topic), entry.event_id)
            self.client.hdel(keys.compensations(self.user_id, topic), entry.event_id)


def _read_topics(
    kafka: KafkaSettings, wanted: list[LogPosition]
) -> Iterator[tuple[LogPosition, _LoggedEvent]]:
    """The events at these positions that the topics still hold. Raises Unavailable."""
    if not wanted:
        return
    offsets: dict[TopicPartition, set[int]] = {}
    for position in wanted:
        offsets.setdefault(position.topic_partition, set()).add(position.offset)
    with KafkaLog(kafka) as log:
        held = log.ranges(*kafka.topics.interactions)
        ranges = {
            partition: OffsetRange(
                max(min(those), held[partition].begin), min(max(those) + 1, held[partition].end)
            )
            for partition, those in offsets.items()
        }
        for message in log.read(ranges):
            position = LogPosition(
                message.topic() or "", message.partition() or 0, message.offset() or 0
            )
            wanted_here = position.offset in offsets[position.topic_partition]
            if wanted_here and (event := _decode(message.value())):
                yield position, event


def _decode(value: bytes | None) -> _LoggedEvent | None:
    try:
        event = decode_interaction(value)
    except BadEvent:
        return None
    return _LoggedEvent(event.data.item_id, event.data.action, event.time_ms)
