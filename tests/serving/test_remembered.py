"""A list that was just made is given again, until its user, the model, the rules or time say otherwise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from afterclick.api import Tier
from afterclick.events import Item
from serving.control.rules import RuleDraft
from serving.ranking import remembered
from serving.ranking.remembered import Kept, Recommendation, RecommendationRequest, RenderedList
from serving.state.loaded_models import LoadedModel
from serving.state.loaded_ranker import FormulaRanker
from tests.serving import shop
from tests.serving.offline import Offline

ASK = RecommendationRequest("ann", 10)


class Shop:
    """A served shop that remembers personal lists for 30 seconds of a clock in the test's hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache_ttl_s: float = 30.0) -> None:
        self.now = 1000.0
        monkeypatch.setattr(remembered, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.liked = {"ann": ["camera-3", "camera-5"]}
        self.served = Offline(liked=self.liked, model=shop.model("m1"), cache_ttl_s=cache_ttl_s)

    def given_again(self, ask: RecommendationRequest = ASK) -> bool:
        return self.served.answer(ask).remembered

    def another_world(self) -> None:
        snapshots = self.served.snapshots
        snapshots.current = snapshots.build()


@pytest.fixture
def shop_now(monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(monkeypatch)


def test_the_same_list_comes_again_under_an_impression_of_its_own(shop_now: Shop) -> None:
    first, again = shop_now.served.answer(ASK), shop_now.served.answer(ASK)
    assert (first.remembered, again.remembered) == (False, True)
    assert first.shown.items == again.shown.items
    assert first.body["impression_id"] != again.body["impression_id"]


def test_what_others_do_comes_in_after_the_time_that_the_settings_say(shop_now: Shop) -> None:
    shop_now.given_again()
    shop_now.another_world()
    shop_now.now += 29.9
    assert shop_now.given_again()
    shop_now.now += 0.2
    assert not shop_now.given_again()


def test_what_the_user_does_comes_in_at_once(shop_now: Shop) -> None:
    shop_now.given_again()
    shop_now.liked["ann"].insert(0, "cable-1")
    assert not shop_now.given_again()


def test_a_change_of_the_catalogue_comes_in_within_five_seconds(shop_now: Shop) -> None:
    shop_now.given_again()
    shop_now.served.catalogue.put(Item(item_id="new", title="New"))
    shop_now.another_world()
    shop_now.now += remembered.CATALOGUE_S - 0.1
    assert shop_now.given_again()
    shop_now.now += 0.2
    assert not shop_now.given_again()


def test_another_model_and_other_rules_come_in_at_once(shop_now: Shop) -> None:
    shop_now.given_again()
    shop_now.served.decide(
        RuleDraft.model_validate({"action": "exclude", "query": ["item:cable-4"]})
    )
    assert not shop_now.given_again()
    assert shop_now.given_again()
    model = shop.model("m2")
    shop_now.served.snapshots.use(
        LoadedModel(model.version, model, FormulaRanker(), None, None, None)
    )
    shop_now.another_world()
    assert not shop_now.given_again()


def test_lists_that_are_not_personal_are_of_the_present_world(shop_now: Shop) -> None:
    stranger = RecommendationRequest("a-stranger", 10)
    assert [shop_now.given_again(stranger) for _ in range(2)] == [False, True]
    shop_now.another_world()
    assert not shop_now.given_again(stranger)


def test_told_to_remember_nothing_every_world_makes_lists_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop_now = Shop(monkeypatch, cache_ttl_s=0.0)
    assert [shop_now.given_again() for _ in range(2)] == [False, True]
    shop_now.another_world()
    assert not shop_now.given_again()


def test_a_list_made_in_a_hurry_comes_again_only_in_a_hurry(shop_now: Shop) -> None:
    served = shop_now.served
    served.busy = True
    told = [
        (answer.body["reduced"], answer.remembered)
        for answer in (served.answer(ASK) for _ in range(2))
    ]
    assert told == [(True, False), (True, True)]
    assert served.answer(RecommendationRequest("ann", 10, patient=True)).body["reduced"] is False
    served.busy = False
    told = [
        (answer.body["reduced"], answer.remembered)
        for answer in (served.answer(ASK) for _ in range(2))
    ]
    assert told == [(False, False), (False, True)]
    served.busy = True
    answer = served.answer(ASK)
    assert (answer.body["reduced"], answer.remembered) == (False, True), (
        "a whole list is given before a brief one"
    )


def a_list(number: int, items: bytes = b"[]") -> Recommendation:
    shown = RenderedList(Tier.TRENDING, items, b"[]", 0)
    return Recommendation({"impression_id": f"l{number}"}, shown, "blend")


def test_what_went_out_is_kept_within_bounds_even_where_lists_are_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remembered, "KEPT_BYTES", 20_000)
    kept = Kept()
    for number in range(1000):
        kept.put(a_list(number))
    assert 5 < len(kept._lists) <= 20_000 / 1500
    assert kept.get("l999") == {"impression_id": "l999"}
    assert kept.get("l0") is None


def test_remembered_lists_are_bounded_in_bytes_as_well(
    shop_now: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "REMEMBERED_BYTES", 100_000)
    lists, world = remembered.ResponseCache(30.0), shop_now.served.snapshots.current
    for number in range(100):
        lists.put(
            RecommendationRequest(f"u{number % 40}", 10),
            [b"row"],
            world,
            a_list(number, b"x" * 5000).shown,
        )
    assert 0 < lists._bytes <= 100_000
    assert lists._bytes == sum(entry.shown.bytes for entry in lists._entries.values())
    assert lists.get(RecommendationRequest("u19", 10), [b"row"], world) is not None
