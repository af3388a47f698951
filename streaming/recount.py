"""An independent recount of the Kafka log: what the state must be, by plain Python over another Kafka client.

Shares the event codec with the stream and nothing else: not its arithmetic, its order of work or its client.

reads   topic  reviews, feedback, forgotten
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from numpy.typing import NDArray

from afterclick.errors import BadEvent, LogTruncated, Unavailable
from afterclick.events import decode_interaction
from afterclick.settings import Settings
from afterclick.state import HistoryEntry, decode_forgotten
from afterclick.trends import HALF_LIVES_MS

Place = tuple[str, int]


@dataclass
class Recount:
    """What a log of events must have made of the state, up to a position per partition."""

    weights: dict[str, float]
    history_length: int
    ahead_ms: float
    established_ms: float
    events: int = 0
    poison: int = 0
    duplicates: int = 0
    forgotten: int = 0
    until: dict[str, int] = field(default_factory=dict)
    """Event time ms up to which a user is forgotten."""
    taken_back: dict[str, float] = field(default_factory=dict)
    """Newest event time ms of the forgotten events of an item: its trend may have seen that moment."""
    counts: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _positive: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _newest: dict[str, int] = field(default_factory=dict)
    _votes: dict[str, dict[tuple[str, str], int]] = field(default_factory=lambda: defaultdict(dict))
    _since: dict[str, int] = field(default_factory=dict)
    _histories: dict[str, list[tuple[int, bytes]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @classmethod
    def of(cls, settings: Settings) -> Recount:
        stream = settings.stream
        weights = {str(action): weight for action, weight in stream.weights.items()}
        established_ms = stream.established_days * 86_400_000
        return cls(weights, stream.history_length, stream.ahead_s * 1000, established_ms)

    def add(self, value: bytes | None, log_ms: float) -> None:
        """Count one record of the log."""
        self.events += 1
        try:
            event = decode_interaction(value)
        except BadEvent:
            self.poison += 1
            return
        time_ms, data = event.time_ms, event.data
        if time_ms - log_ms > self.ahead_ms:
            self.poison += 1
            return
        if time_ms <= self.until.get(data.user_id, -math.inf):
            self.forgotten += 1
            self.taken_back[data.item_id] = max(time_ms, self.taken_back.get(data.item_id, time_ms))
            return
        if event.id in self._seen[data.user_id]:
            self.duplicates += 1
            return
        self._seen[data.user_id].add(event.id)
        weight = self.weights.get(data.action, 0.0)
        if weight > 0:
            self.counts[data.item_id] += 1
            self._positive[data.item_id].add(data.user_id)
        if weight:
            votes, voter = self._votes[data.item_id], (data.user_id, str(data.action))
            votes[voter] = max(time_ms, votes.get(voter, time_ms))
        self._newest[data.item_id] = max(time_ms, self._newest.get(data.item_id, time_ms))
        self._since[data.user_id] = min(time_ms, self._since.get(data.user_id, time_ms))
        member = HistoryEntry(event.id, data.item_id, data.action, data.rating, time_ms).member()
        self._histories[data.user_id].append((time_ms, member))

    @property
    def uniques(self) -> dict[str, int]:
        """Users with a positive action, per item."""
        return {item: len(users) for item, users in self._positive.items()}

    @property
    def users(self) -> list[str]:
        return list(self._histories)

    def history(self, user_id: str) -> list[tuple[int, bytes]]:
        """The (event time ms, history member) pairs that must be kept of a user, oldest first."""
        return sorted(self._histories[user_id])[-self.history_length :]

    def trend(self, item_id: str) -> tuple[float, NDArray[np.float64]]:
        """Event time ms of an item's newest event, and its decayed sums as of then.

        First of each user's newest event of each action, then of those by users who were here long enough.
        """
        half_lives = np.array(list(HALF_LIVES_MS.values()))
        if item_id not in self._newest:
            return -math.inf, np.zeros(2 * len(half_lives))
        newest, votes = self._newest[item_id], self._votes[item_id]
        rows = [
            (at, self.weights[action], self._since[user]) for (user, action), at in votes.items()
        ]
        at, weight, since = np.array(rows, np.float64).reshape(-1, 3).T
        worth = weight[:, None] * 0.5 ** ((newest - at)[:, None] / half_lives)
        vouched = worth[at - since >= self.established_ms]
        return float(newest), np.concatenate([worth.sum(axis=0), vouched.sum(axis=0)])

    @property
    def trending(self) -> list[str]:
        """Items that must have a trend."""
        return list(self._newest)


def recount(settings: Settings, positions: dict[Place, int]) -> Recount:
    """Count the log from its beginning to the position of each partition.

    Raises LogTruncated where the log no longer has its beginning, and Unavailable.
    """
    total = Recount.of(settings)
    wanted = {place: position for place, position in positions.items() if position >= 0}
    try:
        consumer = _consumer(settings)
        try:
            total.until = _forgotten(consumer, settings.kafka.topics.forgotten)
            _read(consumer, wanted, total)
        finally:
            consumer.close()
    except KafkaError as error:
        raise Unavailable(f"Kafka at {settings.kafka.bootstrap}: {error}") from None
    return total


def _forgotten(consumer: KafkaConsumer, topic: str) -> dict[str, int]:
    """Until when (event time ms) each forgotten user is forgotten."""
    places = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
    until: dict[str, int] = {}
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    ends = consumer.end_offsets(places) if places else {}
    while any(consumer.position(place) < end for place, end in ends.items()):
        for records in consumer.poll(timeout_ms=1000).values():
            for record in records:
                user_id, until_ms = decode_forgotten(record.key, record.value)
                until[user_id] = max(until_ms, until.get(user_id, until_ms))
    return until


def log_ends(settings: Settings) -> dict[Place, int]:
    """The last offset of each partition, −1 where it is empty."""
    try:
        consumer = _consumer(settings)
        try:
            partitions = [
                TopicPartition(topic, partition)
                for topic in settings.kafka.topics.interactions
                for partition in consumer.partitions_for_topic(topic) or ()
            ]
            ends = consumer.end_offsets(partitions)
        finally:
            consumer.close()
    except KafkaError as error:
        raise Unavailable(f"Kafka at {settings.kafka.bootstrap}: {error}") from None
    return {(place.topic, place.partition): end - 1 for place, end in ends.items()}


def _consumer(settings: Settings) -> KafkaConsumer:
    return KafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap.split(","),
        enable_auto_commit=False,
        group_id=None,
        max_partition_fetch_bytes=4 << 20,
        fetch_max_bytes=16 << 20,
        max_poll_records=5000,
    )


def _read(consumer: KafkaConsumer, wanted: dict[Place, int], total: Recount) -> None:
    pending = {TopicPartition(*place): position for place, position in wanted.items()}
    consumer.assign(list(pending))
    missing = sum(consumer.beginning_offsets(list(pending)).values())
    if missing:
        raise LogTruncated(
            f"{missing} events are missing from the log; counts cannot be proved from it"
        )
    consumer.seek_to_beginning(*pending)
    while pending:
        for place, records in consumer.poll(timeout_ms=1000).items():
            last = pending.get(place, -1)
            for record in records:
                if record.offset <= last:
                    total.add(record.value, record.timestamp)
            if records and records[-1].offset >= last:
                pending.pop(place, None)
                consumer.pause(place)
