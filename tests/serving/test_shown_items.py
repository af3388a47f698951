"""A user is shown an item only so often within a day."""

from __future__ import annotations

from afterclick.arrays import Float64Array, FloatArray
from afterclick.features import FEATURE_NAMES
from afterclick.ranking import Contributions, FormulaRanker
from afterclick.settings import ServingSettings, Settings
from afterclick.shown_items import ShownItems
from afterclick.trends import DAY_MS
from serving.recommender import RecommenderConfig
from serving.request import RecommendationRequest
from tests.serving.offline import Offline
from tests.serving.shop import model


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
    shown = ShownItems(lists=10, user_lists=4)
    for n in range(30):
        shown.put(f"u{n % 7}", ["a"], n)
        assert len(shown) <= 10
    for n in range(30, 40):
        shown.put("u1", [f"i{n}", "b"], n)
    assert shown.counts("u1", 40) == {"i36": 1, "i37": 1, "i38": 1, "i39": 1, "b": 4}
    assert shown.counts("u1", DAY_MS + 38) == {"i39": 1, "b": 1}
    assert shown.counts("u1", DAY_MS + 40) == {}
    for n in range(7):
        shown.forget({f"u{n}"})
    assert len(shown) == 0


class TiresOfRepeats(FormulaRanker):
    """The formula, and a point less for each time that an item was shown."""

    used = frozenset({"shown_today"})

    def score(self, features: FloatArray) -> Float64Array:
        return super().score(features) - features[:, FEATURE_NAMES.index("shown_today")]

    def contributions(self, features: FloatArray) -> Contributions:
        found = super().contributions(features)
        return found | {
            "history": found["history"] - features[:, FEATURE_NAMES.index("shown_today")]
        }


def test_a_ranker_that_uses_it_knows_what_the_user_was_shown() -> None:
    """The control: the formula does not depend on it, so nothing is counted."""
    for ranker, is_counted in ((TiresOfRepeats(), True), (FormulaRanker(), False)):
        shop = Offline(liked={"u": ["camera-1"]}, model=model("m1"), ranker=ranker)
        first = shop.ids("u", 5)
        for _ in range(20):
            shop.recommender.on_shown(shop.answer(RecommendationRequest("u", 1)))
        again = shop.ids("u", 6)[:5]  # a list of another length is not the cached one
        assert (again != first) is is_counted
