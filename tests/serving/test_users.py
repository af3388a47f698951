"""Users in SQL: first and last feedback, interests, and their deletion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from afterclick.errors import Unavailable
from afterclick.settings import Settings
from serving.control.store import Database, forget_user
from serving.control.users import UserDirectory, read_user
from tests.serving.running import Running, after, ids, kinds
from tests.waiting import wait_until


def test_users_are_stored_and_forgotten_by_every_process(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    one, other = UserDirectory(), UserDirectory()
    one.seen("ann")
    one.sync(database)
    first = read_user(database, "ann")
    assert first is not None
    assert datetime.now(UTC) - first["first_seen"] < timedelta(minutes=1)
    other.seen("ann")
    other.seen("bob")
    other.set_interests(database, "ann", ("Cameras", "i1"))
    other.sync(database)
    one.sync(database)
    later = read_user(database, "ann")
    assert later is not None
    assert later["first_seen"] == first["first_seen"] < later["last_seen"]
    assert one.interests == other.interests == {"ann": ("Cameras", "i1")}
    one.set_interests(database, "bob", ("Cables",))
    one.set_interests(database, "bob", ())
    assert one.interests == {"ann": ("Cameras", "i1")}
    assert forget_user(database, "ann") == 1
    assert read_user(database, "ann") is None
    for users in (one, other):
        users.sync(database)
        assert users.interests == {}
    database.close()


def test_users_seen_during_an_outage_are_written_later(database_url: str) -> None:
    users = UserDirectory()
    users.seen("ann")
    with pytest.raises(Unavailable):
        users.sync(Database("postgresql://user@127.0.0.1:1/absent"))
    users.seen("bob")
    database = Database(database_url)
    database.upgrade()
    users.sync(database)
    assert read_user(database, "ann")
    assert read_user(database, "bob")
    database.close()


def test_stored_interests_make_the_lists_of_users_without_history(
    shop_api: Running, settings: Settings
) -> None:
    assert shop_api.http.get("/users/eve").status_code == 404
    named = shop_api.http.put("/users/eve/interests", json={"interests": ["Cables", "nothing"]})
    assert named.json() == {"user_id": "eve", "interests": ["Cables", "nothing"]}
    body = shop_api.list_for("eve", n=5)
    assert (body["source"], kinds(body)) == ("interests", {"cable"})
    asked = shop_api.list_for("eve", n=5, interests="Cameras")
    assert kinds(asked) == {"camera"}, "interests of the request come first"
    with Running(settings) as other:
        wait_until(lambda: other.list_for("eve", n=5)["source"] == "interests")
    known = shop_api.get("/users/eve")
    assert (known["interests"], known["experiment"]) == (["Cables", "nothing"], None)
    liked = ids(body)[0]
    body = after(shop_api, "eve", shop_api.feedback("eve", liked))
    assert body["source"] == "personalised"
    shop_api.http.put("/users/zoe/interests", json={"interests": ["Cables"]})
    shop_api.http.put("/users/zoe/interests", json={"interests": []})
    assert shop_api.list_for("zoe")["source"] in {"trending", "popular"}
