"""Catalogue queries match the same items with and without an index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterclick.events import Item
from serving.state.catalogue_query import matching_items, parsed
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ItemLookup

ITEMS = [
    Item(
        item_id="a",
        title="Card, 32 GB",
        categories=("Electronics", "Cards"),
        brand="Sandisk",
        price=9.5,
    ),
    Item(
        item_id="b",
        title="USB card reader",
        categories=("Electronics", "Readers"),
        brand="Sony",
        price=20,
    ),
    Item(item_id="c", title="USB cable", categories=("Cables",), brand="sony"),
    Item(item_id="d"),
]


def a_catalogue(items: list[Item]) -> Catalogue:
    made = Catalogue()
    for item in items:
        made.put(item)
    return made


def lookup_of(catalogue: Catalogue) -> ItemLookup:
    """Item indices that are the catalogue's numbers."""
    rows = np.arange(len(catalogue.ids), dtype=np.int32)
    return ItemLookup(catalogue.numbers.get, rows, len(rows))


def matching(catalogue: Catalogue, query: list[str]) -> list[str]:
    found = matching_items(catalogue, query, lookup_of(catalogue)).tolist()
    assert found == sorted(set(found))
    return [catalogue.ids[number] for number in found]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (["item:a"], "a"),
        (["item:a", "item:d"], "ad"),
        (["category:electronics"], "ab"),
        (["category:cards", "category:CABLES"], "ac"),
        (["brand:SONY"], "bc"),
        (["title:usb"], "bc"),
        (["title:card 32"], "a"),
        (["title:car"], ""),
        (["title:32", "title:cable"], "ac"),
        (["price:..10"], "a"),
        (["price:9.5..20"], "ab"),
        (["price:10.."], "b"),
        (["brand:sony", "title:cable"], "c"),
        (["brand:sony", "price:..5"], ""),
        (["category:electronics", "brand:sony", "price:15..25"], "b"),
        (["item:a", "brand:sony"], ""),
        (["category:nothing"], ""),
    ],
)
def test_a_query_matches_its_items(query: list[str], found: str) -> None:
    assert set(matching(a_catalogue(ITEMS), query)) == set(found)


def test_a_changed_brand_matches_under_the_new_name_only() -> None:
    catalogue = a_catalogue(ITEMS)
    catalogue.put(ITEMS[0].model_copy(update={"brand": "Other"}))
    assert matching(catalogue, ["brand:sandisk"]) == []
    assert matching(catalogue, ["brand:other"]) == ["a"]


VALUES = {
    "item": st.sampled_from("abcdx"),
    "category": st.sampled_from(["electronics", "cards", "x"]),
    "brand": st.sampled_from(["sony", "sandisk", "x"]),
    "title": st.sampled_from(["usb", "card", "x"]),
    "price": st.sampled_from(["..10", "10..", "9.5..20"]),
}


@given(
    st.lists(st.sampled_from(list(VALUES)).flatmap(lambda f: VALUES[f].map(lambda v: f"{f}:{v}")))
)
def test_more_fields_narrow_a_query_and_more_values_widen_it(query: list[str]) -> None:
    catalogue = a_catalogue(ITEMS)
    whole = set(matching(catalogue, query))
    for field in {parsed(condition)[0] for condition in query}:
        without = [c for c in query if parsed(c)[0] != field]
        if without:
            assert whole & {item.item_id for item in ITEMS} <= set(matching(catalogue, without))
        same = [c for c in query if parsed(c)[0] == field]
        assert set(matching(catalogue, same[:1])) <= set(matching(catalogue, same))


@pytest.mark.parametrize(
    "wrong", ["", "item", "item:", "item: ", "size:9", "price:", "price:..", "price:nan..2"]
)
def test_an_invalid_condition_is_rejected(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"not a condition|not a range|contains no word"):
        parsed(wrong)
