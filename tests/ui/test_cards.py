"""How items look, also those that the catalogue knows little of."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ui.api_types import RankedItem
from ui.artwork import artwork, face
from ui.cards import bar_scale, card, title_of
from ui.demo_users import demo_user, demo_users
from ui.figures import number, strip_tiles


def ranked(item_id: str = "B1", score: float = 1.0, **fields: object) -> RankedItem:
    return RankedItem.model_validate({"item_id": item_id, "score": score, **fields})


def test_an_item_without_a_title_shows_its_category_and_id() -> None:
    assert title_of(ranked("B7", categories=("Electronics", "Lenses"))) == "Lenses B7"
    assert title_of(ranked("B7")) == "Item B7"


def test_the_bar_of_the_highest_score_is_full_and_parts_share_it() -> None:
    items = (ranked("a", 2.0, parts={"model": 1.5, "trend": 0.5}), ranked("b", 0.5, parts={"model": 0.5}))
    scale = bar_scale(items)
    shown = card(items[0], 1, scale, 0, False)
    assert sum(part["width"] for part in shown["parts"]) == 100.0
    assert card(items[1], 2, scale, 0, False)["parts"][0]["width"] == 25.0


def test_an_item_that_lives_on_its_trend_is_called_trending() -> None:
    shown = card(ranked(parts={"trend": 0.9, "model": 0.1}), 1, 1.0, 0, False)
    assert shown["badges"] == ["trending"]


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
