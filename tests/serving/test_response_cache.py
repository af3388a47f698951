"""The response cache: a list is reused until its user, the model, the rules or time change it."""

from __future__ import annotations

import gc
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import pytest
from cachetools import FIFOCache

from afterclick.api import Tier
from afterclick.events import Context, Item
from afterclick.ranking import FormulaRanker
from serving.control.rules import RuleDraft
from serving.eligibility import CatalogueFilters
from serving.request import Page, RecommendationRequest, decode_cursor, encode_cursor
from serving.response_cache import (
    CATALOGUE_TTL_S,
    MAX_UNSEEN,
    MAX_UNSEEN_BYTES,
    ImpressionCache,
    Recommendation,
    RenderedList,
    ResponseCache,
    keep_unseen,
)
from serving.state.loaded_models import LoadedModel
from tests.serving import shop
from tests.serving.offline import Offline

REQUEST = RecommendationRequest("ann", 10)


class CachingShop:
    """A served shop that caches personal lists for 30 seconds of a clock set by the test."""

    def __init__(self, cache_ttl_s: float = 30.0) -> None:
        self.now = 1000.0
        self.liked = {"ann": ["camera-3", "camera-5"]}
        self.served = Offline(
            liked=self.liked,
            model=shop.model("m1"),
            cache_ttl_s=cache_ttl_s,
            clock=lambda: self.now,
        )

    def is_cached(self, request: RecommendationRequest = REQUEST) -> bool:
        return self.served.answer(request).cached

    def rebuild_snapshot(self) -> None:
        snapshots = self.served.snapshots
        snapshots.current = snapshots.build()


@pytest.fixture
def caching() -> CachingShop:
    return CachingShop()


def test_a_cached_list_has_an_impression_id_of_its_own(caching: CachingShop) -> None:
    first, again = caching.served.answer(REQUEST), caching.served.answer(REQUEST)
    assert (first.cached, again.cached) == (False, True)
    basket = replace(REQUEST, context=Context(page="basket"))
    elsewhere = [caching.served.answer(basket) for _ in range(2)]
    assert [(one.cached, one.context) for one in elsewhere] == [
        (False, basket.context),
        (True, basket.context),
    ]
    assert first.rendered.items == again.rendered.items
    assert first.body["impression_id"] != again.body["impression_id"]


def test_other_users_events_take_effect_after_the_ttl(caching: CachingShop) -> None:
    caching.is_cached()
    caching.rebuild_snapshot()
    caching.now += 29.9
    assert caching.is_cached()
    caching.now += 0.2
    assert not caching.is_cached()


def test_the_users_own_event_takes_effect_in_the_next_list(caching: CachingShop) -> None:
    caching.is_cached()
    caching.liked["ann"].insert(0, "cable-1")
    assert not caching.is_cached()


def test_a_catalogue_change_takes_effect_within_five_seconds(caching: CachingShop) -> None:
    caching.is_cached()
    caching.served.catalogue.put(Item(item_id="new", title="New"))
    caching.rebuild_snapshot()
    caching.now += CATALOGUE_TTL_S - 0.1
    assert caching.is_cached()
    caching.now += 0.2
    assert not caching.is_cached()


def test_another_model_and_other_rules_take_effect_in_the_next_list(caching: CachingShop) -> None:
    caching.is_cached()
    caching.served.decide(
        RuleDraft.model_validate({"action": "exclude", "query": ["item:cable-4"]})
    )
    assert not caching.is_cached()
    assert caching.is_cached()
    model = shop.model("m2")
    caching.served.snapshots.use(
        LoadedModel(model.version, model, FormulaRanker(), None, None, None)
    )
    caching.rebuild_snapshot()
    assert not caching.is_cached()


def test_a_list_that_is_not_personal_is_cached_for_one_snapshot(caching: CachingShop) -> None:
    stranger = RecommendationRequest("a-stranger", 10)
    assert [caching.is_cached(stranger) for _ in range(2)] == [False, True]
    caching.rebuild_snapshot()
    assert not caching.is_cached(stranger)


def test_without_a_ttl_lists_are_cached_for_one_snapshot() -> None:
    caching = CachingShop(cache_ttl_s=0.0)
    assert [caching.is_cached() for _ in range(2)] == [False, True]
    caching.rebuild_snapshot()
    assert not caching.is_cached()


def test_a_reduced_list_is_reused_only_under_load(caching: CachingShop) -> None:
    served = caching.served
    served.busy = True
    answers = [served.answer(REQUEST) for _ in range(2)]
    assert [(a.rendered.reduced, a.cached) for a in answers] == [(True, False), (True, True)]
    never_shed = RecommendationRequest("ann", 10, never_shed=True)
    assert served.answer(never_shed).rendered.reduced is False
    served.busy = False
    answers = [served.answer(REQUEST) for _ in range(2)]
    assert [(a.rendered.reduced, a.cached) for a in answers] == [(False, False), (False, True)]
    served.busy = True
    answer = served.answer(REQUEST)
    assert (answer.rendered.reduced, answer.cached) == (False, True), (
        "a full list is preferred to a reduced one"
    )


def a_response(number: int, items: bytes = b"[]") -> Recommendation:
    rendered = RenderedList(Tier.TRENDING, items, b"[]", 0)
    return Recommendation({"impression_id": f"l{number}"}, rendered, "blend")


def test_the_impression_cache_is_bounded_even_if_lists_are_empty() -> None:
    impressions = ImpressionCache(max_bytes=20_000)
    for number in range(1000):
        impressions.put(a_response(number))
    cached = [number for number in range(1000) if impressions.get(f"l{number}") is not None]
    assert 5 < len(cached) <= 20_000 / 1500
    assert impressions.get("l999") == {"impression_id": "l999"}
    assert impressions.get("l0") is None


@pytest.mark.parametrize(("max_lists", "cached"), [(8192, 11), (10, 10)])
def test_the_response_cache_is_bounded_in_bytes_and_in_lists(
    caching: CachingShop, max_lists: int, cached: int
) -> None:
    lists = ResponseCache(30.0, max_bytes=100_000, max_lists=max_lists)
    snapshot = caching.served.snapshots.current
    requests = [RecommendationRequest(f"u{number}", 10) for number in range(40)]
    rendered = a_response(0, b"x" * 5000).rendered
    for request in (*requests, *requests, *requests[:20]):
        lists.put(request, [b"row"], snapshot, rendered)
    found = [r.user_id for r in requests if lists.get(r, [b"row"], snapshot) is not None]
    assert found == [f"u{number}" for number in range(20 - cached, 20)], "the newest are cached"


MAX_BYTES = 4 * 2**20


def with_exclusions(number: int) -> RecommendationRequest:
    """A visitor's request with 500 exclusions, 50 interests and filters of its own."""
    return RecommendationRequest(
        f"user-{number}",
        10,
        exclude=tuple(f"{number}-item-{each:0>40}" for each in range(500)),
        interests=tuple(f"{number}-interest-{each:0>100}" for each in range(50)),
        filters=tuple(f"brand:{number}-{each:0>100}" for each in range(50)),
    )


def with_cursor(number: int) -> RecommendationRequest:
    """A request for a page after 999 items."""
    cursor = encode_cursor([f"{number}-item-{each}" for each in range(999)])
    return RecommendationRequest("ann", 10, page=Page(shown=decode_cursor(cursor), paginate=True))


def bytes_held(put: Callable[[int], None]) -> int:
    """Memory that 1,000 calls leave allocated."""
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1000):
            put(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("request_of", [with_exclusions, with_cursor])
def test_the_bytes_of_requests_and_histories_are_bounded_too(
    caching: CachingShop, request_of: Callable[[int], RecommendationRequest]
) -> None:
    snapshot = caching.served.snapshots.current
    lists = ResponseCache(30.0, max_bytes=MAX_BYTES)

    def put(number: int) -> None:
        rendered = RenderedList(Tier.TRENDING, b"x" * 5000, b"[]", 10, "n" * 3000)
        rows = [b"%d-%d" % (number, each) for each in range(200)]
        lists.put(request_of(number), rows, snapshot, rendered)

    assert bytes_held(put) <= MAX_BYTES
    assert lists.size_bytes <= MAX_BYTES


def test_control_a_bound_on_the_lists_alone_does_not_bound_memory() -> None:
    lists: FIFOCache[RecommendationRequest, RenderedList] = FIFOCache(
        MAX_BYTES, getsizeof=lambda rendered: rendered.size_bytes
    )

    def put(number: int) -> None:
        lists[with_exclusions(number)] = a_response(number).rendered

    assert bytes_held(put) > 5 * MAX_BYTES


def test_the_bytes_of_sent_lists_are_bounded_with_their_cursors() -> None:
    impressions = ImpressionCache(max_bytes=MAX_BYTES)

    def put(number: int) -> None:
        rendered = RenderedList(Tier.TRENDING, b"x" * 500, b"[]", 10, f"{number:0>32000}")
        body = {"impression_id": f"l{number}", "next": rendered.next, "as_of": {"feedback/0": 1}}
        impressions.put(Recommendation(body, rendered, "blend"))

    assert bytes_held(put) <= MAX_BYTES


def test_lists_that_may_be_reported_as_seen_are_bounded_in_number_and_bytes() -> None:
    unseen: OrderedDict[str, Recommendation] = OrderedDict()

    def put(number: int, row_bytes: int = 25_000) -> None:
        rendered = RenderedList(Tier.TRENDING, b"x" * 130_000, b"y" * row_bytes, 200, "n" * 30_000)
        body = {"impression_id": f"l{number}", "items": rendered.items, "next": rendered.next}
        keep_unseen(unseen, Recommendation(body, rendered, "blend"))

    assert bytes_held(put) <= MAX_UNSEEN_BYTES
    assert [*unseen] == ["l998", "l999"]
    put(1000, 2 * MAX_UNSEEN_BYTES)
    assert [*unseen] == ["l1000"], "the newest is kept in any case"
    for number in range(20):
        put(number, 1)
    assert [*unseen] == [f"l{number}" for number in range(20 - MAX_UNSEEN, 20)]


def test_only_the_first_page_of_a_cursor_is_cached(caching: CachingShop) -> None:
    first = RecommendationRequest("ann", 10, page=Page(paginate=True))
    assert [caching.is_cached(first) for _ in range(2)] == [False, True]
    assert [caching.is_cached(with_cursor(1)) for _ in range(2)] == [False, False]


def test_the_bytes_of_filtered_items_are_bounded(caching: CachingShop) -> None:
    snapshot = caching.served.snapshots.current
    filters = CatalogueFilters(max_bytes=MAX_BYTES)

    def put(number: int) -> None:
        conditions = [f"brand:{number}-{each:0>400}" for each in range(50)]
        filters.allowed(snapshot, None, conditions)

    assert bytes_held(put) <= MAX_BYTES
    assert MAX_BYTES / 2 < filters.size_bytes <= MAX_BYTES
