"""Indexes of the catalogue: the numbers of the items with a word, a category or a brand.

An item changes as many entries as it has words, categories and brand, however large the catalogue
is. Numbers are kept in compact arrays: 4 bytes per word of an item.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
from sortedcontainers import SortedDict

from afterclick.arrays import IntArray

_WORD = re.compile(r"\w+")
_LAST = "\U0010ffff"
"""Sorts after every character of a word."""
CATEGORY, BRAND = "category", "brand"


def words(text: str) -> frozenset[str]:
    """The words of a text, case-folded."""
    return frozenset(_WORD.findall(text.casefold()))


def group_key(kind: str, name: str) -> str:
    """The key of a category or brand, ignoring case."""
    return f"{kind}:{name.casefold()}"


class Postings:
    """Key → ascending numbers. One thread writes at a time, any thread may read a key."""

    def __init__(self) -> None:
        self._numbers: dict[str, int | array[int]] = {}
        """A single number is stored as it is: most words are of one item."""

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def add(self, key: str, number: int) -> None:
        held = self._numbers.get(key)
        if held is None:
            self._numbers[key] = number
        elif isinstance(held, int):
            self._numbers[key] = array("i", sorted((held, number)))
        elif number > held[-1]:
            held.append(number)
        else:
            insort(held, number)

    def remove(self, key: str, number: int) -> None:
        held = self._numbers[key]
        if isinstance(held, array):
            held.pop(bisect_left(held, number))
        if isinstance(held, int) or not held:
            del self._numbers[key]

    def count(self, key: str) -> int:
        held = self._numbers.get(key, ())
        return 1 if isinstance(held, int) else len(held)

    def get(self, key: str) -> IntArray:
        """The numbers of a key, ascending; empty for an unknown key."""
        return np.array(self.head(key), np.int32)

    def head(self, key: str, count: int | None = None) -> array[int]:
        """The first `count` numbers of a key, by default all: a copy."""
        held = self._numbers.get(key)
        if held is None:
            return array("i")
        return array("i", (held,)) if isinstance(held, int) else held[:count]


class SortedPostings(Postings):
    """Postings with keys in order. Reading several keys needs the lock of the writer."""

    def __init__(self) -> None:
        self._sorted = self._numbers = SortedDict()

    def keys_with(self, prefix: str) -> Iterator[str]:
        """The keys that start with a prefix, in order."""
        keys: Iterator[str] = self._sorted.irange(prefix, prefix + _LAST)
        return keys


class Entry(NamedTuple):
    """An item of the catalogue: the fields of `events.Item` in a fifth of its memory."""

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    price: float | None = None


class Terms(NamedTuple):
    """What an item is found by."""

    title: frozenset[str]
    item_id: frozenset[str]
    groups: frozenset[str]
    """Keys of its categories and brand."""

    @classmethod
    def of(cls, item: Entry | None) -> Self:
        """The terms of an item; none for None."""
        if item is None:
            return cls(frozenset(), frozenset(), frozenset())
        groups = {group_key(CATEGORY, name) for name in item.categories}
        if item.brand:
            groups.add(group_key(BRAND, item.brand))
        return cls(words(item.title or ""), words(item.item_id), frozenset(groups))


class TermIndex:
    """The terms of all items. Writes and prefix reads need one lock, held by the catalogue."""

    def __init__(self) -> None:
        self.titles, self.groups = SortedPostings(), Postings()
        self._item_ids = SortedPostings()
        self._group_words = SortedDict()
        """Word → keys of the groups with this word in their name."""

    def replace(self, number: int, old: Terms, new: Terms) -> None:
        """Change the terms of an item."""
        _replace(self.titles, number, old.title, new.title)
        _replace(self._item_ids, number, old.item_id, new.item_id)
        for key in new.groups - old.groups:
            if key not in self.groups:
                for word in _words_of_group(key):
                    self._group_words.setdefault(word, set()).add(key)
        _replace(self.groups, number, old.groups, new.groups)
        for key in old.groups - new.groups:
            if key not in self.groups:
                self._forget_group(key)

    def starting_with(self, prefix: str, room: int) -> array[int]:
        """Numbers of items with a word that starts with `prefix`: unordered, with repeats.

        Reads at most `room` numbers, so a result of that length may be incomplete.
        """
        found = array("i")
        for postings, key in self._with_prefix(prefix):
            found.extend(postings.head(key, room - len(found)))
            if len(found) >= room:
                break
        return found

    def _with_prefix(self, prefix: str) -> Iterator[tuple[Postings, str]]:
        yield from ((self.titles, word) for word in self.titles.keys_with(prefix))
        for word in self._group_words.irange(prefix, prefix + _LAST):
            yield from ((self.groups, key) for key in self._group_words[word])
        yield from ((self._item_ids, word) for word in self._item_ids.keys_with(prefix))

    def _forget_group(self, key: str) -> None:
        for word in _words_of_group(key):
            keys = self._group_words[word]
            keys.discard(key)
            if not keys:
                del self._group_words[word]


def _replace(postings: Postings, number: int, old: frozenset[str], new: frozenset[str]) -> None:
    for key in old - new:
        postings.remove(key, number)
    for key in new - old:
        postings.add(key, number)


def _words_of_group(key: str) -> frozenset[str]:
    return words(key.partition(":")[2])
