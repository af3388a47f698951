"""Search as one types: items whose title, categories or id have words that begin like the query's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from afterclick.events import Item
from serving.feeds.catalogue import Catalogue

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
