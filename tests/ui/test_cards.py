"""How items look, also those that the catalogue knows little of."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from afterclick.api import Recommendations, RecommendedItem
from ui.artwork import artwork, face
from ui.cards import bar_scale, card, department_of, sureness, title_of
from ui.demo_users import demo_user, demo_users
from ui.figures import board_tiles, flows, number, span, strip_tiles


def ranked(item_id: str = "B1", score: float = 1.0, **fields: object) -> RecommendedItem:
    return RecommendedItem.model_validate({"item_id": item_id, "score": score, **fields})


def test_an_item_without_a_title_shows_its_category_and_id() -> None:
    assert title_of(ranked("B7", categories=("Electronics", "Lenses"))) == "Lenses B7"
    assert title_of(ranked("B7")) == "Item B7"


def test_the_bar_of_the_highest_score_is_full_and_parts_share_it() -> None:
    items = (
        ranked("a", 2.0, contributions={"model": 1.5, "trend": 0.5}),
        ranked("b", 0.5, contributions={"model": 0.5}),
    )
    scale = bar_scale(items)
    shown = card(items[0], 1, scale, 0, False)
    assert sum(part["width"] for part in shown["parts"]) == 100.0
    assert card(items[1], 2, scale, 0, False)["parts"][0]["width"] == 25.0


def test_badges_are_those_that_the_api_gives() -> None:
    assert card(ranked(badges=("trending", "new")), 1, 1.0, 0, False)["badges"] == [
        "trending now",
        "new",
    ]
    assert (
        card(ranked(contributions={"trend": 0.9, "model": 0.1}), 1, 1.0, 0, False)["badges"] == []
    )


def test_how_sure_a_list_is_comes_from_the_distance_to_its_last_item() -> None:
    items = tuple(ranked(name, score) for name, score in (("a", 2.0), ("b", 0.6), ("c", 0.0)))
    answer = Recommendations(user_id="u", items=items, source="personalised")
    assert [sureness(item, answer)["words"] for item in items] == [
        "88% sure",
        "65% sure",
        "50% sure",
    ]
    assert [sureness(item, answer)["dots"] for item in items] == [3, 2, 1]


def test_a_list_for_everybody_is_not_said_to_be_sure() -> None:
    answer = Recommendations(user_id="u", items=(ranked(),), source="trending")
    assert sureness(answer.items[0], answer)["words"] == "not personal"
    guessed = answer.model_copy(update={"source": "interests"})
    assert sureness(guessed.items[0], guessed)["words"] == "a guess"


@given(st.text(min_size=1, max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_artwork_is_well_formed_and_holds_no_text_of_the_catalogue(
    item_id: str, categories: list[str]
) -> None:
    svg = artwork(item_id, categories)
    ElementTree.fromstring(svg)
    assert svg == artwork(item_id, categories)
    assert not re.search(r"<(script|image|foreignObject|use|a)\b|href", svg)


def test_faces_are_initials() -> None:
    assert face("Alice")["initials"] == "A"
    assert face("guest-4f")["initials"] == "G4"


def test_toy_users_have_a_story_and_tastes_and_are_found_by_id() -> None:
    assert {"alice", "bob"} <= {user.user_id for user in demo_users()}
    assert all(user.story and user.tastes for user in demo_users())
    assert all("," not in taste for user in demo_users() for taste in user.tastes)
    assert demo_user("alice") == demo_users()[0]
    assert demo_user("nobody") is None


def test_figures_are_short_and_a_missing_one_is_a_dash() -> None:
    assert [number(x) for x in (None, 3.44, 12.6, 1234, 45_678, 2_500_000)] == [
        "-",
        "3.4",
        "13",
        "1,234",
        "45.7k",
        "2.5M",
    ]
    assert strip_tiles({}) == []


def test_times_have_the_unit_that_reads_best() -> None:
    times = (None, 0.43, 12.6, 999.0, 58_932.0, 240_000.0)
    assert [" ".join(span(time)) for time in times] == [
        "- ",
        "0.4 ms",
        "13 ms",
        "999 ms",
        "59 s",
        "4 min",
    ]


def test_the_age_of_a_backlog_is_not_passed_off_as_a_delay() -> None:
    figures = {"freshness_ms": {"p50": 58_932.0, "p99": 61_000.0, "stages": {}}, "backlog": True}
    notes = {tile["name"]: tile["note"] for tile in board_tiles(figures) if tile["note"]}
    assert notes == {"fresh p50": "backlog", "fresh p99": "backlog"}
    assert "waited" in flows(figures)[0]["title"]
    assert not any(tile["note"] for tile in board_tiles(figures | {"backlog": False}))


def test_a_department_is_the_second_category_where_there_is_one() -> None:
    found = [
        department_of(path) for path in ((), ("Lenses",), ("Electronics", "Cameras", "Lenses"))
    ]
    assert found == ["no department", "Lenses", "Cameras"]
