"""Log positions, and codecs of Redis values, `state-changes` and `forgotten` records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from afterclick.errors import BadEvent
from afterclick.events import END_YEAR, Action
from afterclick.signals import Signals, stars_of

_MAX_PARTITIONS = 1024
_FLAGS = 4
LATE_ITEMS = 200
"""Items that a user may have voted on for an event older than the user's first to change those
votes: a limit on the work of one event."""
_END_MS = int(datetime(END_YEAR, 1, 1, tzinfo=UTC).timestamp() * 1000)
_MAX_OFFSET = 2**53 // (_MAX_PARTITIONS * _FLAGS) - 1


class TopicPartition(NamedTuple):
    """A partition of a topic; equal to the tuple (topic, partition)."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `topic/partition`, as `str` writes it."""
        topic, _, partition = text.rpartition("/")
        return cls(topic, int(partition))


class LogPosition(NamedTuple):
    """The position of a record in the log."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `topic/partition/offset`. Raises ValueError."""
        topic, _, offset = text.rpartition("/")
        topic, _, partition = topic.rpartition("/")
        if not (topic and all(n.isascii() and n.isdigit() for n in (partition, offset))):
            raise ValueError("expected topic/partition/offset")
        return cls(topic, int(partition), int(offset))


class Compensation(NamedTuple):
    """A later change of an item's trend: a vote was replaced, or its user is now established."""

    item_id: str
    time_ms: int
    weight: float
    established: float
    """The part of `weight` from established users."""
    stars: int = 0
    """Those of a review that is no longer in effect: another one replaced it."""


class Delta(NamedTuple):
    """What one event adds to an item: to its trend, its counts (`COUNTS_*`) and its stars."""

    item_id: str
    time_ms: int
    weight: float
    established: float
    counts: str
    stars: int = 0
    """Those of a review that takes effect; negative if it is no longer in effect."""

    def arguments(self) -> tuple[str | int, ...]:
        """As the stream's functions take it; floats by `repr`, which is exact."""
        return (
            self.item_id,
            self.time_ms,
            repr(self.weight),
            repr(self.established),
            self.counts,
            self.stars,
        )


COUNTS_NOTHING, COUNTS_INTERACTION, COUNTS_USER = "0", "1", "2"
"""Code of a delta's counts: none; an interaction; an interaction and a new user."""


@dataclass(frozen=True, slots=True)
class Effects:
    """How an event entered the state; kept in the ledger, so that `forget` can retract it."""

    first_user_item: bool = False
    """The user's first positive action on the item."""
    established: bool = False
    compensations: tuple[Compensation, ...] = ()

    def deltas(self, item_id: str, time_ms: int, weight: float, stars: int) -> Iterator[Delta]:
        """The event's own delta, then one per compensation. `stars`: see `signals.stars_of`."""
        counted = counted_weight(weight, self.established)
        established = counted if self.established else 0.0
        counts = COUNTS_INTERACTION if is_interaction(weight, stars) else COUNTS_NOTHING
        if self.first_user_item:
            counts = COUNTS_USER
        yield Delta(item_id, time_ms, counted, established, counts, stars)
        for item, ms, change, of_established, replaced in self.compensations:
            yield Delta(item, ms, change, of_established, COUNTS_NOTHING, -replaced)


def is_interaction(weight: float, stars: int) -> bool:
    """Whether an event counts as an interaction: every positive one, and every review with
    stars."""
    return weight > 0 or stars > 0


class StarCounts(NamedTuple):
    """Exact counts of an item's reviews with stars; of a user's reviews the newest is in effect."""

    ratings: int = 0
    """Reviews in effect."""
    stars: int = 0
    """Sum of their stars."""
    positive: int = 0
    """Those of positive weight."""
    not_positive: int = 0
    """Interactions without positive weight, also replaced ones."""

    @classmethod
    def decode(cls, raw: bytes) -> StarCounts:
        """From the value in Redis."""
        return cls(*map(int, raw.split()))

    def encode(self) -> bytes:
        return " ".join(map(str, self)).encode()

    def plus(self, other: StarCounts) -> StarCounts:
        return StarCounts(*(a + b for a, b in zip(self, other, strict=True)))


def counted_weight(weight: float, established: bool) -> float:
    """The part of a vote's weight that counts in trends: a new account cannot lower any."""
    return weight if weight > 0 or established else 0.0


def pack_offset(partition: int, offset: int) -> int:
    """A record's position in its topic, as an integer that a Redis score (a double) holds exactly.

    Ordered by offset first. The ledger adds flags: 1 for `first_user_item`, 2 for `established`.
    Offsets reach 2**41 − 1. Raises ValueError.
    """
    if not 0 <= partition < _MAX_PARTITIONS:
        raise ValueError(f"partition {partition} out of range 0..{_MAX_PARTITIONS - 1}")
    if not 0 <= offset <= _MAX_OFFSET:
        raise ValueError(f"offset {offset} out of range 0..{_MAX_OFFSET}")
    return (offset * _MAX_PARTITIONS + partition) * _FLAGS


def unpack_offset(score: float) -> tuple[int, int, bool, bool]:
    """Partition, offset, first_user_item and established; inverts `pack_offset`."""
    rest, flags = divmod(int(score), _FLAGS)
    offset, partition = divmod(rest, _MAX_PARTITIONS)
    return partition, offset, bool(flags & 1), bool(flags & 2)


def decode_compensations(raw: bytes, signals: Signals) -> tuple[Compensation, ...]:
    """Decode an event's compensations, as written by the stream's functions."""
    compensations = []
    for item_id, code, time_ms, votes, established, *replaced in orjson.loads(raw):
        weight, stars = signals.weight_of_code[code], signals.stars_of_code[code]
        compensations.append(
            Compensation(
                item_id,
                int(time_ms),
                votes * weight,
                established * weight,
                stars if replaced else 0,
            )
        )
    return tuple(compensations)


def encode_forgotten(until_ms: int) -> bytes:
    """Value of a `forgotten` record (key: user_id): forget the user up to this event time."""
    return orjson.dumps({"until_ms": until_ms})


def decode_forgotten(key: bytes | None, value: bytes | None) -> tuple[str, int]:
    """user_id and event time ms of a `forgotten` record. Raises BadEvent."""
    try:
        user_id, until_ms = (key or b"").decode(), orjson.loads(value or b"")["until_ms"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadEvent(f"not a record of `forgotten`: {error}") from None
    if not user_id or not isinstance(until_ms, int) or not 0 <= until_ms < _END_MS:
        raise BadEvent("not a record of `forgotten`: it needs a user id and a time in until_ms")
    return user_id, until_ms


class Forgetting(BaseModel):
    """What was removed of a user: the value of `{u:<user>}:erased`."""

    model_config = ConfigDict(frozen=True)

    until_ms: int
    """Event time up to which the user is forgotten."""
    events: int
    """Events whose counts and trends were retracted."""
    remaining: int
    """Events whose counts remain, without a user: the log or the ledger no longer has them."""
    rows: int = 0
    """Rows erased from the event archive."""
    finished_ms: int | None = None
    """When it was complete; None: the log still has the user's rows."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One interaction in a user's history. The event time is the member's score."""

    event_id: str
    item_id: str
    action: Action
    rating: float | None
    time_ms: int

    def member(self) -> bytes:
        """The entry as a sorted-set member: the same event always gives the same bytes."""
        return orjson.dumps([self.event_id, self.item_id, self.action, self.rating])

    @classmethod
    def from_member(cls, member: bytes, time_ms: float) -> HistoryEntry:
        event_id, item_id, action, rating = orjson.loads(member)
        return cls(event_id, item_id, Action(action), rating, int(time_ms))


IdT_co = TypeVar("IdT_co", covariant=True)


class PastEvent(Protocol[IdT_co]):
    """An event of a history: a stored entry, or a row of a log."""

    @property
    def item_id(self) -> IdT_co: ...
    @property
    def action(self) -> Action: ...
    @property
    def rating(self) -> float | None: ...
    @property
    def time_ms(self) -> int: ...


EventT = TypeVar("EventT", bound=PastEvent[Any])


def effective(history: Iterable[EventT]) -> list[EventT]:
    """The history without undone entries and without the `undo` entries, in the same order.

    An undo cancels the user's entries for the same item up to its own event time. An item with no
    entry left counts as unseen.
    """
    entries = list(history)
    undone: dict[Any, int] = {}
    for entry in entries:
        if entry.action is Action.UNDO:
            undone[entry.item_id] = max(entry.time_ms, undone.get(entry.item_id, entry.time_ms))
    if not undone:
        return entries
    return [
        entry
        for entry in entries
        if entry.action is not Action.UNDO
        and (entry.item_id not in undone or entry.time_ms > undone[entry.item_id])
    ]


def newest_reviews(entries: Iterable[EventT]) -> dict[Any, EventT]:
    """item_id → the user's review of the item that counts: the newest, of several at one time the
    one with most stars."""
    newest: dict[Any, EventT] = {}
    for entry in entries:
        if entry.action is Action.REVIEW:
            known = newest.get(entry.item_id)
            if known is None or _order(known) < _order(entry):
                newest[entry.item_id] = entry
    return newest


def _order(review: PastEvent[Any]) -> tuple[int, int]:
    return review.time_ms, stars_of(review.action, review.rating)


class Effect(StrEnum):
    """What an event did to the state."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # the event id was applied at an earlier position; not counted
    FORGOTTEN = "forgotten"  # the user was forgotten after the event; not counted
    REPLAYED = "replayed"  # applied before a restart; not counted again

    @property
    def counts(self) -> bool:
        """Whether the event is part of the state."""
        return self in (Effect.APPLIED, Effect.REPLAYED)


class StateChange(BaseModel):
    """A record on `state-changes` (key: user_id): this event is now in Redis.

    Delivered at least once and, per source partition, in offset order: a reader that keeps the
    highest `offset` per (`topic`, `partition`) and skips the rest sees each change once. Timestamps
    are wall-clock milliseconds since the epoch: sent by the producer (if known), appended by the
    broker, read by Spark, applied to Redis.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    user_id: str
    item_id: str
    action: Action
    event_id: str
    rating: float | None = None
    impression_id: str | None = None
    time_ms: int
    topic: str
    partition: int
    offset: int
    previous_offset: int | None = None
    """Offset of the state change before this one, if known: between the two is none."""
    effect: Effect
    weight: float
    stars: int | None = None
    """Of a review that takes effect: 1 to 5."""
    first_user_item: bool = Field(alias="novel")
    established: bool = False
    compensations: tuple[Compensation, ...] = Field((), alias="corrections")
    is_copy: bool = False
    """A copy of a session's event, which the user got at login."""
    resync: bool = False
    """The compensations are too many to be sent: read the trends from Redis."""
    produced_ms: float | None = None
    log_ms: float
    read_ms: float
    applied_ms: float

    def encode(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self, exclude_none=True, by_alias=True)

    def without_compensations(self) -> Self:
        """The change for readers that read the trends from Redis instead; of bounded size."""
        return self.model_copy(update={"compensations": (), "resync": True})

    @classmethod
    def decode(cls, raw: bytes) -> StateChange:
        try:
            return cls.model_validate_json(raw)
        except ValueError as error:
            raise BadEvent(f"not a state change: {error}") from None
