"""Codecs of what lies in Redis per user, and of the records on `state-changes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import orjson
from pydantic import BaseModel, ConfigDict

from afterclick.errors import BadEvent
from afterclick.events import Action

_PARTITIONS = 1024
_FLAGS = 4
_MAX_OFFSET = 2**53 // (_PARTITIONS * _FLAGS) - 1
Correction = tuple[str, int, float, float]
"""What an event adds to a trend besides its own vote: item_id, event time ms, weight, established weight."""


def place(partition: int, offset: int) -> int:
    """Where in a topic a record stands, as an integer that a Redis score (a double) holds exactly.

    Ordered by offset first. The ledger adds 1 to it where the event was *novel*, 2 where its user was
    *established*. Offsets reach 2**41 − 1.
    """
    if not 0 <= partition < _PARTITIONS:
        raise ValueError(f"partition {partition} out of range 0..{_PARTITIONS - 1}")
    if not 0 <= offset <= _MAX_OFFSET:
        raise ValueError(f"offset {offset} out of range 0..{_MAX_OFFSET}")
    return (offset * _PARTITIONS + partition) * _FLAGS


def place_of(score: float) -> tuple[int, int, bool, bool]:
    """Partition, offset, novel and established of a ledger entry's score: the inverse of `place`."""
    rest, flags = divmod(int(score), _FLAGS)
    offset, partition = divmod(rest, _PARTITIONS)
    return partition, offset, bool(flags & 1), bool(flags & 2)


def vote_codes(weights: Mapping[str, float]) -> dict[str, str]:
    """Action → the letter of its vote: a capital where it is positive, empty where it has no weight."""
    codes = {}
    for action, letter in zip(Action, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False):
        weight = weights.get(action, 0.0)
        codes[str(action)] = letter if weight > 0 else letter.lower() if weight else ""
    return codes


def corrections_of(raw: bytes, weights: Mapping[str, float]) -> tuple[Correction, ...]:
    """What the stream's functions say an event corrects. `weights` by code of `vote_codes`."""
    return tuple(
        (item_id, int(time_ms), votes * weights[code], established * weights[code])
        for item_id, code, time_ms, votes, established in orjson.loads(raw)
    )


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One interaction in a user's history. The event time is the score beside it."""

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


def effective(history: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """What is left of a history, in its order, once each `undo` has taken back what was not after it.

    An undo takes back what the same user did with the same item at its event time or before, and is itself no
    deed: an item of which nothing is left has not been seen.
    """
    entries = list(history)
    undone: dict[str, int] = {}
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


class Effect(StrEnum):
    """What an event did to the state."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # the same event id stands at an earlier position; nothing was counted
    FORGOTTEN = "forgotten"  # its user was forgotten after it; nothing was counted
    REPLAYED = "replayed"  # this position was applied before a restart; nothing was counted again

    @property
    def counts(self) -> bool:
        """Whether the state has the event."""
        return self in (Effect.APPLIED, Effect.REPLAYED)


class StateChange(BaseModel):
    """A record on `state-changes`, key user_id: this event is now in Redis.

    Delivered at least once and, per source partition, in offset order: a reader that keeps the highest
    `offset` per (`topic`, `partition`) and ignores what is not above it sees each change once.
    Stamps are wall-clock milliseconds since the epoch: handed to Kafka by who made the event (where that
    was said), appended by the broker, read by Spark, applied to Redis.
    """

    model_config = ConfigDict(frozen=True)

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
    effect: Effect
    weight: float
    novel: bool
    established: bool = False
    corrections: tuple[Correction, ...] = ()
    produced_ms: float | None = None
    log_ms: float
    read_ms: float
    applied_ms: float

    def encode(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self, exclude_none=True)

    @classmethod
    def decode(cls, raw: bytes) -> StateChange:
        try:
            return cls.model_validate_json(raw)
        except ValueError as error:
            raise BadEvent(f"not a state change: {error}") from None
