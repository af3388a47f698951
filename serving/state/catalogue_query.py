"""Catalogue queries: filters of lists, the items of business rules, and search as you type.

A query is a list of conditions written `field:value`:

item:ID            this item
category:NAME      of this category, ignoring case
brand:NAME         of this brand, ignoring case
title:WORDS        its title contains all of these words, ignoring order and case
price:LOW..HIGH    LOW ≤ price ≤ HIGH; either end may be omitted

Conditions on one field are alternatives; an item must meet one of each field named.

Both read the indexes of the catalogue. Python code runs per condition and per result, not per item
of the catalogue; what depends on the number of items found is array arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import islice
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, StringConstraints

from afterclick.arrays import BoolArray, Float64Array, Int64Array, IntArray
from afterclick.events import printable
from afterclick.retrieval import is_in
from serving.state.catalogue_index import Entry, words
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ItemLookup

PATTERN = (
    r"^((item|category|brand):[^\x00-\x1f\x7f\s]+|title:\w[^\x00-\x1f\x7f]*|"
    r"price:([0-9]{1,9}\.\.|\.\.[0-9]{1,9}|[0-9]\.\.[1-9][0-9]))$"
)
"""The pattern in the OpenAPI document: a subset of what `parsed` accepts."""
FIELDS = ("item", "category", "brand", "title", "price")
MAX_TITLE_WORDS = 10
"""Words of one condition on the title."""
MAX_FOUND = 20_000
"""Items that a prefix finds. A prefix of more items is compared with the items found otherwise."""
MAX_READ_PREFIXES = 4
"""Prefixes read from the index, longest first; the others are compared with the items found."""
MAX_COMPARED = 5_000
"""Items whose words are compared with the prefixes."""


def parsed(condition: str) -> tuple[str, str]:
    """Field and value of a condition. Raises ValueError."""
    field, colon, value = condition.partition(":")
    if not colon or field not in FIELDS or not value.strip():
        raise ValueError(f"is not a condition: write FIELD:VALUE, FIELD one of {', '.join(FIELDS)}")
    if field == "price":
        _price_range(value)
    elif field == "title" and not 0 < len(words(value)) <= MAX_TITLE_WORDS:
        raise ValueError(f"title: needs 1 to {MAX_TITLE_WORDS} different words")
    return field, value.strip()


def _condition(text: str) -> str:
    parsed(printable(text))
    return text


Condition = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    AfterValidator(_condition),
    Field(examples=["brand:Sony"], json_schema_extra={"pattern": PATTERN}),
]
"""One condition, as pydantic checks it."""


def matching_items(catalogue: Catalogue, conditions: Sequence[str], lookup: ItemLookup) -> IntArray:
    """Indices of the items that match a query, ascending; also those that only a model knows."""
    fields = _by_field(conditions)
    if set(fields) == {"item"}:
        return np.unique(lookup.indices(fields["item"]))
    return lookup.of_numbers(_matching(catalogue, fields))


def _by_field(conditions: Sequence[str]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for condition in dict.fromkeys(conditions):
        field, value = parsed(condition)
        fields.setdefault(field, []).append(value)
    return fields


def _matching(catalogue: Catalogue, fields: dict[str, list[str]]) -> IntArray:
    """Catalogue numbers of the items that match one value of each field."""
    read: dict[str, Callable[[str], IntArray]] = {
        "item": lambda item_id: _numbers(catalogue, (item_id,)),
        "category": catalogue.category,
        "brand": catalogue.brand,
        "title": lambda value: _titled(catalogue, value),
    }
    found = [
        _union(catalogue, [read[field](value) for value in values])
        for field, values in fields.items()
        if field != "price"
    ]
    numbers = _common(found) if found else np.arange(len(catalogue.ids), dtype=np.int32)
    if "price" in fields:
        prices = catalogue.prices()
        numbers = numbers[numbers < len(prices)]
        numbers = numbers[_priced(prices[numbers], fields["price"])]
    return numbers


def _numbers(catalogue: Catalogue, item_ids: Iterable[str]) -> IntArray:
    known = (catalogue.numbers.get(item_id) for item_id in item_ids)
    return np.array([number for number in known if number is not None], np.int32)


def _titled(catalogue: Catalogue, value: str) -> IntArray:
    """The items whose title has all words, from the rarest word on."""
    titles = catalogue.index.titles
    rarest, *others = sorted(words(value), key=titles.count)
    found = titles.get(rarest)
    for word in others:
        if len(found):
            found = found[is_in(found, titles.get(word))]
    return found


def _union(catalogue: Catalogue, found: Sequence[IntArray]) -> IntArray:
    if len(found) == 1:
        return found[0]
    member = np.zeros(len(catalogue.ids), bool)
    for numbers in found:
        member[numbers[numbers < len(member)]] = True
    return np.flatnonzero(member).astype(np.int32)


def _common(found: Sequence[IntArray]) -> IntArray:
    fewest, *others = sorted(found, key=len)
    return reduce(lambda numbers, other: numbers[is_in(numbers, other)], others, fewest)


def _priced(prices: Float64Array, ranges: Sequence[str]) -> BoolArray:
    """(n,) whether a price lies in one of the ranges."""
    ends = np.array(sorted(_price_range(text) for text in ranges))
    highest = np.maximum.accumulate(ends[:, 1])
    row = np.searchsorted(ends[:, 0], prices, side="right") - 1
    return np.asarray((row >= 0) & (prices <= highest[row]))


def search(
    catalogue: Catalogue,
    query: str,
    n: int,
    interactions: Callable[[IntArray], Int64Array],
    popular: Sequence[str],
) -> list[str]:
    """Ids of up to `n` items that have a word for each prefix of the query, most chosen first.

    A word of the title, a category, the brand or the id; titled items come first among equals.
    `interactions` of items by number; `popular` ids stand for the items of prefixes that more than
    `MAX_FOUND` items have.
    """
    prefixes = _prefixes(query)
    numbers = _candidates(catalogue, prefixes, popular) if prefixes else _numbers(catalogue, ())
    titled = catalogue.titled()[numbers]
    order = np.lexsort((numbers, ~titled, -interactions(numbers)))[:MAX_COMPARED]
    found = (catalogue.get(catalogue.ids[number]) for number in numbers[order].tolist())
    return [item.item_id for item in islice((i for i in found if i and _has(i, prefixes)), n)]


def _prefixes(query: str) -> list[str]:
    """The prefixes that no other one implies, longest first."""
    prefixes: list[str] = []
    for prefix in sorted(words(query), key=lambda word: (-len(word), word)):
        if not any(longer.startswith(prefix) for longer in prefixes):
            prefixes.append(prefix)
    return prefixes


def _candidates(catalogue: Catalogue, prefixes: Sequence[str], popular: Sequence[str]) -> IntArray:
    """Numbers of the items to compare: all that the selective prefixes have in common."""
    found = [
        catalogue.starting_with(prefix, MAX_FOUND + 1) for prefix in prefixes[:MAX_READ_PREFIXES]
    ]
    complete = [np.unique(numbers) for numbers in found if len(numbers) <= MAX_FOUND]
    if complete:
        return _common(complete)
    return np.unique(np.concatenate([found[0], _numbers(catalogue, popular)]))


def _has(item: Entry, prefixes: Sequence[str]) -> bool:
    text = " ".join((item.title or "", *item.categories, item.brand or "", item.item_id))
    found = words(text)
    return all(any(word.startswith(prefix) for word in found) for prefix in prefixes)


def _price_range(text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        ends = (float(low) if low.strip() else 0.0, float(high) if high.strip() else math.inf)
    except ValueError:
        ends = (math.nan, math.nan)
    if not dots or not (low.strip() or high.strip()) or not ends[0] <= ends[1]:
        raise ValueError("price: is not a range: write LOW..HIGH, LOW.. or ..HIGH")
    return ends
