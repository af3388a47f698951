"""Cards, artwork, list changes and live figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from afterclick.api import Recommendations, RecommendedItem
from ui.cards import (
    artwork,
    avatar,
    bar_scale,
    card,
    compare_lists,
    confidence,
    demo_user,
    demo_users,
    department_of,
    describe_cause,
    title_of,
)
from ui.live_state import dashboard_tiles, duration, flows, number, stats_bar_tiles


def ranked(item_id: str = "B1", score: float = 1.0, **fields: object) -> RecommendedItem:
    return RecommendedItem.model_validate({"item_id": item_id, "score": score, **fields})


def test_an_item_without_a_title_shows_its_category_and_id() -> None:
    assert title_of(ranked("B7", categories=("Electronics", "Lenses"))) == "Lenses B7"
    assert title_of(ranked("B7")) == "Item B7"


def test_the_bar_of_the_highest_score_is_full_and_shared_by_its_contributions() -> None:
    items = (
        ranked("a", 2.0, contributions={"model": 1.5, "trend": 0.5}),
        ranked("b", 0.5, contributions={"model": 0.5}),
    )
    scale = bar_scale(items)
    shown = card(items[0], 1, scale, 0, False)
    assert sum(part["width"] for part in shown["contributions"]) == 100.0
    assert card(items[1], 2, scale, 0, False)["contributions"][0]["width"] == 25.0


def test_badges_come_from_the_api() -> None:
    assert card(ranked(badges=("trending", "new")), 1, 1.0, 0, False)["badges"] == [
        "trending now",
        "new",
    ]
    assert (
        card(ranked(contributions={"trend": 0.9, "model": 0.1}), 1, 1.0, 0, False)["badges"] == []
    )


def test_confidence_comes_from_the_distance_to_the_last_item() -> None:
    items = tuple(ranked(name, score) for name, score in (("a", 2.0), ("b", 0.6), ("c", 0.0)))
    answer = Recommendations(user_id="u", items=items, source="personalised")
    assert [confidence(item, answer)["words"] for item in items] == [
        "88% sure",
        "65% sure",
        "50% sure",
    ]
    assert [confidence(item, answer)["dots"] for item in items] == [3, 2, 1]


def test_a_list_for_all_users_has_no_confidence() -> None:
    answer = Recommendations(user_id="u", items=(ranked(),), source="trending")
    assert confidence(answer.items[0], answer)["words"] == "not personal"
    by_interests = answer.model_copy(update={"source": "interests"})
    assert confidence(by_interests.items[0], by_interests)["words"] == "a guess"


@given(st.text(min_size=1, max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_artwork_is_well_formed_and_contains_no_text_of_the_catalogue(
    item_id: str, categories: list[str]
) -> None:
    svg = artwork(item_id, categories)
    ElementTree.fromstring(svg)
    assert svg == artwork(item_id, categories)
    assert not re.search(r"<(script|image|foreignObject|use|a)\b|href", svg)


def test_an_avatar_has_the_initials_of_the_name() -> None:
    assert avatar("Alice")["initials"] == "A"
    assert avatar("guest-4f")["initials"] == "G4"


def test_demo_users_have_a_story_and_tastes_and_are_found_by_id() -> None:
    assert {"alice", "bob"} <= {user.user_id for user in demo_users()}
    assert all(user.story and user.tastes for user in demo_users())
    assert all("," not in taste for user in demo_users() for taste in user.tastes)
    assert demo_user("alice") == demo_users()[0]
    assert demo_user("unknown") is None


def test_numbers_are_short_and_a_missing_one_is_a_dash() -> None:
    assert [number(x) for x in (None, 3.44, 12.6, 1234, 45_678, 2_500_000)] == [
        "-",
        "3.4",
        "13",
        "1,234",
        "45.7k",
        "2.5M",
    ]
    assert stats_bar_tiles({}) == []


def test_durations_have_a_readable_unit() -> None:
    times = (None, 0.43, 12.6, 999.0, 58_932.0, 240_000.0)
    assert [" ".join(duration(time)) for time in times] == [
        "- ",
        "0.4 ms",
        "13 ms",
        "999 ms",
        "59 s",
        "4 min",
    ]


def test_freshness_during_a_backlog_is_marked() -> None:
    figures = {"freshness_ms": {"p50": 58_932.0, "p99": 61_000.0, "stages": {}}, "backlog": True}
    notes = {tile["name"]: tile["note"] for tile in dashboard_tiles(figures) if tile["note"]}
    assert notes == {"fresh p50": "backlog", "fresh p99": "backlog"}
    assert "waited" in flows(figures)[0]["title"]
    assert not any(tile["note"] for tile in dashboard_tiles(figures | {"backlog": False}))


def test_a_department_is_the_second_category_if_there_is_one() -> None:
    departments = [
        department_of(path) for path in ((), ("Lenses",), ("Electronics", "Cameras", "Lenses"))
    ]
    assert departments == ["no department", "Lenses", "Cameras"]


lists = st.lists(st.sampled_from([f"i{n}" for n in range(20)]), unique=True, max_size=12)


def test_a_list_change_counts_the_ranks_gained() -> None:
    change = compare_lists(["a", "b", "c"], ["c", "a", "d"])
    assert change.moved == {"c": 2, "a": -1}
    assert change.entered == ("d",)
    assert change.left == ("b",)
    assert change.summary() == "1 new, 1 up, 1 down, 1 gone"


def test_an_unchanged_list_has_the_same_order() -> None:
    change = compare_lists(["a", "b"], ["a", "b"])
    assert change.moved == {"a": 0, "b": 0}
    assert not change.entered
    assert not change.left
    assert change.summary() == "same order"


@given(lists, lists)
def test_each_item_has_moved_entered_or_left(before: list[str], after: list[str]) -> None:
    change = compare_lists(before, after)
    assert set(change.moved) == set(before) & set(after)
    assert set(change.entered) == set(after) - set(before)
    assert set(change.left) == set(before) - set(after)
    assert all(
        before.index(item) - after.index(item) == ranks for item, ranks in change.moved.items()
    )


def test_the_cause_names_the_action_and_the_item() -> None:
    assert describe_cause("like", "Kestrel Tripod") == "you liked Kestrel Tripod"
    assert describe_cause("skip", None) == "you skipped"
