"""Pages of a list repeat no item, even if the list changes between requests."""

from __future__ import annotations

import dataclasses
from base64 import urlsafe_b64encode
from typing import Any
from zlib import compress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.control.rules import RuleDraft
from serving.request import (
    FIRST_CURSOR,
    MAX_SHOWN,
    PLAIN,
    Page,
    RecommendationRequest,
    cursor_after,
    decode_cursor,
    encode_cursor,
)
from tests.serving import shop
from tests.serving.offline import Offline

LIKED = {"ann": ["camera-3", "camera-5"]}
AUDIENCES = ("", "ann")


def an_offline() -> Offline:
    return Offline(liked=LIKED, model=shop.model("m1"))


def pages(served: Offline, user_id: str, n: int, **asked: Any) -> list[list[str]]:
    """All pages of a list, requested by cursor."""
    found: list[list[str]] = []
    cursor: str | None = FIRST_CURSOR
    while cursor is not None:
        ask = RecommendationRequest(
            user_id, n, page=Page(shown=decode_cursor(cursor), paginate=True), **asked
        )
        answer = served.answer(ask)
        found.append([row["item_id"] for row in orjson.loads(answer.rendered.items)])
        cursor = answer.body["next"]
    return found


@pytest.mark.parametrize("user_id", AUDIENCES)
def test_pages_concatenate_to_the_list(user_id: str) -> None:
    served = an_offline()
    whole = served.ids(user_id, 58)
    assert len(whole) == 58
    by_offset = [
        item for start in range(0, 58, 10) for item in served.ids(user_id, 10, page=Page(start))
    ]
    assert by_offset[:58] == whole
    found = pages(served, user_id, 10)
    everything = [item for page in found for item in page]
    assert len(everything) == len(set(everything))
    assert set(everything) >= set(whole)
    assert everything[:10] == whole[:10]


@pytest.mark.parametrize("user_id", AUDIENCES)
def test_pages_by_cursor_repeat_no_item_if_the_list_changes(user_id: str) -> None:
    served = an_offline()
    first = served.answer(RecommendationRequest(user_id, 10, page=Page(paginate=True)))
    shown = [row["item_id"] for row in orjson.loads(first.rendered.items)]
    for item_id in served.ids(user_id, 50)[40:]:
        for _ in range(200):
            served.feed.table.add(item_id, served.feed.table.newest_ms, 1.0)
    served.snapshots.current = served.snapshots.build()
    later = Page(shown=decode_cursor(first.body["next"]), paginate=True)
    assert not set(shown) & set(served.ids(user_id, 10, page=later))
    if user_id == "":
        assert set(shown) & set(served.ids(user_id, 10, page=Page(10))), (
            "the control: pages by offset repeat items"
        )


def test_pages_with_rules_diversity_and_exploration_repeat_no_item() -> None:
    served = an_offline()
    pin = {"action": "pin", "query": ["item:cable-29"], "position": 14}
    served.decide(RuleDraft.model_validate(pin))
    options = dataclasses.replace(PLAIN, diversity=0.5, explore=0.5)
    everything = [item for page in pages(served, "ann", 7, options=options) for item in page]
    assert len(everything) == len(set(everything)) == 58
    found = pages(served, "", 10)
    assert found[1][3] == "cable-29", "position 14 is the fourth of the second page"
    whole = served.ids("", 30)
    assert whole[13] == "cable-29"
    assert served.ids("", 10, page=Page(10)) == whole[10:20]


def test_filters_apply_to_every_page() -> None:
    served = an_offline()
    found = pages(served, "ann", 10, filters=("category:cables",))
    everything = [item for page in found for item in page]
    assert sorted(everything) == sorted(f"cable-{n}" for n in range(30))
    assert served.ids("ann", 50, filters=("title:cable-7", "item:camera-9")) == []
    assert served.ids(
        "ann", 50, filters=("title:cable-7", "title:camera-9"), category="cables"
    ) == ["cable-7"]


@given(
    st.lists(st.text(min_size=1, max_size=20).filter(str.isprintable), unique=True, max_size=200)
)
def test_a_cursor_encodes_the_shown_items(shown: list[str]) -> None:
    assert decode_cursor(encode_cursor(shown)) == tuple(shown)


def test_there_is_no_cursor_at_the_end_of_the_list_or_beyond_the_depth_limit() -> None:
    assert cursor_after((), ["a", "b"], 3) is None
    assert cursor_after((), ["a", "b"], 2) == encode_cursor(["a", "b"])
    deep = [f"i{n}" for n in range(MAX_SHOWN)]
    assert cursor_after(deep, ["a"], 1) is None


BOMB = urlsafe_b64encode(compress(b"[" + b'"a",' * 3_000_000 + b'"a"]')).decode()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "ü",
        "AAAA",
        encode_cursor(["a"])[:-2],
        encode_cursor([""]),
        encode_cursor(["a\x00"]),
        BOMB,
    ],
    ids=["empty", "x", "not ascii", "not packed", "cut", "empty id", "bad id", "bomb"],
)
def test_an_invalid_cursor_is_rejected(wrong: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        decode_cursor(wrong)
