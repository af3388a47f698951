"""The catalogue in memory: items by id, category and brand, and search as you type.

reads   topic  items
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import structlog
from confluent_kafka import Message

from afterclick import events
from afterclick.errors import BadEvent
from afterclick.events import Item, ItemEvent

log = structlog.get_logger()
T = TypeVar("T")
MAX_NAME_LENGTH = 60
_WORD = re.compile(r"\w+")


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
    item: Item | None
    written_ms: int
    """The record's timestamp."""


class Catalogue:
    """Item id → item. Written by one reader thread, read by any thread."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._by_category: dict[str, dict[str, None]] = {}
        self._by_brand: dict[str, dict[str, None]] = {}
        self._names: dict[str, str] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self.items)

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
                self.put(event.data)
                changes.append(Change(event.data.item_id, event.data, message.timestamp()[1]))
        return changes

    def put_new(self, item: Item) -> None:
        """Add an item unless its id is present."""
        if item.item_id not in self.items:
            self.put(item)

    def put(self, item: Item) -> None:
        """Add or replace an item."""
        self.remove(item.item_id)
        self.items[item.item_id] = item
        for category in item.categories:
            self._by_category.setdefault(category.casefold(), {})[item.item_id] = None
            self._names[category.casefold()] = category
        if item.brand:
            self._by_brand.setdefault(item.brand.casefold(), {})[item.item_id] = None
        self.version += 1

    def remove(self, item_id: str) -> None:
        old = self.items.pop(item_id, None)
        for category in old.categories if old else ():
            self._by_category[category.casefold()].pop(item_id, None)
        if old and old.brand:
            self._by_brand[old.brand.casefold()].pop(item_id, None)
        self.version += 1

    def category(self, name: str) -> list[str]:
        """Ids of the items of a category, ignoring case; empty for an unknown category."""
        return list(self._by_category.get(name.casefold(), ()))

    def brand(self, name: str) -> list[str]:
        """Ids of the items of a brand, ignoring case; empty for an unknown brand."""
        return list(self._by_brand.get(name.casefold(), ()))

    def title(self, item_id: str) -> str | None:
        item = self.items.get(item_id)
        return item.title if item else None

    def categories(self) -> list[tuple[str, int]]:
        """Categories and their number of items, largest first; without empty ones."""
        sizes = [
            (self._names[key], len(ids)) for key, ids in list(self._by_category.items()) if ids
        ]
        return sorted(sizes, key=lambda row: (-row[1], row[0]))

    def name(self, item_id: str) -> str:
        """The item's title, shortened for use in a sentence; its id if it has none."""
        title = self.title(item_id)
        if not title:
            return item_id
        if len(title) <= MAX_NAME_LENGTH:
            return title
        return title[: MAX_NAME_LENGTH - 1].rstrip() + "…"


class _IndexedItem(NamedTuple):
    item_id: str
    words: frozenset[str]
    has_title: bool


class TextSearch:
    """Search as you type, by prefixes of words: a linear scan, indexed again when the catalogue
    changes."""

    def __init__(self) -> None:
        self._entries: Versioned[list[_IndexedItem]] = Versioned()

    def find(self, catalogue: Catalogue, query: str) -> list[str]:
        """Ids of the items that have a word for each prefix of the query; titled items first."""
        prefixes = _WORD.findall(query.casefold())
        if not prefixes:
            return []
        entries = self._entries.get(
            catalogue.version, lambda: [_indexed(item) for item in list(catalogue.items.values())]
        )
        hits = [entry for entry in entries if _matches(entry, prefixes)]
        return [entry.item_id for entry in sorted(hits, key=lambda entry: not entry.has_title)]


def _indexed(item: Item) -> _IndexedItem:
    text = " ".join((item.title or "", *item.categories, item.brand or "", item.item_id))
    return _IndexedItem(item.item_id, frozenset(_WORD.findall(text.casefold())), bool(item.title))


def _matches(entry: _IndexedItem, prefixes: list[str]) -> bool:
    return all(any(word.startswith(prefix) for word in entry.words) for prefix in prefixes)
