"""The catalogue in memory: each item, items of each category and brand.

reads   topic  items
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from confluent_kafka import Message

from afterclick import events
from afterclick.errors import BadEvent
from afterclick.events import Item, ItemEvent

log = structlog.get_logger()


class Change(NamedTuple):
    """What one record said: an item, or its removal."""

    item_id: str
    item: Item | None
    written_ms: int
    """The record's timestamp."""


class Catalogue:
    """Item id → item. Written by one reader thread, read by anyone."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._by_category: dict[str, dict[str, None]] = {}
        self._by_brand: dict[str, dict[str, None]] = {}
        self._names: dict[str, str] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self.items)

    def read(self, messages: Sequence[Message]) -> list[Change]:
        """Take what stands on the topic: items, and removals (records without value). Says what it was."""
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
                log.warning("no valid item", offset=message.offset(), error=str(error))
                continue
            if isinstance(event, ItemEvent):
                self.put(event.data)
                changes.append(Change(event.data.item_id, event.data, message.timestamp()[1]))
        return changes

    def put_new(self, item: Item) -> None:
        """Add an item that is not there."""
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
        """Ids of the items in a category, whatever its case; none for an unknown one."""
        return list(self._by_category.get(name.casefold(), ()))

    def brand(self, name: str) -> list[str]:
        """Ids of the items of a brand, whatever its case; none for an unknown one."""
        return list(self._by_brand.get(name.casefold(), ()))

    def title(self, item_id: str) -> str | None:
        item = self.items.get(item_id)
        return item.title if item else None

    def categories(self) -> list[tuple[str, int]]:
        """Every category that has items, biggest first, with its number of items."""
        sizes = [
            (self._names[key], len(ids)) for key, ids in list(self._by_category.items()) if ids
        ]
        return sorted(sizes, key=lambda row: (-row[1], row[0]))

    def name(self, item_id: str) -> str:
        """What to call an item in a sentence: its title, shortened, or its id."""
        title = self.title(item_id)
        if not title:
            return item_id
        return title if len(title) <= 60 else title[:59].rstrip() + "…"


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Entry:
    item_id: str
    words: frozenset[str]
    titled: bool


class TextSearch:
    """A linear scan over words, made again when the catalogue changed."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._version = -1

    def follow(self, catalogue: Catalogue) -> None:
        """Take the catalogue over, where its version is another."""
        version = catalogue.version  # first: what comes meanwhile makes the next one
        if version != self._version:
            self._entries = [_entry(item) for item in list(catalogue.items.values())]
            self._version = version

    def find(self, query: str) -> list[str]:
        """Ids of the items that have a word beginning with each of the query's words; titled ones first."""
        wanted = _WORD.findall(query.casefold())
        if not wanted:
            return []
        hits = [entry for entry in self._entries if _matches(entry, wanted)]
        return [entry.item_id for entry in sorted(hits, key=lambda entry: not entry.titled)]


def _entry(item: Item) -> _Entry:
    text = " ".join((item.title or "", *item.categories, item.brand or "", item.item_id))
    return _Entry(item.item_id, frozenset(_WORD.findall(text.casefold())), bool(item.title))


def _matches(entry: _Entry, wanted: list[str]) -> bool:
    return all(any(word.startswith(begin) for word in entry.words) for begin in wanted)
