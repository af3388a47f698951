"""A forgotten user is in no cache, no waiting row and no SQL table of any API process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from websockets.sync.client import connect

from afterclick.io.forgotten import publish_forgotten
from afterclick.settings import Settings
from serving.control.erasure import UserEraser
from serving.control.request_log import LoggedRequest, RequestLog, named_users
from serving.control.store import Database, experiment_users, request_log, users
from serving.control.user_tokens import new_token
from serving.control.users import UserDirectory
from streaming.proof.forget_requests import ForgettingLoop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, after
from tests.serving.test_auth import KEYS, bearer, guarded
from tests.serving.test_route_access import SECRET
from tests.waiting import wait_until

NOW_MS = int(time.time() * 1000)


@pytest.fixture
def other(settings: Settings, shop_api: Running) -> Iterator[Running]:
    """A second API process of the shop."""
    with Running(shop_api.service.settings) as running:
        running.ready()
        wait_until(lambda: running.service.snapshots.current.loaded.version == "m1")
        yield running


@pytest.fixture
def job(settings: Settings, stream: MiniStream) -> Iterator[ForgettingLoop]:
    """What erases state and log."""
    with closing(ForgettingLoop(settings)) as loop:
        yield loop


def visit(api: Running, user: str) -> str:
    """A click, interests and a list; the list's impression id."""
    after(api, user, api.feedback(user, "camera-1", "click"))
    api.http.put(f"/users/{user}/interests", json={"interests": ["Cables"]})
    api.http.get("/recommendations", params={"user_id": "zoe", "session_id": f"of-{user}"})
    impression_id: str = api.list_for(user)["impression_id"]
    return impression_id


def traces(api: Running, user: str, impression_id: str) -> dict[str, bool]:
    """Where one process still has the user."""
    service = api.service
    with service.database.begin() as connection:
        rows = {
            table.name: connection.scalar(
                select(func.count()).select_from(table).where(table.c.user_id == user)
            )
            for table in (users, request_log)
        }
    return {
        "explanation": api.http.get(f"/explain/{impression_id}").status_code == 200,
        "history": bool(api.get("/popular") and history(api, user)),
        "interests": bool(service.users.interests_of(user)),
        "cached list": any(
            request.user_id == user for request in service.recommender._cache._entries
        ),
        "open socket": any(
            watcher.unseen and watcher.pushed for watcher in service.hub._watchers.get(user, ())
        ),
        "live transitions": user in service.contacts._newest,
        "recent requests": any(user in row["target"] for row in service.requests.recent()),
        **{name: bool(count) for name, count in rows.items()},
    }


def history(api: Running, user: str) -> list[Any]:
    response = api.http.get(f"/users/{user}/history")
    rows: list[Any] = response.json()["events"]
    return rows


def gone(api: Running, user: str, impression_id: str) -> bool:
    """No trace, apart from requests after the erasure: reading the history is one."""
    found = traces(api, user, impression_id)
    return not any(found[name] for name in found.keys() - {"recent requests", "request_log"})


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Connections that stay open during a test."""
    with ExitStack() as stack:
        yield stack


def test_two_processes_forget_a_user(
    shop_api: Running, other: Running, job: ForgettingLoop, sockets: ExitStack
) -> None:
    for api in (shop_api, other):
        sockets.enter_context(connect(f"{api.ws}/ws/recommendations?user_id=ann"))
    lists = [(api, visit(api, "ann")) for api in (shop_api, other)]
    for api, impression_id in lists:  # the control: both have the user everywhere
        wait_until(lambda: all(traces(api, "ann", impression_id).values()))  # noqa: B023
    erased = shop_api.http.delete("/users/ann")
    assert (erased.status_code, erased.json()["state"]) == (202, "requested")
    for api, impression_id in lists:  # before the stream has done anything
        wait_until(lambda: gone(api, "ann", impression_id))  # noqa: B023
        assert shop_api.get("/users/ann/erasure")["state"] == "requested"
    job.start()
    report = wait_until(lambda: _complete(other, "ann"))
    assert (report["events"], report["remaining"]) == (2, 0)

    after(other, "ann", other.feedback("ann", "cable-1", "click"))  # the user returns
    assert [row["item_id"] for row in history(other, "ann")] == ["cable-1"]


def _complete(api: Running, user: str) -> dict[str, Any] | None:
    body = api.get(f"/users/{user}/erasure")
    return body if body["state"] == "complete" else None


def test_a_user_erases_themselves_with_their_token(settings: Settings) -> None:
    with Running(guarded(settings, token_secret=SECRET)) as api, MiniStream(settings):
        own = bearer(new_token(SECRET, "ann", 3600)[0])
        wait_until(lambda: api.http.delete("/users/ann", headers=own).status_code == 202)
        asked = "/recommendations?user_id=ann"
        wait_until(lambda: api.http.get(asked, headers=own).status_code == 401)  # it is revoked
        own = bearer(new_token(SECRET, "ann", 3600)[0])
        assert api.http.get("/users/ann/erasure", headers=own).json()["state"] == "requested"
        assert api.http.delete("/users/bob", headers=own).status_code == 403
        assert api.http.delete("/users/ann", headers=bearer(KEYS["feedback"])).status_code == 403
        assert api.http.delete("/users/bob", headers=bearer(KEYS["admin"])).status_code == 202
        assert api.http.get("/users/eve/erasure", headers=own).status_code == 403
        wait_until(lambda: api.service.requests.pending.written >= 6)
        with api.service.database.begin() as connection:
            logged = connection.execute(select(request_log.c.target)).scalars().all()
    assert "/users/{user_id}" in logged
    assert not any("bob" in target or "/users/ann" in target for target in logged)


def request_of(target: str, at_ms: int = NOW_MS - 1000) -> LoggedRequest:
    path, _, query = target.partition("?")
    return LoggedRequest(at_ms / 1000, "GET", "r", path, query.encode(), 200, 0.1, None)


@pytest.mark.parametrize("erased", [True, False])
def test_waiting_rows_are_not_written_after_the_erasure(database_url: str, erased: bool) -> None:
    """The control, without the eraser: they are."""
    database = Database(database_url)
    database.upgrade()
    log, directory = RequestLog(1.0), UserDirectory()
    eraser = UserEraser((log, directory))
    log.append(request_of("/users/ann/history"))
    log.append(request_of("/users/zoe/history"))
    for user in ("ann", "zoe"):
        directory.seen(user)
    if erased:
        eraser.forget({"ann": int(time.time() * 1000) + 1})
    for part in (eraser, log, directory):
        part.sync(database)
    with database.begin() as connection:
        stored = connection.execute(select(request_log.c.user_id)).scalars().all()
        assert sorted(stored) == (["zoe"] if erased else ["ann", "zoe"])
        assert sorted(connection.execute(select(users.c.user_id)).scalars()) == sorted(stored)
    database.close()


COUNTS = {"experiment": "e", "arm": "a", "lists": 1, "fallback_lists": 0}
COUNTS |= {"clicks": 0, "purchases": 0}


@pytest.mark.parametrize("user_id", ["ann", "100%_ann", "ann & bob/ü", "session:visitor-77"])
def test_the_rows_of_a_user_are_deleted_and_those_of_others_stay(
    database_url: str, user_id: str
) -> None:
    database = Database(database_url)
    database.upgrade()
    past, later = datetime.fromtimestamp(NOW_MS / 1000 - 5, UTC), NOW_MS + 5000
    log, eraser = RequestLog(1.0), UserEraser()
    session = user_id.removeprefix("session:")
    own = {"session_id": session} if session != user_id else {"user_id": user_id}
    spelled = "&".join(f"{name}={_percent(value)}" for name, value in own.items())
    targets = [
        f"/recommendations?{spelled}&n=3",
        f"/recommendations?n=3&{spelled}",
        f"/users/{user_id.replace('/', '')}x/history",
        "/recommendations?user_id=zoe",
        "/recommendations?user_id=100",
    ]
    for target in targets:
        log.append(request_of(target))
    log.append(request_of(targets[0], later))  # the user returns
    log.sync(database)
    with database.begin() as connection:
        rows = [COUNTS | {"user_id": name, "first_shown": past} for name in (user_id, "zoe")]
        connection.execute(insert(experiment_users), rows)
    eraser.forget({user_id: NOW_MS})
    assert not eraser.sync(database)
    with database.begin() as connection:
        assert connection.execute(select(experiment_users.c.user_id)).scalars().all() == ["zoe"]
        kept = connection.execute(select(request_log.c.target)).scalars().all()
        assert kept == [*targets[2:], targets[0]]
    database.close()


def _percent(text: str) -> str:
    """Every character escaped."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_whom_a_request_names() -> None:
    assert named_users("/users/bob/history", "") == ("bob", None, False)
    assert named_users("/recommendations", "user_id=b%6fb") == ("bob", None, False)
    assert named_users("/recommendations", "session_id=v&n=3") == (None, "session:v", False)
    assert named_users("/users/session:v", "") == (None, "session:v", False)
    assert named_users("/x", "user_id=bob&session_id=v") == ("bob", "session:v", False)
    assert named_users("/users/bob", "user_id=ann").ambiguous
    assert request_of("/users/bob?user_id=ann").target == "r"
    assert named_users("/popular", "n=3") == (None, None, False)


def test_rows_of_an_earlier_version_are_erased_too(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade("0001")
    row = {"at": datetime.now(UTC), "method": "GET", "route": "r", "status": 200}
    targets = ["/users/ann", "/users?user_id=%61nn", "/a?user_id=ann&user_id=bob", "/popular"]
    old = [row | {"target": target, "milliseconds": 1.0} for target in targets]
    with database.begin() as connection:
        connection.execute(insert(request_log).values(old))
    database.upgrade()
    eraser = UserEraser()
    eraser.forget({"ann": int(time.time() * 1000) + 1000})
    eraser.sync(database)
    with database.begin() as connection:
        query = select(request_log.c.target).order_by(request_log.c.id)
        assert connection.execute(query).scalars().all() == ["r", "/popular"]
    database.close()


def test_a_starting_process_reads_who_is_forgotten(settings: Settings) -> None:
    """Rows that no process has erased, because none ran."""
    database = Database(settings.database)
    database.upgrade()
    directory = UserDirectory()
    for user in ("ann", "zoe"):
        directory.seen(user)
    directory.sync(database)
    publish_forgotten(settings.kafka, "ann", int(time.time() * 1000) + 1)
    with Running(settings):
        wait_until(lambda: _stored(database) == ["zoe"])
    database.close()


def _stored(database: Database) -> list[str]:
    with database.begin() as connection:
        return list(connection.execute(select(users.c.user_id).order_by(users.c.user_id)).scalars())
