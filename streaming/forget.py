"""Forget a user: as if what they did until now had never happened, in the state, the log and the next model.

reads   redis    {u:<user>}:ledger:*, {p:<topic>:<partition>}:position
        parquet  <archive>; topic reviews, feedback for what is not in it yet
writes  topic    forgotten
        redis    forgotten, {u:<user>}:*, {p:<topic>:<partition>}:counts, :uniques, :trends, :taken
        parquet  <archive>

In this order, so that a crash anywhere is mended by running it again: the topic says it, Redis refuses the
user's events from then on, what was under way is waited for, what was counted is taken back partition by
partition (each once, by a token), and the ledgers go last.
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
from confluent_kafka import Consumer, KafkaException, TopicPartition

from afterclick.errors import BadEvent, StateConflict, StateLocked, Unavailable
from afterclick.events import decode_interaction, stable_id
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import Compensation, Effects, decode_compensations, unpack_offset, vote_codes
from streaming import erase, forgotten, lease, positions
from streaming.connection import load_functions
from streaming.job import client_of, function_library
from streaming.positions import Place
from streaming.rebuild import files_of

_WAIT_S = 120.0
_FETCH_S = 10.0
Spot = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True)
class Forgetting:
    """What was erased of a user."""

    until_ms: int
    events: int
    """Events whose counts and trends were taken back."""
    unknown: int
    """Events that no log has any more: what they counted stays, without a name."""
    rows: int
    """Rows that left the Parquet log."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """An event as the state counted it."""

    event_id: str
    spot: Spot
    novel: bool
    established: bool
    corrections: tuple[Compensation, ...]

    def effects(self, event: _Event, weight: float) -> Iterator[str | int]:
        """What it did to counts and trends, as the stream's functions are told."""
        effects = Effects(self.novel, self.established, self.corrections)
        for delta in effects.deltas(event.item_id, event.time_ms, weight):
            yield from delta.arguments()


@dataclass(frozen=True, slots=True)
class _Event:
    item_id: str
    action: str
    time_ms: int


def forget(settings: Settings, user_id: str) -> Forgetting:
    """Forget a user's events up to now. The stream may run meanwhile, or not.

    Raises Unavailable where Kafka or Redis does not answer or the stream does not keep up: run it again.
    """
    keys = settings.redis.keys
    with closing(client_of(settings)) as client:
        load_functions(client, function_library())
        try:
            newest: Any = client.zrevrange(keys.history(user_id), 0, 0, withscores=True)
            until_ms = max([int(time.time() * 1000), *(int(score) for _, score in newest)])
            forgotten.publish(settings.kafka, user_id, until_ms)
            one = _Forgetter(settings, client, user_id)
            events, unknown, reached = 0, 0, -1
            while reached < until_ms:  # a forgetting that was cut off is finished first
                reached = one.begin(until_ms)
                found = one.finish(reached)
                events, unknown = events + found[0], unknown + found[1]
        except redis.RedisError as error:
            raise Unavailable(f"Redis: {error}") from None
    return Forgetting(until_ms, events, unknown, erase.erase(settings.archive, user_id, until_ms))


@dataclass
class _Forgetter:
    settings: Settings
    client: redis.Redis
    user_id: str

    @property
    def _weights(self) -> dict[str, float]:
        """By code of a vote."""
        weights = {str(action): weight for action, weight in self.settings.stream.weights.items()}
        return {code: weights[action] for action, code in vote_codes(weights).items() if code}

    def begin(self, until_ms: int) -> int:
        """Refuse the user's events from now on; the moment that has to be finished now."""
        keys, user = self.settings.redis.keys, self.user_id
        self.client.sadd(keys.forgotten_users, user)
        names = (keys.forgotten(user), keys.forgetting(user), keys.history(user), keys.votes(user))
        return int(self.client.fcall("afterclick_forget_user", len(names), *names, str(until_ms)))

    def finish(self, until_ms: int) -> tuple[int, int]:
        """Take back what was counted; how many events, and how many that no log has."""
        try:
            with lease.held(
                self.client, self.settings.redis.keys.lease, self.settings.stream.lease_s
            ):
                return self._take_back(until_ms)
        except StateLocked:  # a stream runs: what it had begun before has to be counted first
            self._wait_for_stream()
            return self._take_back(until_ms)

    def _positions(self) -> dict[Place, int]:
        places = positions.places(self.settings.kafka)
        return positions.read_positions(self.client, self.settings.redis.keys, places)

    def _wait_for_stream(self) -> None:
        ends = {
            place: span.end - 1 for place, span in positions.read_log(self.settings.kafka).items()
        }
        deadline = time.monotonic() + _WAIT_S
        while any(self._positions()[place] < end for place, end in ends.items()):
            if time.monotonic() > deadline:
                raise Unavailable(
                    "the stream is too far behind; events are refused already, run it again later"
                )
            time.sleep(0.2)

    def _take_back(self, until_ms: int) -> tuple[int, int]:
        at = self._positions()
        ledger = list(self._ledger())
        found = self._events([one.spot for one in ledger])
        theirs = [
            one for one in ledger if one.spot not in found or found[one.spot].time_ms <= until_ms
        ]
        # what is above the position was never counted, and is refused from now on
        self._remove(one for one in theirs if one.spot[2] > at[one.spot[:2]])
        counted = [one for one in theirs if one.spot in found and one.spot[2] <= at[one.spot[:2]]]
        for place in at:
            here = [one for one in counted if one.spot[:2] == place]
            if here:
                self._take_back_of(place, until_ms, [(one, found[one.spot]) for one in here])
        self._remove(theirs)
        self.client.delete(self.settings.redis.keys.forgetting(self.user_id))
        return len(counted), sum(one.spot not in found for one in theirs)

    def _ledger(self) -> Iterator[_Counted]:
        for topic in self.settings.kafka.topics.interactions:
            keys = self.settings.redis.keys
            entries: Any = self.client.zrange(
                keys.ledger(self.user_id, topic), 0, -1, withscores=True
            )
            corrected: Any = self.client.hgetall(keys.compensations(self.user_id, topic))
            for event_id, score in entries:
                partition, offset, novel, established = unpack_offset(score)
                corrections = decode_compensations(corrected.get(event_id, b"[]"), self._weights)
                spot = (topic, partition, offset)
                yield _Counted(event_id.decode(), spot, novel, established, corrections)

    def _events(self, spots: list[Spot]) -> dict[Spot, _Event]:
        """The events that stand at these spots, from the Parquet log, else from the topics."""
        wanted = set(spots)
        found = {spot: event for spot, event in self._archived() if spot in wanted}
        found.update(_read_topics(self.settings.kafka, sorted(wanted - found.keys())))
        return found

    def _archived(self) -> Iterator[tuple[Spot, _Event]]:
        try:
            files = files_of(self.settings.archive)
        except StateConflict:  # there is no log yet
            return
        table = ds.dataset(files).to_table(filter=pc.field("user_id") == self.user_id)
        for row in table.to_pylist():
            time_ms = round(row["event_time"].timestamp() * 1000)
            spot = (row["topic"], row["partition"], row["offset"])
            yield spot, _Event(row["item_id"], row["action"], time_ms)

    def _take_back_of(
        self, place: Place, until_ms: int, events: list[tuple[_Counted, _Event]]
    ) -> None:
        keys, weights = self.settings.redis.keys, self.settings.stream.weights
        token = stable_id(self.user_id, *place, until_ms)
        names = (
            keys.counts(*place),
            keys.uniques(*place),
            keys.trends(*place),
            keys.retractions(*place),
        )
        arguments: list[Any] = [token]
        by_name = {str(action): weight for action, weight in weights.items()}
        for one, event in events:
            arguments += one.effects(event, by_name.get(event.action, 0.0))
        self.client.fcall("afterclick_take_back", len(names), *names, *arguments)

    def _remove(self, entries: Iterable[_Counted]) -> None:
        for one in entries:
            keys, topic = self.settings.redis.keys, one.spot[0]
            self.client.zrem(keys.ledger(self.user_id, topic), one.event_id)
            self.client.hdel(keys.compensations(self.user_id, topic), one.event_id)


def _read_topics(kafka: KafkaSettings, spots: list[Spot]) -> Iterator[tuple[Spot, _Event]]:
    """The events at these spots of the topics, those that are still there. Raises Unavailable."""
    wanted: dict[Place, set[int]] = {}
    for topic, partition, offset in spots:
        wanted.setdefault((topic, partition), set()).add(offset)
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": "forget", "enable.auto.commit": False}
    )
    try:
        for place, offsets in wanted.items():
            for message in _span(consumer, place, min(offsets), max(offsets)):
                if message.offset() in offsets and (event := _event(message.value())):
                    yield (*place, message.offset()), event
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _span(consumer: Consumer, place: Place, first: int, last: int) -> Iterator[Any]:
    """The records of a partition from one offset to another, as far as they are still there."""
    begin, end = consumer.get_watermark_offsets(TopicPartition(*place), timeout=_FETCH_S)
    at, last = max(first, begin), min(last, end - 1)
    consumer.assign([TopicPartition(*place, at)])
    while at <= last:
        messages = consumer.consume(min(last - at + 1, 5000), _FETCH_S)
        if not messages:
            raise Unavailable(
                f"{place[0]}/{place[1]} stopped answering at offset {at}; run it again"
            )
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            at = int(message.offset() or 0) + 1
            yield message


def _event(value: bytes | None) -> _Event | None:
    try:
        event = decode_interaction(value)
    except BadEvent:
        return None
    return _Event(event.data.item_id, event.data.action, event.time_ms)
