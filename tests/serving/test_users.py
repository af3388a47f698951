"""Users in SQL: first and last feedback, interests, and their deletion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from afterclick.errors import Unavailable
from afterclick.events import now
from afterclick.settings import Settings
from serving.control.erasure import delete_users
from serving.control.store import Database
from serving.control.store import users as table
from serving.control.users import CLOCK_SKEW, InactiveFor, UserDirectory, read_user
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
    assert one.interests_of("ann") == other.interests_of("ann") == ("Cameras", "i1")
    one.set_interests(database, "bob", ("Cables",))
    other.sync(database)
    assert other.interests_of("bob") == ("Cables",)
    one.set_interests(database, "bob", ())
    other.sync(database)
    assert one.interests_of("bob") == other.interests_of("bob") == ()
    forget(database, "ann")
    assert read_user(database, "ann") is None
    for users in (one, other):
        users.sync(database)
        assert users.interests_of("ann") == ()
    database.close()


def forget(database: Database, user_id: str) -> None:
    with database.begin() as connection:
        delete_users(connection, {user_id: round(time.time() * 1000) + 1})


@pytest.fixture
def named(database_url: str) -> Iterator[Database]:
    """A database of 300 users who named interests long ago, the first one longest ago."""
    database = Database(database_url)
    database.upgrade()
    at = datetime.now(UTC) - timedelta(days=2)
    rows = [
        {
            "user_id": f"user-{number}",
            "first_seen": at,
            "last_seen": at,
            "interests": [f"interest-{number}", "x" * 200],
            "interests_at": at + timedelta(minutes=number),
        }
        for number in range(300)
    ]
    with database.begin() as connection:
        connection.execute(insert(table), rows)
    yield database
    database.close()


def rename_silently(database: Database) -> None:
    """Change all stored interests, but not their time: only who reads them again notices."""
    with database.begin() as connection:
        connection.execute(update(table).values(interests=["renamed"]))


def test_interests_of_one_user_do_not_read_those_of_others_again(named: Database) -> None:
    users = UserDirectory()
    users.sync(named)
    rename_silently(named)
    users.set_interests(named, "eve", ("Cables",))
    users.sync(named)
    assert (users.interests_of("eve"), users.interests_of("user-7")[0]) == (
        ("Cables",),
        "interest-7",
    )
    control = UserDirectory()
    control.sync(named)
    assert control.interests_of("user-7") == ("renamed",), "who reads everybody notices"


def test_a_process_whose_clock_is_behind_is_read_too(named: Database) -> None:
    one, other = UserDirectory(), UserDirectory()
    one.set_interests(named, "eve", ("Cables",))
    other.sync(named)
    behind = datetime.now(UTC) - CLOCK_SKEW / 2
    with named.begin() as connection:
        row = update(table).where(table.c.user_id == "user-7")
        connection.execute(row.values(interests=["late"], interests_at=behind))
    one.set_interests(named, "eve", ("Lamps",))
    other.sync(named)
    assert (other.interests_of("user-7"), other.interests_of("eve")) == (("late",), ("Lamps",))


@pytest.mark.parametrize(("max_bytes", "oldest"), [(50_000, ()), (10_000_000, "interest-0")])
def test_the_bytes_of_interests_are_bounded_and_the_newest_are_held(
    named: Database, max_bytes: int, oldest: str
) -> None:
    users = UserDirectory(max_bytes)
    users.sync(named)
    assert 0 < users.interest_bytes <= max_bytes
    assert users.interests_of("user-0")[:1] == ((oldest,) if oldest else ())
    assert users.interests_of("user-299")[0] == "interest-299"
    users.set_interests(named, "eve", ("Cables",))
    rename_silently(named)
    users.sync(named)
    assert users.interests_of("user-290")[0] == "interest-290", "no row is missing: not read again"
    assert users.interest_bytes <= max_bytes
    forget(named, "user-299")
    users.sync(named)
    assert users.interests_of("user-299") == ()


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


@pytest.mark.parametrize("keep", [InactiveFor(timedelta(days=30), timedelta(days=730)), None])
def test_inactive_sessions_and_users_are_deleted(
    database_url: str, keep: InactiveFor | None
) -> None:
    """The control, without a time to live: all stay."""
    database = Database(database_url)
    database.upgrade()
    users = ("session:old", "session:new", "user-old", "user-new")
    ages = (31, 29, 731, 40)
    rows = [
        {"user_id": user, "first_seen": at, "last_seen": at}
        for user, at in zip(users, (now() - timedelta(days=n) for n in ages), strict=True)
    ]
    with database.begin() as connection:
        connection.execute(insert(table), rows)
    UserDirectory(keep=keep).sync(database)
    with database.begin() as connection:
        kept = set(connection.execute(select(table.c.user_id)).scalars())
    assert kept == ({"session:new", "user-new"} if keep else set(users))
    database.close()
