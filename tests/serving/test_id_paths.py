"""Whatever id feedback accepts works in paths, queries, lists and the client."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote

import pytest

from afterclick.events import Item
from afterclick.io.client import Client
from afterclick.settings import Settings
from serving.control.request_log import named_users
from serving.id_paths import segment, value_of
from tests.serving import shop
from tests.serving.conftest import stock
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, after, ids
from tests.waiting import wait_until

HOSTILE = (
    "FN73239/40/41",
    "a/history",
    "//",
    "a:b",
    "50%",
    "50%25",
    "a%2Fb",
    "x,y;z",
    "?q=1#f&n=2",
    "two words+1",
    "\"quoted\" 'id' <b>\\",
    "caf\u00e9",
    "cafe\u0301",
    "..",
    "\U0001f600" * 128,
)
"""Also the composed and decomposed form of one text, which are two ids."""


@pytest.fixture
def hostile_shop(settings: Settings, api: Running, stream: MiniStream) -> Running:
    stock(settings, api)
    shop.publish_items(settings, [Item(item_id=name, title="A title") for name in HOSTILE])
    wait_until(lambda: all(api.service.catalogue.get(name) for name in HOSTILE))
    return api


def _counted(client: Client, item_id: str) -> bool:
    return client.item(item_id).interactions == 1


def _stored(api: Running, path: str) -> bool:
    return api.http.get(f"/users/{path}").status_code == 200


def test_every_id_that_feedback_accepts_works_in_every_route(hostile_shop: Running) -> None:
    api = hostile_shop
    positions = {name: api.feedback(name, name, session_id=name[:100]) for name in HOSTILE}
    with Client(api.url) as client:
        for name, position in positions.items():
            path = quote(name, safe="") if name != ".." else "%2E%2E"
            assert name not in ids(after(api, name, position)), name  # seen
            history = api.get(f"/users/{path}/history")
            assert history["user_id"] == name
            assert [row["item_id"] for row in history["events"]] == [name]
            assert client.history(name).events[0].item_id == name
            assert api.get(f"/items/{path}")["item_id"] == name
            wait_until(partial(_counted, client, name))
            assert client.item(name).item_id == name
            assert api.get("/similar-items", item_id=name)["item_id"] == name
            listed = api.get("/recommendations", user_id="someone", items=name, exclude=name)
            assert name not in ids(listed)
            wait_until(partial(_stored, api, path))
            stored = api.http.put(f"/users/{path}/interests", json={"interests": [name]})
            assert stored.json()["user_id"] == name, stored.text
            erased = api.http.delete(f"/users/{path}")
            assert erased.json()["user_id"] == name, erased.text
            assert api.get(f"/users/{path}/erasure")["user_id"] == name
            merged = client.merge_session(name[:100], "bob")
            assert merged.session_id == name[:100]


def test_a_segment_is_one_value_whatever_it_contains() -> None:
    for name in (*HOSTILE, "%2F", "%252F", "/%"):
        assert "/" not in segment(name)
        assert value_of(segment(name)) == name


def test_the_user_of_a_logged_path_is_the_whole_id() -> None:
    assert named_users(f"/users/{segment('team/ana')}/history", "").user_id == "team/ana"
    assert named_users(f"/users/{segment('50%25')}", "").user_id == "50%25"


def test_no_user_can_act_as_a_session(shared_shop_api: Running) -> None:
    """`session:x` is where the history of session x is stored."""
    body = {"user_id": "session:x", "item_id": "camera-1", "action": "like"}
    answer = shared_shop_api.http.post("/feedback", json=body)
    assert answer.status_code == 422
    assert "names a session" in answer.text
