"""Catalogue queries: filters of lists, and the items of business rules.

A query is a list of conditions written `field:value`:

item:ID            this item
category:NAME      of this category, ignoring case
brand:NAME         of this brand, ignoring case
title:WORDS        its title contains all of these words, ignoring order and case
price:LOW..HIGH    LOW ≤ price ≤ HIGH; either end may be omitted

Conditions on one field are alternatives; an item must meet one of each field named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from afterclick.events import Item, printable
from serving.state.item_catalogue import Catalogue

PATTERN = (
    r"^((item|category|brand):[^\x00-\x1f\x7f\s]+|title:\w[^\x00-\x1f\x7f]*|"
    r"price:([0-9]{1,9}\.\.|\.\.[0-9]{1,9}|[0-9]\.\.[1-9][0-9]))$"
)
"""The pattern in the OpenAPI document: a subset of what `parsed` accepts."""
FIELDS = ("item", "category", "brand", "title", "price")
Test = Callable[[Item], bool]
_WORD = re.compile(r"\w+")


def parsed(condition: str) -> tuple[str, str]:
    """Field and value of a condition. Raises ValueError."""
    field, colon, value = condition.partition(":")
    if not colon or field not in FIELDS or not value.strip():
        raise ValueError(f"is not a condition: write FIELD:VALUE, FIELD one of {', '.join(FIELDS)}")
    if field == "price":
        _price_range(value)
    elif field == "title" and not words(value):
        raise ValueError("title: contains no word")
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


def matching(catalogue: Catalogue, conditions: Sequence[str]) -> list[str]:
    """Ids of the items that match a query. Scans the catalogue if no indexed field is given."""
    fields: dict[str, list[str]] = {}
    for condition in conditions:
        field, value = parsed(condition)
        fields.setdefault(field, []).append(value)
    tests: list[Test] = []
    pools: list[Iterable[str]] = []
    for field, values in fields.items():
        if field == "item":
            pools.append(values)
            tests.append(_one_of(values))
        elif field == "category":
            pools.append(_union(catalogue.category(value) for value in values))
            tests.append(_in_category(values))
        elif field == "brand":
            pools.append(_union(catalogue.brand(value) for value in values))
            tests.append(_of_brand(values))
        else:
            tests.append(_any([_titled(v) if field == "title" else _priced(v) for v in values]))
    pool = min((list(pool) for pool in pools), key=len) if pools else list(catalogue.items)
    items = ((item_id, catalogue.items.get(item_id)) for item_id in dict.fromkeys(pool))
    if set(fields) == {"item"}:
        return [item_id for item_id, _ in items]  # also items not yet in the catalogue
    return [
        item_id for item_id, item in items if item is not None and all(test(item) for test in tests)
    ]


def words(text: str) -> frozenset[str]:
    """The words of a title or query, case-folded."""
    return frozenset(_WORD.findall(text.casefold()))


def _one_of(values: Sequence[str]) -> Test:
    return lambda item: item.item_id in values


def _in_category(values: Sequence[str]) -> Test:
    wanted = {value.casefold() for value in values}
    return lambda item: any(category.casefold() in wanted for category in item.categories)


def _of_brand(values: Sequence[str]) -> Test:
    wanted = {value.casefold() for value in values}
    return lambda item: item.brand is not None and item.brand.casefold() in wanted


def _titled(value: str) -> Test:
    wanted = words(value)

    def test(item: Item) -> bool:
        title = (item.title or "").casefold()
        return all(word in title for word in wanted) and wanted <= words(
            title
        )  # the cheap test first

    return test


def _priced(value: str) -> Test:
    low, high = _price_range(value)
    return lambda item: item.price is not None and low <= item.price <= high


def _any(tests: Sequence[Test]) -> Test:
    return lambda item: any(test(item) for test in tests)


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(item_id for group in groups for item_id in group))


def _price_range(text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        ends = (float(low) if low.strip() else 0.0, float(high) if high.strip() else math.inf)
    except ValueError:
        ends = (math.nan, math.nan)
    if not dots or not (low.strip() or high.strip()) or not ends[0] <= ends[1]:
        raise ValueError("price: is not a range: write LOW..HIGH, LOW.. or ..HIGH")
    return ends
