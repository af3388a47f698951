"""The catalogue's indexes: the work of a query and of an update, whatever the catalogue's size."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest

from afterclick.api import Policy
from afterclick.arrays import Int64Array, IntArray
from afterclick.events import Action, Item
from afterclick.settings import StreamSettings
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState
from serving.request import Options, Page, RecommendationRequest, RequestUser
from serving.state.catalogue_index import words
from serving.state.catalogue_query import MAX_COMPARED, MAX_FOUND, matching_items, search
from serving.state.item_catalogue import MAX_CATEGORIES, Catalogue
from serving.tiers import grows_with_catalogue
from tests.serving.offline import Offline
from tests.serving.test_catalogue_query import lookup_of
from tests.traced_lines import traced_lines

FEW, MANY = 200, 5_000
QUERIES = (
    ["title:card rare"],
    ["title:card", "title:rare", "title:nothing"],
    ["category:Electronics", "price:..5"],
    ["brand:acme", "category:Odd"],
    ["price:3..4", "price:10..", "price:..2"],
    ["item:i7", "item:i8", "brand:Acme"],
)


def an_item(number: int, extra: str = "") -> Item:
    """Item 7 and every 100th are rare; all are cards of one category."""
    rare = "rare" if number % 100 == 7 else "common"
    return Item(
        item_id=f"i{number}",
        title=f"Card {rare} model{number} {extra}",
        categories=("Electronics", "Odd" if number % 2 else "Even"),
        brand="Acme" if number % 50 == 8 else None,
        price=float(number % 20),
    )


def catalogue_of(items: Iterable[Item]) -> Catalogue:
    catalogue = Catalogue()
    for item in items:
        catalogue.put(item)
    return catalogue


def a_catalogue(count: int) -> Catalogue:
    return catalogue_of(map(an_item, range(count)))


def lines_of(work: Callable[[], object]) -> int:
    with traced_lines() as lines:
        work()
    return lines.count


def scan(catalogue: Catalogue, wanted: frozenset[str]) -> list[str]:
    """The control: every item is looked at."""
    found = []
    for item_id in catalogue.ids:
        if wanted <= words(catalogue.title(item_id) or ""):
            found.append(item_id)
    return found


def no_interactions(numbers: IntArray) -> Int64Array:
    return np.zeros(len(numbers), np.int64)


def find(catalogue: Catalogue, query: str, n: int = 10) -> list[str]:
    return search(catalogue, query, n, no_interactions, ())


def lines_by_size(work: Callable[[Catalogue], object]) -> tuple[int, int]:
    """The lines that `work` runs on a small and on a large catalogue."""
    few, many = (lines_of(partial(work, a_catalogue(count))) for count in (FEW, MANY))
    return few, many


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_runs_no_code_per_item_of_the_catalogue(query: list[str]) -> None:
    few, many = lines_by_size(lambda c: matching_items(c, query, lookup_of(c)))
    assert many == few > 0


def test_control_a_scan_runs_code_for_every_item() -> None:
    few, many = lines_by_size(lambda c: scan(c, frozenset({"rare"})))
    assert many > 10 * few


def test_an_update_changes_the_entries_of_one_item_only() -> None:
    few, many = lines_by_size(lambda c: c.put(an_item(7, "changed")))
    assert many < 3 * few, "sorted keys take a few lines more"
    catalogue = a_catalogue(FEW)
    catalogue.put(an_item(7, "changed"))
    assert find(catalogue, "chan") == ["i7"]


def test_control_an_index_made_again_runs_code_for_every_item() -> None:
    few, many = lines_by_size(lambda c: [catalogue_of(map(an_item, range(len(c))))])
    assert many > 10 * few


@pytest.mark.parametrize("query", ["c", "i", "card comm", "c m i e", "rare", "model77"])
def test_a_search_compares_a_bounded_number_of_items(query: str) -> None:
    catalogue = a_catalogue(MANY)
    lines = lines_of(lambda: find(catalogue, query))
    assert 0 < lines < 40 * MAX_COMPARED
    for item_id in find(catalogue, query):
        text = " ".join((catalogue.title(item_id) or "", "Electronics Odd Even Acme", item_id))
        assert all(any(w.startswith(p) for w in words(text)) for p in words(query))
    assert len(find(catalogue, query)) == 10


def test_a_changed_item_is_found_by_its_new_words_only() -> None:
    catalogue = a_catalogue(FEW)
    catalogue.put(Item(item_id="i7", title="A lamp", categories=("Lights",), brand="Borealis"))
    for query in ("lamp", "light", "boreal", "la li bo i7"):
        assert find(catalogue, query) == ["i7"]
    assert "i7" not in find(catalogue, "rare", FEW)
    known = lookup_of(catalogue)
    assert matching_items(catalogue, ["price:..100", "item:i7"], known).tolist() == []
    catalogue.remove("i7")
    assert find(catalogue, "lamp") == find(catalogue, "lights") == find(catalogue, "i7x") == []
    assert "Lights" not in dict(catalogue.categories())
    catalogue.put(an_item(7))
    assert find(catalogue, "rare model7") == ["i7"]
    assert dict(catalogue.categories())["Electronics"] == FEW


def test_search_orders_by_interactions_then_by_title() -> None:
    items = [
        Item(item_id="a", categories=("Cards",)),
        Item(item_id="b", title="Card"),
        Item(item_id="c", title="Cards"),
    ]
    assert find(catalogue_of(items), "card") == ["b", "c", "a"]
    chosen = np.array([0, 0, 5])
    assert search(catalogue_of(items), "card", 2, lambda n: chosen[n], ()) == ["c", "b"]


def test_a_prefix_of_too_many_items_finds_the_popular_ones() -> None:
    count = MAX_FOUND + 10
    catalogue, chosen = a_catalogue(count), np.arange(count)
    newest = [f"i{number}" for number in range(count - 2, count)]
    assert search(catalogue, "ca", 2, lambda n: chosen[n], newest) == newest[::-1]
    assert search(catalogue, "ca mod", 2, lambda n: chosen[n], ()) == newest[::-1], "same number"
    assert search(catalogue, "ca rare", 2, lambda n: chosen[n], ()) == ["i20007", "i19907"]


def test_the_listed_categories_are_bounded() -> None:
    catalogue = Catalogue()
    for number in range(MAX_CATEGORIES + 50):
        catalogue.put(Item(item_id=f"i{number}", categories=("All", f"c{number}")))
    listed = catalogue.categories()
    assert (listed[0], len(listed)) == (("All", MAX_CATEGORIES + 50), MAX_CATEGORIES)


def test_interests_in_many_spellings_count_once() -> None:
    served = Offline([an_item(number) for number in range(FEW)])
    spellings = tuple("".join(pair) for pair in zip("oO" * 25, "dd" * 25, "dD" * 25, strict=True))
    once = served.items(interests=("Odd",))
    assert [row["contributions"]["content"] for row in once] == [1.0] * 10
    assert served.items(interests=("Odd", "odd", "ODD", *spellings)) == once


@pytest.mark.parametrize(
    ("request_", "grows"),
    [
        (RecommendationRequest("", 10), False),
        (RecommendationRequest("", 100), False),
        (RecommendationRequest("", 10, options=Options(policy=Policy.POPULAR)), False),
        (RecommendationRequest("", 10, category="Electronics"), True),
        (RecommendationRequest("", 10, filters=("title:card",)), True),
        (RecommendationRequest("", 10, interests=("Electronics",)), True),
        (RecommendationRequest("", 10, items=("i7",)), True),
        (RecommendationRequest("", 10, items=("none",)), False),
        (RecommendationRequest("", 10, items=tuple(f"none-{n}" for n in range(51))), True),
        (RecommendationRequest("", 10, page=Page(offset=1000)), True),
        (RecommendationRequest("", 200), True),
        (RecommendationRequest("", 10, explain=True), True),
    ],
)
def test_lists_whose_work_grows_are_made_in_the_worker(
    request_: RecommendationRequest, grows: bool
) -> None:
    served = Offline([an_item(number) for number in range(FEW)])
    history = [HistoryEntry("", item, Action.VIEW, None, 0) for item in request_.items]
    signals, now_ms = StreamSettings().signals, 0.0
    state = UserState.of(history, served.snapshot.find, signals, now_ms)
    user = RequestUser(history, state, is_known=False)
    assert grows_with_catalogue(request_, served.snapshot, user) is grows
    assert served.answer(request_).rendered.count == min(
        request_.n, max(0, FEW - request_.page.start)
    )


def test_restricted_lists_are_selected_in_the_worker() -> None:
    served = Offline([an_item(number) for number in range(FEW)])

    async def threads() -> list[int]:
        restricted = partial(served.recommender.restricted, served.snapshot)
        return [
            await restricted(category, conditions, lambda _: threading.get_ident())
            for category, conditions in (("Odd", ()), (None, ["title:card"]), (None, ()))
        ]

    by_category, by_filter, plain = asyncio.run(threads())
    assert by_category == by_filter != plain == threading.get_ident()
