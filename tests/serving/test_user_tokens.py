"""User tokens: lifetime, revocation and change of the secret."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka import Message
from sqlalchemy import Connection, delete, insert, select
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from afterclick.events import now
from afterclick.io.forgotten import publish_forgotten
from afterclick.settings import ServingSettings, Settings
from afterclick.state import encode_forgotten
from serving.control.erasure import UserEraser
from serving.control.store import Database, token_revocations
from serving.control.user_tokens import MAX_TOKEN_S, UserTokens, new_token, revoke_tokens
from serving.routes import sockets
from serving.service import ServingTimings
from tests.serving.running import Running
from tests.serving.test_auth import KEYS, bearer, guarded
from tests.waiting import PATIENCE_S, wait_until

SECRET, OLD_SECRET = "s" * 32, "o" * 32
AHEAD_MS = 299_000
"""How far ahead an event of a forgotten user lies."""


def token(user_id: str = "ann", secret: str = SECRET) -> str:
    return new_token(secret, user_id, 3600)[0]


def revoke(connection: Connection, user_id: str) -> None:
    revoke_tokens(connection, {user_id: now()})


def tokens(**serving: str) -> UserTokens:
    return UserTokens(ServingSettings(**({"token_secret": SECRET} | serving)))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'serving.db'}")
    database.upgrade()
    return database


def test_tokens_of_the_previous_secret_are_valid_but_new_ones_have_the_current() -> None:
    old, new = token(secret=OLD_SECRET).encode(), token().encode()
    rotated = tokens(token_secret_previous=OLD_SECRET)
    assert [rotated.user_of(old), rotated.user_of(new)] == ["ann", "ann"]
    assert [tokens().user_of(old), tokens().user_of(new)] == [None, "ann"], "the control"


def test_a_revocation_ends_the_earlier_tokens_of_its_user_only(database: Database) -> None:
    ann, bob, valid = token("ann").encode(), token("bob").encode(), tokens()
    with database.begin() as connection:
        revoke(connection, "ann")
        assert valid.user_of(ann) == "ann", "the control: not read yet"
        valid.read(connection)
        assert [valid.user_of(ann), valid.user_of(bob)] == [None, "bob"]
        assert valid.user_of(token("ann").encode()) == "ann", "a later token"
        later = token("ann").encode()
        revoke(connection, "ann")
        valid.read(connection)
        assert valid.user_of(later) is None


def test_revocations_are_forgotten_once_no_token_can_be_older(database: Database) -> None:
    long_ago = now() - timedelta(seconds=MAX_TOKEN_S + 60)
    valid = tokens()
    with database.begin() as connection:
        row = {"user_id": "old", "not_before": long_ago}
        connection.execute(insert(token_revocations), [row])
        valid.read(connection)
        assert len(valid) == 0
        revoke(connection, "ann")
        users = connection.execute(select(token_revocations.c.user_id)).scalars().all()
        assert users == ["ann"]


def test_with_too_many_revocations_the_oldest_become_one_for_everyone(database: Database) -> None:
    valid = UserTokens(ServingSettings(token_secret=SECRET), max_revocations=3)
    before = token("dan").encode()
    with database.begin() as connection:
        for user_id in ("ann", "bob", "cid", "eve"):
            revoked = token(user_id).encode()
            revoke(connection, user_id)
            valid.read(connection)
            assert valid.user_of(revoked) is None, user_id
    assert len(valid) == 3
    assert valid.user_of(before) is None, "older than a revocation that was dropped"
    assert valid.user_of(token("dan").encode()) == "dan"


def test_no_revocation_hides_a_later_one(database_url: str) -> None:
    """Neither one with a time ahead nor one that is written long after its time."""
    database, valid, eraser = Database(database_url), tokens(), UserEraser()
    database.upgrade()
    ann, carol, eve = (token(user_id).encode() for user_id in ("ann", "carol", "eve"))
    eraser.forget({"ann": int(time.time() * 1000) + AHEAD_MS})
    eraser.sync(database)
    with database.begin() as connection:
        valid.read(connection)
        assert valid.user_of(ann) is None
        assert valid.user_of(token("ann").encode()) == "ann", "issued after the erasure"
        revoke(connection, "carol")
        valid.read(connection)
        assert valid.user_of(carol) is None
        revoke_tokens(connection, {"dan": now() - timedelta(hours=1)})
        valid.read(connection)
        assert len(valid) == 3
        connection.execute(delete(token_revocations))  # as after a restore
        revoke(connection, "eve")
        valid.read(connection)
        assert [valid.user_of(eve), valid.user_of(carol)] == [None, None]
    database.close()


def test_a_token_of_the_millisecond_of_the_request_is_revoked(database: Database) -> None:
    """The record has whole milliseconds, the token their fractions."""
    before, valid, eraser = token("ann").encode(), tokens(), UserEraser()
    at_ms = int(time.time() * 1000)
    record = Message(
        "forgotten", 0, 0, b"ann", encode_forgotten(at_ms + AHEAD_MS), timestamp=(1, at_ms)
    )
    eraser.read([record])
    eraser.sync(database)
    with database.begin() as connection:
        valid.read(connection)
    assert valid.user_of(before) is None


def test_a_process_that_starts_later_leaves_the_tokens_issued_after_an_erasure(
    settings: Settings,
) -> None:
    before = token("ann")
    publish_forgotten(settings.kafka, "ann", int(time.time() * 1000) + AHEAD_MS)
    published_ms = int(time.time() * 1000)
    wait_until(lambda: time.time() * 1000 > published_ms + 1)
    later = token("ann")
    with Running(guarded(settings, token_secret=SECRET)) as api:

        def status(key: str) -> int:
            return api.http.get("/users/ann/history", headers=bearer(key)).status_code

        wait_until(lambda: status(before) == 401)
        assert status(later) != 401


def test_an_administrator_and_the_user_revoke_tokens(settings: Settings) -> None:
    timings = ServingTimings(reauthenticate_s=0.1)
    secured = guarded(settings, token_secret=SECRET)
    with Running(secured, timings=timings) as api, Running(secured) as other:
        ann, bob = token("ann"), token("bob")

        def statuses(*apis: Running) -> list[int]:
            url, answers = "/users/ann/history", [api.http for api in apis]
            return [http.get(url, headers=bearer(ann)).status_code for http in answers]

        def revoke(key: str, user_id: str = "ann") -> int:
            url = f"/users/{user_id}/tokens"
            return api.http.delete(url, headers=bearer(key)).status_code

        assert [revoke(bob), revoke(KEYS["recommend"]), revoke(KEYS["feedback"])] == [403] * 3
        assert 401 not in statuses(api, other), "the control"
        url = f"{api.ws}/ws/recommendations?user_id=ann"
        with connect(url, additional_headers=bearer(ann)) as socket:
            assert socket.recv(PATIENCE_S)
            assert revoke(ann) == 200
            assert statuses(api) == [401], "in force on return"
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == sockets.INVALID
        wait_until(lambda: statuses(other) == [401], what="the other process reads it")
        assert revoke(ann) == 401
        ann = token("ann")
        assert 401 not in statuses(api, other)
        assert revoke(KEYS["admin"]) == 200
        assert statuses(api) == [401]
        assert api.http.get("/users/bob/history", headers=bearer(bob)).status_code != 401
    with Running(secured) as restarted:
        assert statuses(restarted) == [401]
