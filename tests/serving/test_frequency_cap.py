"""A user is shown an item only so often within a day."""

from __future__ import annotations

from afterclick.settings import ServingSettings, Settings
from afterclick.trends import DAY_MS
from serving.frequency_cap import FrequencyCap
from serving.recommender import RecommenderConfig
from serving.request import RecommendationRequest
from tests.serving.offline import Offline


def test_an_item_shown_as_often_as_allowed_makes_room_for_others_until_the_next_day() -> None:
    now_ms = [1.8e12]
    shop = Offline(frequency_cap=2, cache_ttl_s=30.0, clock_ms=lambda: now_ms[0])
    request = RecommendationRequest("u", 5)

    def shown() -> list[str]:
        recommendation = shop.answer(request)
        shop.recommender.on_shown(recommendation)
        return shop.ids("u", 5)

    first = shop.ids("u", 5)
    assert shown() == first  # once
    assert not set(shown()) & set(first)  # twice
    assert shop.ids("other", 5) == first
    now_ms[0] += DAY_MS + 1
    assert shop.ids("u", 5) == first


def test_the_request_path_follows_the_settings() -> None:
    options = {"frequency_cap": 3, "dislike_weight": 1.5, "repeat_purchase_days": {"Coffee": 30.0}}
    config = RecommenderConfig.of(Settings(serving=ServingSettings.model_validate(options)))
    assert {name: getattr(config, name) for name in options} == options


def test_without_a_cap_nothing_is_counted() -> None:
    shop = Offline()
    for _ in range(5):
        shop.recommender.on_shown(shop.answer(RecommendationRequest("u", 5)))
    assert shop.ids("u", 5) == shop.ids("other", 5)


def test_the_memory_is_bounded_and_forgets_users() -> None:
    cap = FrequencyCap(1, lists=10, user_lists=4)
    for n in range(30):
        cap.put(f"u{n % 7}", ["a"], n)
        assert len(cap) <= 10
    for n in range(30, 40):
        cap.put("u1", [f"i{n}"], n)
    assert cap.reached("u1", 40) == ("i36", "i37", "i38", "i39")
    cap.forget({"u1"})
    assert cap.reached("u1", 40) == ()
    for n in range(7):
        cap.forget({f"u{n}"})
    assert len(cap) == 0
