"""An independent recount of the Kafka log: the expected state, in plain Python over another Kafka
client.

Shares the codecs of records with the stream and nothing else: other arithmetic, order of work and
client.

reads   topic  reviews, feedback, impressions, forgotten
        delta  <archive>, <archive>-impressions, for what the topics no longer hold
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from afterclick.arrays import Float64Array
from afterclick.errors import BadEvent, LogTruncated
from afterclick.events import MAX_LEAD_MS, SESSION, InteractionEvent, decode_interaction
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.forgotten import decode_requests
from afterclick.io.kafka_clients import python_consumer, python_unavailable
from afterclick.settings import Settings
from afterclick.state import LATE_ITEMS, HistoryEntry, TopicPartition
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from streaming.proof.archive_log import archived_rows, event_of
from streaming.proof.exposure_recount import ExposureRecount

_Vote = tuple[int, int, int]
"""Event time and trusted time of a vote, ms, and the stars of a review; 0 without."""
_Ratings = tuple[int, int, int, int]
"""Reviews with stars, the sum of their stars, the positive ones, and interactions that are not
positive."""
_Voter = tuple[str, int]
"""A user, and how often they have expired."""


@dataclass
class Recount:
    """The state that a log of events must result in, up to an offset per partition."""

    weights: dict[str, float]
    star_weights: dict[int, float]
    history_length: int
    max_ahead_ms: float
    established_ms: float
    max_voted_items: int
    session_ttl_ms: float
    user_ttl_ms: float
    events: int = 0
    malformed: int = 0
    duplicates: int = 0
    forgotten: int = 0
    until: dict[str, int] = field(default_factory=dict)
    """user_id → event time ms up to which the user is forgotten."""
    retracted: dict[str, float] = field(default_factory=dict)
    """item_id → newest event time ms of its forgotten events; its trend may keep that time."""
    erased_ms: float = -math.inf
    """The same of every item: infinite if forgotten events were erased from the archive."""
    counts: Counter[str] = field(default_factory=Counter)
    _not_positive: Counter[str] = field(default_factory=Counter)
    _activity: dict[str, tuple[int, float]] = field(default_factory=dict)
    """user_id → how often the user has expired, and when the newest event reached the log."""
    _seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _positive: dict[str, set[_Voter]] = field(default_factory=lambda: defaultdict(set))
    _newest: dict[str, int] = field(default_factory=dict)
    _votes: dict[str, dict[tuple[_Voter, str], _Vote]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _voted: dict[_Voter, set[str]] = field(default_factory=lambda: defaultdict(set))
    _since: dict[_Voter, int] = field(default_factory=dict)
    _histories: dict[str, list[tuple[int, bytes]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @classmethod
    def of(cls, settings: Settings) -> Recount:
        stream = settings.stream
        weights = {str(action): weight for action, weight in stream.weights.items()}
        established_ms = stream.established_days * DAY_MS
        return cls(
            weights,
            dict(stream.star_weights),
            stream.history_length,
            stream.ahead_s * 1000,
            established_ms,
            stream.max_voted_items,
            stream.session_ttl_days * DAY_MS,
            stream.user_ttl_days * DAY_MS,
        )

    def add(self, value: bytes | None, log_ms: float) -> None:
        """Count one record of the log."""
        self.events += 1
        try:
            event = decode_interaction(value)
        except BadEvent:
            self.malformed += 1
            return
        self.add_event(event, log_ms)

    def add_event(self, event: InteractionEvent, log_ms: float) -> None:
        """Count one valid event that reached the log at this time."""
        latest_ms, data = round(log_ms) + MAX_LEAD_MS, event.data
        if event.time_ms - log_ms > self.max_ahead_ms:
            self.malformed += 1
            return
        time_ms = min(event.time_ms, latest_ms)
        if time_ms <= self.until.get(data.user_id, -math.inf):
            self.forgotten += 1
            self.retracted[data.item_id] = max(time_ms, self.retracted.get(data.item_id, time_ms))
            return
        if event.id in self._seen[data.user_id]:
            self.duplicates += 1
            return
        self._seen[data.user_id].add(event.id)
        voter = self._voter(data.user_id, log_ms)
        action, stars, rating = str(data.action), 0, data.rating
        if action == "review" and rating is not None:
            stars = min(range(1, 6), key=lambda n: (abs(n - rating), -n))
        trusted_ms = min(event.trusted_ms(log_ms), latest_ms)
        voted, vote = self._voted[voter], (time_ms, trusted_ms, stars)
        if voter not in self._since or len(voted) <= LATE_ITEMS:
            self._since[voter] = min(vote[1], self._since.get(voter, vote[1]))
        weight = 0.0 if event.is_copy else self._weight(action, stars)
        if weight > 0 or (stars and not event.is_copy):
            self.counts[data.item_id] += 1
            self._not_positive[data.item_id] += weight <= 0
        votes_on = weight != 0 or (action == "review" and not event.is_copy)
        if votes_on and (data.item_id in voted or len(voted) < self.max_voted_items):
            voted.add(data.item_id)
            if weight > 0:
                self._positive[data.item_id].add(voter)
            votes = self._votes[data.item_id]
            votes[voter, action] = max(vote, votes.get((voter, action), vote))
        self._newest[data.item_id] = max(time_ms, self._newest.get(data.item_id, time_ms))
        member = HistoryEntry(event.id, data.item_id, data.action, data.rating, time_ms).member()
        self._histories[data.user_id].append((time_ms, member))

    def _weight(self, action: str, stars: int) -> float:
        return self.star_weights[stars] if stars else self.weights.get(action, 0.0)

    def _voter(self, user_id: str, log_ms: float) -> _Voter:
        """The user, another one after each time without events that is longer than the TTL."""
        times, newest = self._activity.get(user_id, (0, log_ms))
        if log_ms - newest > self._ttl_ms(user_id):
            times += 1
            self._histories[user_id].clear()
        self._activity[user_id] = times, max(newest, log_ms)
        return user_id, times

    def expired(self, user_id: str, now_ms: float) -> bool:
        """Whether the user's history may have expired in Redis."""
        return now_ms - self._activity[user_id][1] > self._ttl_ms(user_id)

    def _ttl_ms(self, user_id: str) -> float:
        return self.session_ttl_ms if user_id.startswith(SESSION) else self.user_ttl_ms

    @property
    def uniques(self) -> dict[str, int]:
        """item_id → users with a positive action."""
        return {item: len(users) for item, users in self._positive.items()}

    @property
    def ratings(self) -> dict[str, _Ratings]:
        """item_id → the counts of its reviews with stars, for items that have any."""
        rated: dict[str, list[int]] = {
            item: [stars for _, _, stars in votes.values() if stars]
            for item, votes in self._votes.items()
        }
        items = {item for item, stars in rated.items() if stars} | (+self._not_positive).keys()
        return {
            item: (
                len(stars := rated.get(item, [])),
                sum(stars),
                sum(self.star_weights[n] > 0 for n in stars),
                self._not_positive[item],
            )
            for item in items
        }

    @property
    def users(self) -> list[str]:
        return list(self._histories)

    def history(self, user_id: str) -> list[tuple[int, bytes]]:
        """The expected (event time ms, history member) pairs of a user, oldest first."""
        return sorted(self._histories[user_id])[-self.history_length :]

    def trend(self, item_id: str) -> tuple[float, Float64Array]:
        """Event time ms of an item's newest event, and (2·H,) decayed sums as of then.

        First of each user's newest event of each action, then of those by established users.
        """
        half_lives = np.array(list(HALF_LIVES_MS.values()))
        if item_id not in self._newest:
            return -math.inf, np.zeros(2 * len(half_lives))
        newest, votes = self._newest[item_id], self._votes[item_id]
        rows = [
            (time_ms, self._weight(action, stars), trusted_ms - self._since[user])
            for (user, action), (time_ms, trusted_ms, stars) in votes.items()
        ]
        time_ms, weight, age_ms = np.array(rows, np.float64).reshape(-1, 3).T
        is_established = age_ms >= self.established_ms
        weight[(weight < 0) & ~is_established] = 0.0  # new accounts do not lower trends
        decayed = weight[:, None] * 0.5 ** ((newest - time_ms)[:, None] / half_lives)
        established = decayed[is_established]
        return float(newest), np.concatenate([decayed.sum(axis=0), established.sum(axis=0)])

    @property
    def trending(self) -> list[str]:
        """Items that must have a trend."""
        return list(self._newest)


def recount(
    settings: Settings, applied: dict[TopicPartition, int], exposures: ExposureRecount
) -> Recount:
    """Count the log from its beginning to the applied offset of each partition, and add what it
    holds up to the offsets of `exposures` to them.

    What retention has deleted from the topics is counted from the archive. Raises LogTruncated if
    the archive does not have all of it, and Unavailable.
    """
    total = Recount.of(settings)
    with _consumer(settings) as consumer:
        total.until = _read_forgotten(consumer, settings.kafka.topics.forgotten)
        exposures.until = total.until
        both = applied.keys() | exposures.offsets.keys()
        last = {name: max(applied.get(name, -1), exposures.offsets.get(name, -1)) for name in both}
        last = {name: offset for name, offset in last.items() if offset >= 0}
        begins = {
            TopicPartition(name.topic, name.partition): begin
            for name, begin in consumer.beginning_offsets(
                [KafkaPartition(*name) for name in last]
            ).items()
        }
        shown = {name: n for name, n in begins.items() if name.topic == exposures.impressions}
        exposures.read_archive(settings.impression_archive, shown)
        missing = {name: n for name, n in begins.items() if n and name in applied}
        _read_archive(settings.archive, missing, last, _Readers(total, applied, exposures))
        _read(consumer, last, _Readers(total, applied, exposures))
    return total


@dataclass(frozen=True)
class _Readers:
    """What takes the records of the log."""

    total: Recount
    applied: dict[TopicPartition, int]
    exposures: ExposureRecount

    def add(self, name: TopicPartition, offset: int, value: bytes | None, log_ms: float) -> None:
        if offset <= self.applied.get(name, -1):
            self.total.add(value, log_ms)
        self.exposures.add(name, offset, value, log_ms)

    def add_event(
        self, name: TopicPartition, offset: int, event: InteractionEvent, log_ms: float
    ) -> None:
        if offset <= self.applied.get(name, -1):
            self.total.events += 1
            self.total.add_event(event, log_ms)
        if offset <= self.exposures.offsets.get(name, -1):
            self.exposures.add_reaction(event, log_ms)


def _read_archive(
    uri: str,
    missing: dict[TopicPartition, int],
    last: dict[TopicPartition, int],
    readers: _Readers,
) -> None:
    """Read the events before the beginning of each partition."""
    if not missing:
        return
    readers.total.erased_ms = math.inf
    try:
        archive = EventArchive.open(uri)
    except MissingArchive:
        raise LogTruncated(
            f"{sum(missing.values())} events are missing from the log, and there is no archive in "
            f"{uri}; counts cannot be verified"
        ) from None
    for name, begin in missing.items():
        end = min(begin, last[name] + 1)
        if archive.offset(name) < end - 1 or archive.deleted_day >= 0:
            raise LogTruncated(
                f"the first {begin} events of {name} are missing from the log, and the archive in "
                f"{uri} does not have all of them; counts cannot be verified"
            )
        for row in archived_rows(archive, name, end):
            log_ms = row["log_time"].timestamp() * 1000
            readers.add_event(name, row["offset"], event_of(row), log_ms)


def _read_forgotten(consumer: KafkaConsumer, topic: str) -> dict[str, int]:
    """user_id → event time ms."""
    partitions = _partitions(consumer, topic)
    until: dict[str, int] = {}
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions) if partitions else {}
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(timeout_ms=1000).values():
            found = decode_requests((each.offset, each.key, each.value) for each in records)
            until |= {user: max(ms, until.get(user, ms)) for user, ms in found.items()}
    return until


def last_offsets(settings: Settings, *topics: str) -> dict[TopicPartition, int]:
    """The offset of the last record of each partition (default: of the interaction topics), −1 if
    it is empty. Raises Unavailable.

    A transaction's marker, which ends a partition as well, is no record.
    """
    with _consumer(settings) as consumer:
        partitions = _partitions(consumer, *(topics or settings.kafka.topics.interactions))
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        last = {name: begin - 1 for name, begin in begins.items()}
        starts, back = {name: end for name, end in ends.items() if end > begins[name]}, 1
        while starts:
            starts = {name: max(begins[name], ends[name] - back) for name in starts}
            last |= _last_after(consumer, starts, ends)
            starts = {
                name: start
                for name, start in starts.items()
                if last[name] < start and start > begins[name]
            }
            back *= 16
    return {TopicPartition(name.topic, name.partition): offset for name, offset in last.items()}


def _last_after(
    consumer: KafkaConsumer, starts: dict[KafkaPartition, int], ends: dict[KafkaPartition, int]
) -> dict[KafkaPartition, int]:
    """The last record from `starts` to `ends`, where there is one."""
    last = {}
    consumer.assign(list(starts))
    for name, start in starts.items():
        consumer.seek(name, start)
    while any(consumer.position(name) < ends[name] for name in starts):
        for name, records in consumer.poll(timeout_ms=1000).items():
            offsets = [record.offset for record in records if record.offset < ends[name]]
            if offsets:
                last[name] = offsets[-1]
    return last


@contextmanager
def _consumer(settings: Settings) -> Iterator[KafkaConsumer]:
    try:
        consumer = python_consumer(
            settings.kafka,
            enable_auto_commit=False,
            isolation_level="read_committed",
            group_id=None,
            max_partition_fetch_bytes=4 << 20,
            fetch_max_bytes=16 << 20,
            max_poll_records=5000,
        )
        try:
            yield consumer
        finally:
            consumer.close()
    except KafkaError as error:
        raise python_unavailable(settings.kafka, error) from None


def _partitions(consumer: KafkaConsumer, *topics: str) -> list[KafkaPartition]:
    return [
        KafkaPartition(topic, number)
        for topic in topics
        for number in consumer.partitions_for_topic(topic) or ()
    ]


def _read(consumer: KafkaConsumer, last: dict[TopicPartition, int], readers: _Readers) -> None:
    """Read what the topics hold up to the last offset of each partition."""
    pending = {KafkaPartition(*name): offset for name, offset in last.items()}
    if not pending:  # nothing is applied yet
        return
    begins = consumer.beginning_offsets(list(pending))
    pending = {name: last for name, last in pending.items() if last >= begins[name]}
    if not pending:
        return
    consumer.assign(list(pending))
    consumer.seek_to_beginning(*pending)
    while pending:
        for partition, records in consumer.poll(timeout_ms=1000).items():
            name, end = TopicPartition(*partition), pending.get(partition, -1)
            for record in records:
                if record.offset <= end:
                    readers.add(name, record.offset, record.value, record.timestamp)
            if records and records[-1].offset >= end:
                pending.pop(partition, None)
                consumer.pause(partition)
