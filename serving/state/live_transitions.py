"""The newest first contacts of users with items, which update the transition graph of each model.

reads   topic  state-changes

Each process follows the topic and keeps the newest MAX_EVENTS events of all users in a ring, each
with a link to its user's event before. A snapshot's builder counts the events since its last one:
those that its model has learned only come before others. So a new model begins with the events of
the ring that it lacks, and nothing counts twice. When events are taken back (undone, replaced by a
negative review, of a forgotten user), the counts are made again from the ring.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Final

import numpy as np
import structlog
from confluent_kafka import Message
from numpy.typing import NDArray

from afterclick.arrays import BoolArray
from afterclick.errors import BadEvent
from afterclick.events import Action
from afterclick.live_transitions import (
    HALF_LIFE_MS,
    MAX_EVENTS,
    MAX_LAG,
    EventArrays,
    LiveTransitions,
    NewAccountLimits,
)
from afterclick.model import Model
from afterclick.settings import Settings
from afterclick.signals import Signals
from afterclick.state import StateChange
from afterclick.transitions import TransitionGraph
from serving.state.kafka_reader import TopicReader

log = structlog.get_logger()
RECOUNT_S: Final = 60.0
"""Between two times that a graph is counted again because events were taken back."""
MAX_ROWS: Final = MAX_EVENTS + MAX_EVENTS // 8
"""Items with live counts from which on they are counted again, from the events of the ring."""
REFRESH_MS: Final = HALF_LIFE_MS / 100
"""Event time after which all live rows are made again: they fade."""
_NO_EVENT = -1
_NO_PARTITION = ""


@dataclass(frozen=True)
class LearnedEvents:
    """The events that a model has learned."""

    positions: Mapping[str, int] = field(default_factory=dict)
    """topic/partition → last learned offset; a partition that is missing has none. Empty: by
    time."""
    until_ms: float = 0.0
    """Event time before which all are learned, where no positions are known."""


@dataclass(frozen=True)
class Contact:
    """A user's first positive event on an item."""

    user_id: str
    item_id: str
    time_ms: float
    established: bool = False
    partition: str = _NO_PARTITION
    """topic/partition; empty: not from a log"""
    offset: int = -1
    only_before: bool = False
    """It counts under another user: it only comes before later events of this one."""


class RecentContacts:
    """A ring of the newest contacts. `lock` is held while they are added, changed and read."""

    def __init__(self, slots: int = MAX_EVENTS) -> None:
        self.lock = threading.RLock()
        self.slots, self.end = slots, 0
        """Number of the next contact."""
        self.taken_back = 0
        """Counts contacts that were taken back."""
        self.newest_ms = 0.0
        self.arrays = EventArrays(
            np.full(slots, _NO_EVENT, np.int64),
            np.zeros(slots),
            np.zeros(slots, np.bool_),
            np.zeros(slots, np.bool_),
        )
        self._user_ids: list[str] = [""] * slots
        self._item_ids: list[str] = [""] * slots
        self._newest: dict[str, int] = {}
        """User → number of the newest contact."""
        self._partition: list[str] = [_NO_PARTITION] * slots
        self._offset = np.full(slots, -1, np.int64)

    @property
    def version(self) -> tuple[int, int]:
        """Changes with every contact that is added or taken back."""
        return self.end, self.taken_back

    def __len__(self) -> int:
        """Contacts in the ring."""
        return min(self.end, self.slots)

    @property
    def users(self) -> int:
        """Users of contacts in the ring."""
        return len(self._newest)

    def add(self, contact: Contact) -> None:
        """Add a contact; the oldest one gives way."""
        slot, number = self.end % self.slots, self.end
        if number >= self.slots:
            oldest_user = self._user_ids[slot]
            if self._newest.get(oldest_user) == number - self.slots:
                del self._newest[oldest_user]
        arrays = self.arrays
        arrays.previous[slot] = self._newest.get(contact.user_id, _NO_EVENT)
        arrays.time_ms[slot] = contact.time_ms
        arrays.established[slot] = contact.established
        arrays.alive[slot] = True
        self._user_ids[slot], self._item_ids[slot] = contact.user_id, intern(contact.item_id)
        self._partition[slot] = intern(contact.partition)
        self._offset[slot] = np.iinfo(np.int64).min if contact.only_before else contact.offset
        self._newest[contact.user_id] = number
        self.newest_ms = max(self.newest_ms, contact.time_ms)
        self.end += 1

    def take_back(self, user_id: str, item_id: str, time_ms: float) -> None:
        """The user's contact with an item up to a time no longer counts, if it is among the newest
        ones."""
        number = self._newest.get(user_id, _NO_EVENT)
        for _ in range(4 * MAX_LAG):
            if number < self.end - self.slots or number < 0:
                return
            slot = number % self.slots
            if self._item_ids[slot] == item_id and self.arrays.time_ms[slot] <= time_ms:
                self._drop(slot)
                return
            number = int(self.arrays.previous[slot])

    def forget(self, until_ms: Mapping[str, int]) -> None:
        """Drop the contacts of users up to their times."""
        with self.lock:
            for user_id, time_ms in until_ms.items():
                number = self._newest.get(user_id, _NO_EVENT)
                while number >= max(0, self.end - self.slots):
                    slot = number % self.slots
                    if self.arrays.time_ms[slot] <= time_ms:
                        self._drop(slot)
                        self._user_ids[slot] = ""
                        if self._newest.get(user_id) == number:
                            del self._newest[user_id]
                    number = int(self.arrays.previous[slot])

    def items_of(self, numbers: range) -> list[str]:
        """The item ids of a range of contacts."""
        return [self._item_ids[number % self.slots] for number in numbers]

    def learned_by(self, learned: LearnedEvents, numbers: range) -> BoolArray:
        """(len(numbers),) which contacts a model has learned, or count under another user."""
        at = np.arange(numbers.start, numbers.stop) % self.slots
        copies = self._offset[at] == np.iinfo(np.int64).min
        if not learned.positions:
            return np.asarray((self.arrays.time_ms[at] < learned.until_ms) | copies)
        last = [learned.positions.get(self._partition[slot], -1) for slot in at.tolist()]
        return np.asarray((self._offset[at] <= np.array(last)) | copies)

    def _drop(self, slot: int) -> None:
        if self.arrays.alive[slot]:
            self.arrays.alive[slot] = False
            self.taken_back += 1


class ContactFeed(RecentContacts):
    """Fills the ring from `state-changes`: on start with the newest records, then all new ones."""

    def __init__(
        self,
        settings: Settings,
        is_forgotten: Callable[[str, int], bool] = lambda user_id, time_ms: False,
    ) -> None:
        super().__init__()
        self._signals, self._is_forgotten = settings.stream.signals, is_forgotten
        self._next: dict[int, int] = {}
        kafka = settings.kafka
        self.reader = TopicReader(
            kafka,
            kafka.topics.state_changes,
            self.on_records,
            self.start_offsets,
            name="transition-graph",
        )
        self.start, self.stop = self.reader.start, self.reader.stop
        self.heartbeat = self.reader.heartbeat

    def start_offsets(self, ends: Mapping[int, int]) -> Mapping[int, int]:
        """Where to read from: at first from the newest records that fill the ring."""
        share = self.slots // len(ends) if ends else 0
        known = self._next
        self._next = {p: min(end, known.get(p, max(0, end - share))) for p, end in ends.items()}
        return dict(self._next)

    def on_records(self, messages: Sequence[Message]) -> None:
        """Add the first contacts among these records."""
        with self.lock:
            for message in messages:
                self._next[message.partition() or 0] = (message.offset() or 0) + 1
                try:
                    self.on_change(StateChange.decode(message.value() or b""))
                except BadEvent as error:
                    log.warning("invalid state change", offset=message.offset(), error=str(error))

    def on_change(self, change: StateChange) -> None:
        """Add a first contact; take one back that an event undoes."""
        if not change.effect.counts or self._is_forgotten(change.user_id, change.time_ms):
            return
        if takes_back(change):
            self.take_back(change.user_id, change.item_id, change.time_ms)
        elif is_contact(change, self._signals):
            partition = f"{change.topic}/{change.partition}"
            self.add(
                Contact(
                    change.user_id,
                    change.item_id,
                    float(change.time_ms),
                    change.established,
                    partition,
                    change.offset,
                    change.is_copy,
                )
            )


def is_contact(change: StateChange, signals: Signals) -> bool:
    """Whether a change is a user's first positive event on an item, or a copy of a positive one."""
    if change.is_copy:  # a copy has no weight of its own
        return signals.weight(change.action, change.rating) > 0
    return change.first_user_item and change.weight > 0


def takes_back(change: StateChange) -> bool:
    """Whether a change cancels the user's earlier events on the item."""
    return change.action is Action.UNDO or (
        change.action is Action.REVIEW and change.weight < 0 and not change.is_copy
    )


@dataclass
class ModelTransitions:
    """The transition graph of one model, for the thread that builds its snapshots."""

    model: Model | None
    learned: LearnedEvents
    recount_s: float = RECOUNT_S
    _live: LiveTransitions = field(init=False)
    _taken_back: int = 0
    _counted_at: float = 0.0
    _refreshed_ms: float = 0.0

    def __post_init__(self) -> None:
        self._live = LiveTransitions(self.model)
        self._counted_at = time.monotonic()

    @property
    def sizes(self) -> tuple[int, int]:
        """Items with live counts, and their neighbours."""
        return len(self._live), self._live.pairs

    def update(
        self,
        contacts: RecentContacts,
        find_all: Callable[[Sequence[str]], NDArray[np.int64]],
        now_ms: float,
        limits: NewAccountLimits,
    ) -> TransitionGraph:
        """The graph with all contacts. `find_all`: item indices by id, -1 for unknown items."""
        with contacts.lock:
            self._recount_if_due(contacts)
            self._live.add(
                contacts.arrays,
                contacts.end,
                lambda numbers: find_all(contacts.items_of(numbers)),
                lambda numbers: contacts.learned_by(self.learned, numbers),
            )
        if now_ms - self._refreshed_ms > REFRESH_MS:
            self._refreshed_ms = now_ms
            self._live.refresh()
        graph = self._live.graph(now_ms, limits)
        return TransitionGraph(
            graph.items,
            graph.scores,
            graph.row_of.copy(),
            graph.live_items.copy(),
            graph.live_scores.copy(),
        )

    def _recount_if_due(self, contacts: RecentContacts) -> None:
        outdated = contacts.taken_back != self._taken_back or len(self._live) > MAX_ROWS
        if outdated and time.monotonic() - self._counted_at >= self.recount_s:
            self._live.clear()
            self._taken_back, self._counted_at = contacts.taken_back, time.monotonic()
