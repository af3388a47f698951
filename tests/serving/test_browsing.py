"""Lists of anonymous sessions, of one item, of all users, and of a new item."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from afterclick.events import Item
from afterclick.settings import Settings
from serving.control.user_tokens import new_token
from tests.serving import shop
from tests.serving.running import Running, after, ids, kinds
from tests.serving.test_auth import bearer, guarded
from tests.waiting import PATIENCE_S, wait_until

SECRET = "a secret that is long enough for HS256"


def post(api: Running, path: str, **body: object) -> httpx2.Response:
    return api.http.post(path, json=body)


def test_a_session_without_an_account_is_personalised_by_its_events(shop_api: Running) -> None:
    liked = post(shop_api, "/feedback", session_id="s1", item_id="cable-3", action="like")
    assert liked.status_code == 202, liked.text
    body = shop_api.get("/recommendations", session_id="s1", n=5, after=liked.json()["position"])
    assert (body["source"], body["user_id"], kinds(body)) == ("session", "session:s1", {"cable"})
    assert body["items"][0]["reason"] == "because you liked The cable-3"
    assert shop_api.get("/recommendations", session_id="another", n=5)["source"] in {
        "trending",
        "popular",
    }
    with connect(f"{shop_api.ws}/ws/recommendations?session_id=s1") as socket:
        assert b'"session:s1"' in str(socket.recv(PATIENCE_S)).encode()
    known = shop_api.feedback("bob", "camera-1", session_id="s1")
    body = shop_api.get("/recommendations", session_id="s1", user_id="bob", n=5, after=known)
    assert (body["source"], kinds(body)) == ("personalised", {"camera"}), (
        "a session with a user id counts for the user"
    )
    assert post(shop_api, "/feedback", item_id="cable-3", action="like").status_code == 422
    assert (
        post(shop_api, "/feedback", session_id="s" * 121, item_id="i", action="like").status_code
        == 422
    )


def test_at_login_a_user_gets_the_history_of_the_session(shop_api: Running) -> None:
    events = [("cable-3", "like"), ("cable-4", "skip"), ("cable-5", "click")]
    for item_id, action in events:
        sent = post(shop_api, "/feedback", session_id="visit", item_id=item_id, action=action)
    login = {"user_id": "newcomer", "after": sent.json()["position"]}

    def merge() -> dict[str, Any] | None:
        response = post(shop_api, "/sessions/visit/user", **login)
        body: dict[str, Any] = response.json()
        return body if response.status_code == 202 and body["fresh"] else None

    merged = wait_until(merge, what="the session is in the state")
    assert merged["events"] == 3
    body = after(shop_api, "newcomer", merged["position"])
    assert (body["source"], kinds(body)) == ("personalised", {"cable"})
    assert not {item_id for item_id, _ in events} & set(ids(body))
    interactions = shop_api.get("/items/cable-3")["interactions"]

    again = wait_until(merge)
    after(shop_api, "newcomer", again["position"])
    history = shop_api.get("/users/newcomer/history")["events"]
    assert [(e["item_id"], e["action"]) for e in history] == events[::-1]
    assert shop_api.get("/items/cable-3")["interactions"] == interactions

    nobody = post(shop_api, "/sessions/unknown/user", user_id="newcomer").json()
    assert (nobody["events"], nobody["position"], nobody["fresh"]) == (0, None, None)
    for user_id in ("session:visit", ""):
        assert post(shop_api, "/sessions/visit/user", user_id=user_id).status_code == 422


def test_an_item_shows_its_stars_and_exact_counts(shop_api: Running) -> None:
    """The newest review of each user counts; both are interactions."""
    before = shop_api.get("/items/camera-20")
    assert (before["ratings"], before["positives"]) == (None, before["interactions"])
    for user, rating in (("stan", 5), ("olga", 1), ("stan", 2), ("pia", 4.5)):
        position = shop_api.feedback(user, "camera-20", "review", rating=rating)
    after(shop_api, "pia", position)

    def counted() -> dict[str, Any] | None:
        item = shop_api.get("/items/camera-20")
        return item if item["interactions"] == before["interactions"] + 4 else None

    item = wait_until(counted)
    assert item["positives"] == before["positives"] + 2
    assert item["ratings"] == {"count": 3, "mean": round(8 / 3, 2)}
    rows = shop_api.get("/popular", category="Cameras", n=100)["items"]
    assert {row["item_id"]: row.get("ratings") for row in rows}["camera-20"] == item["ratings"]
    assert all("ratings" not in row for row in rows if row["item_id"] != "camera-20")


def test_a_token_is_valid_for_its_own_session_only(settings: Settings) -> None:
    with Running(guarded(settings, token_secret=SECRET)) as api:
        own, other = (new_token(SECRET, who, 3600)[0] for who in ("session:s1", "ann"))
        feedback = {"session_id": "s1", "item_id": "i", "action": "view"}
        for token, allowed in ((own, True), (other, False)):
            answers = (
                api.http.get("/recommendations?session_id=s1", headers=bearer(token)),
                api.http.post("/recommendations", json={"session_id": "s1"}, headers=bearer(token)),
                api.http.post("/feedback", json=feedback, headers=bearer(token)),
            )
            assert [answer.status_code != 403 for answer in answers] == [allowed] * 3
        url = f"{api.ws}/ws/recommendations?session_id=s1"
        with connect(url, additional_headers=bearer(own)) as socket:
            assert socket.recv(PATIENCE_S)
        with pytest.raises(InvalidStatus), connect(url, additional_headers=bearer(other)):
            pass


def test_similar_popular_and_latest_items(shop_api: Running) -> None:
    bought = shop_api.get("/similar-items", item_id="camera-2", by="bought", n=40)
    alike = shop_api.get("/similar-items", item_id="camera-2", by="content", n=40)
    assert kinds(bought) == {"camera"}
    assert bought["items"][0]["reason"] == "chosen by users who chose The camera-2"
    assert len(bought["items"]) == 20, "only neighbours by purchases, none by content"
    assert len(alike["items"]) > 20
    assert shop_api.http.get("/similar-items?item_id=camera-2&by=colour").status_code == 422

    shop_api.feedback("ann", "cable-9", "purchase")
    position = shop_api.feedback("bea", "camera-9", "purchase")
    after(shop_api, "bea", position)

    def popular_cable(window: str) -> bool:
        body = shop_api.get("/popular", window=window, category="Cables", n=1)
        return ids(body) == ["cable-9"]

    for window in ("hour", "day", "week", "month"):
        wait_until(partial(popular_cable, window))
    popular = shop_api.get("/popular", window="hour", category="Cables", n=100)["items"]
    assert all(item["score"] > 0 for item in popular), "an item without events"

    basket = {
        "items": ["camera-1", "camera-2"],
        "exclude": ["camera-3"],
        "category": "Cameras",
        "n": 6,
    }
    body = post(shop_api, "/recommendations", **basket).json()
    assert (body["source"], kinds(body), len(body["items"])) == ("session", {"camera"}, 6)
    assert {"camera-1", "camera-2", "camera-3"}.isdisjoint(ids(body))

    users = [f"user-{n}" for n in range(499)] + ["bea"]
    lists = post(shop_api, "/recommendations/batch", user_ids=users, n=3).json()["lists"]
    assert [row["user_id"] for row in lists] == users
    assert [row["source"] for row in lists[-2:]] == ["trending", "personalised"]
    assert all(len(row["items"]) == 3 for row in lists)
    assert (
        post(shop_api, "/recommendations/batch", user_ids=[*users, "one-more"]).status_code == 422
    )


def test_a_new_item_without_events_is_recommended(shop_api: Running, settings: Settings) -> None:
    fresh = Item(item_id="new-1", title="A tripod for The camera-3", categories=("Tripods",))
    shop.publish_items(settings, [fresh])
    wait_until(lambda: ids(shop_api.get("/latest", n=1)) == ["new-1"])
    assert ids(shop_api.get("/latest", n=5, category="Tripods")) == ["new-1"]
    assert "new-1" in ids(shop_api.get("/search", q="tripod"))
    # by content: a user interested in its category
    assert ids(shop_api.list_for("eve", n=5, interests="Tripods"))[0] == "new-1"
    # by exploration: a user interested in another category
    after(shop_api, "bob", shop_api.feedback("bob", "camera-3"))
    assert "new-1" not in ids(shop_api.list_for("bob"))
    wait_until(lambda: "new-1" in ids(shop_api.list_for("bob", explore=1.0)))
