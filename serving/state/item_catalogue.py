"""The catalogue in memory, with its indexes.

reads   topic  items
"""

from __future__ import annotations

import heapq
import threading
from array import array
from collections.abc import Callable, Sequence
from math import nan
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import structlog
from confluent_kafka import Message

from afterclick import events
from afterclick.arrays import BoolArray, Float64Array, IntArray
from afterclick.errors import BadEvent
from afterclick.events import Item, ItemEvent
from serving.state.catalogue_index import BRAND, CATEGORY, Entry, TermIndex, Terms, group_key

log = structlog.get_logger()
T = TypeVar("T")
MAX_NAME_LENGTH = 60
MAX_CATEGORIES = 1000
"""Categories that are listed: the largest ones."""


class Versioned(Generic[T]):
    """A value that is computed again only when its version changes."""

    def __init__(self) -> None:
        self._entry: tuple[object, T] | None = None

    def get(self, version: object, compute: Callable[[], T]) -> T:
        if self._entry is None or self._entry[0] != version:
            self._entry = version, compute()
        return self._entry[1]


class Change(NamedTuple):
    """An item, or its removal, as one record of the topic."""

    item_id: str
    item: Entry | None
    written_ms: int
    """The record's timestamp."""


class Catalogue:
    """Item id → item, and the indexes of items by number.

    Any thread reads; the threads that write, and reads of several index keys, share a lock. The
    number of a removed item stays unused and costs 25 bytes.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        """The item ids by number; empty for a removed item."""
        self.numbers: dict[str, int] = {}
        """Item id → number."""
        self.index = TermIndex()
        self._entries: list[Entry | None] = []
        """By number; None for a removed item, and for one of which only the id is known."""
        self._prices = array("d")
        self._titled = bytearray()
        self._group_names: dict[str, str] = {}
        """Key of a category or brand → its name, which the items share."""
        self._lock = threading.Lock()
        self.version = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self.numbers

    def get(self, item_id: str) -> Entry | None:
        """An item, or None."""
        number = self.numbers.get(item_id)
        return None if number is None else self._entries[number] or Entry(item_id)

    def read(self, messages: Sequence[Message]) -> list[Change]:
        """Apply records of the topic: items, and removals (records without value)."""
        changes = []
        for message in messages:
            raw, key = message.value(), message.key()
            if raw is None:
                item_id = (key or b"").decode(errors="replace")
                self.remove(item_id)
                changes.append(Change(item_id, None, message.timestamp()[1]))
                continue
            try:
                event = events.decode(raw)
            except BadEvent as error:
                log.warning("invalid item skipped", offset=message.offset(), error=str(error))
                continue
            if isinstance(event, ItemEvent):
                entry = self.put(event.data)
                changes.append(Change(entry.item_id, entry, message.timestamp()[1]))
        return changes

    def put_new(self, item: Item) -> None:
        """Add an item unless its id is present."""
        if item.item_id not in self.numbers:
            self.put(item)

    def put(self, item: Item) -> Entry:
        """Add or replace an item. Changes only the index entries in which it differs."""
        with self._lock:
            old = self.get(item.item_id)
            entry = Entry(
                item.item_id,
                item.title,
                tuple(self._shared(CATEGORY, name) for name in item.categories),
                item.brand and self._shared(BRAND, item.brand),
                item.price,
            )
            number = self._number_of(entry.item_id)
            self._prices[number] = nan if entry.price is None else entry.price
            self._titled[number] = bool(entry.title)
            self._entries[number] = None if entry == Entry(entry.item_id) else entry
            self.index.replace(number, Terms.of(old), Terms.of(entry))
            self._forget_names(old)
            self.version += 1
        return entry

    def remove(self, item_id: str) -> None:
        with self._lock:
            old, number = self.get(item_id), self.numbers.pop(item_id, None)
            if number is not None:
                self.index.replace(number, Terms.of(old), Terms.of(None))
                self.ids[number], self._entries[number] = "", None
                self._prices[number] = nan
            self._forget_names(old)
            self.version += 1

    def category(self, name: str) -> IntArray:
        """Numbers of the items of a category, ignoring case; empty for an unknown category."""
        return self.index.groups.get(group_key(CATEGORY, name))

    def brand(self, name: str) -> IntArray:
        """Numbers of the items of a brand, ignoring case; empty for an unknown brand."""
        return self.index.groups.get(group_key(BRAND, name))

    def prices(self) -> Float64Array:
        """The price by number; NaN without one."""
        return np.array(self._prices[:])

    def titled(self) -> BoolArray:
        """Whether an item has a title, by number."""
        return np.frombuffer(bytes(self._titled), np.bool_)

    def starting_with(self, prefix: str, room: int) -> IntArray:
        """Numbers of items with a word that starts with `prefix`: see `TermIndex`."""
        with self._lock:
            return np.array(self.index.starting_with(prefix, room), np.int32)

    def title(self, item_id: str) -> str | None:
        item = self.get(item_id)
        return item.title if item else None

    def categories(self) -> list[tuple[str, int]]:
        """The largest categories and their number of items, largest first; without empty ones."""
        count, names = self.index.groups.count, list(self._group_names.items())
        prefix = group_key(CATEGORY, "")
        sizes = [(name, count(key)) for key, name in names if key.startswith(prefix)]
        return heapq.nsmallest(MAX_CATEGORIES, sizes, key=lambda row: (-row[1], row[0]))

    def name(self, item_id: str) -> str:
        """The item's title, shortened for use in a sentence; its id if it has none."""
        title = self.title(item_id)
        if not title:
            return item_id
        if len(title) <= MAX_NAME_LENGTH:
            return title
        return title[: MAX_NAME_LENGTH - 1].rstrip() + "…"

    def _number_of(self, item_id: str) -> int:
        """The number of an item; a new item gets the next one."""
        number = self.numbers.get(item_id)
        if number is None:
            number = len(self.ids)
            self._prices.append(nan)
            self._titled.append(False)
            self._entries.append(None)
            self.ids.append(item_id)
            self.numbers[item_id] = number
        return number

    def _shared(self, kind: str, name: str) -> str:
        """The name of a category or brand, the same object for all items."""
        key = group_key(kind, name)
        if self._group_names.get(key) != name:
            self._group_names[key] = name
        return self._group_names[key]

    def _forget_names(self, old: Entry | None) -> None:
        """Forget the categories and the brand of which an item was the last one."""
        for key in Terms.of(old).groups:
            if key not in self.index.groups:
                self._group_names.pop(key, None)
