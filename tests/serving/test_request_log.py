"""The request log is written behind the response; its database can make nobody wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import func, insert, select

from afterclick.settings import ServingSettings, Settings
from serving.control.request_log import WAITING, LoggedRequest, RequestLog
from serving.control.store import Database
from serving.control.tables import request_log
from tests.serving.running import Running
from tests.waiting import wait_until

SLOW_S = 3.0
"""Far less than the database takes in the tests in which it is slow."""


def with_database(settings: Settings, url: str, days: float = 1.0) -> Settings:
    serving = ServingSettings(database=url, request_log_days=days, open=True)
    return settings.model_copy(update={"serving": serving})


def row(number: int = 0) -> LoggedRequest:
    return LoggedRequest(
        time.time(), "GET", "/popular", "/popular", b"n=%d" % number, 200, 0.001, None
    )


def count(database: Database) -> int:
    with database.begin() as connection:
        return connection.execute(select(func.count()).select_from(request_log)).scalar_one()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold the table, so that whoever writes to it waits."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE request_log IN ACCESS EXCLUSIVE MODE")
        yield


def test_every_request_leaves_a_row(settings: Settings, database_url: str) -> None:
    with Running(with_database(settings, database_url)) as api:
        assert api.http.get("/popular", params={"n": 3}).status_code == 200
        assert api.http.get("/items/%F0%9F%A6%8A").status_code == 404
        assert api.http.get("/nothing%00?q=%00").status_code == 404
        assert api.http.get("/health/live").status_code == 200
        wait_until(lambda: api.service.requests.written == 3)
    database = Database(database_url)
    with database.begin() as connection:
        rows = connection.execute(select(request_log).order_by(request_log.c.id)).all()
    database.close()
    assert [(r.route, r.target, r.status) for r in rows] == [
        ("/popular", "/popular?n=3", 200),
        ("/items/{item_id}", "/items/🦊", 404),
        ("unknown", "/nothing\\0?q=%00", 404),
    ]
    for found in rows:
        assert timedelta(0) <= datetime.now(UTC) - found.at < timedelta(minutes=1)
        assert 0 < found.milliseconds < 10_000


def test_what_waits_at_the_end_is_written(settings: Settings, database_url: str) -> None:
    with Running(with_database(settings, database_url)) as api:
        wait_until(lambda: api.service.plane.available)
        for _ in range(20):
            assert api.http.get("/popular").status_code == 200
    database = Database(database_url)
    assert count(database) == 20
    database.close()


def test_a_slow_database_slows_no_answer_and_loses_nothing(
    settings: Settings, postgres_url: str
) -> None:
    with Running(with_database(settings, postgres_url)) as api:
        wait_until(lambda: api.service.plane.available)
        with locked(postgres_url):
            api.http.get("/popular")
            began = time.monotonic()
            for _ in range(50):
                asked = time.monotonic()
                assert api.http.get("/popular").status_code == 200
                assert time.monotonic() - asked < SLOW_S
            assert api.service.requests.written == 0
            assert time.monotonic() - began < 50 * SLOW_S
        wait_until(lambda: api.service.requests.written == 51)
        assert api.service.requests.dropped == 0


def test_writing_in_the_request_would_have_been_slow(settings: Settings, postgres_url: str) -> None:
    """The control: the same lock holds up whoever writes for himself."""
    database = Database(postgres_url)
    database.upgrade()
    written = RequestLog(database, days=1.0)
    with locked(postgres_url):
        written.append(row())
        written.start()
        began = time.monotonic()
        written.stop(timeout_s=SLOW_S)
        assert time.monotonic() - began >= SLOW_S, "the lock held nobody up"
        assert written.written == 0
    wait_until(lambda: written.written == 1)
    database.close()


def test_without_its_database_the_api_answers(settings: Settings) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nowhere"
    with Running(with_database(settings, nowhere)) as api:
        for _ in range(20):
            assert api.http.get("/recommendations", params={"user_id": "bob"}).status_code == 200
        parts = api.http.get("/health/ready").json()["parts"]
        assert parts["sql"] is False
        assert api.service.requests.written == 0
        wait_until(lambda: api.service.requests.waiting == 20)


def test_a_full_queue_drops_the_newest_and_counts_them() -> None:
    full = RequestLog(Database("postgresql://nobody@127.0.0.1:1/nowhere"), days=1.0, waiting=10)
    for number in range(25):
        full.append(row(number))
    assert (full.waiting, full.dropped, full.written) == (10, 15, 0)
    assert WAITING >= 10_000


def test_a_row_that_no_database_takes_holds_up_no_other(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.upgrade()
    kept = RequestLog(database, days=1.0)
    kept.start()
    kept.append(row()._replace(status=70_000))  # more than a SMALLINT
    wait_until(lambda: kept.dropped == 1)
    kept.append(row()._replace(caller="x" * 500))
    wait_until(lambda: kept.written == 1)
    kept.stop()
    database.close()


def test_old_rows_go_and_none_are_kept_where_none_are_wanted(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    old = {
        "at": datetime.now(UTC) - timedelta(days=3),
        **{
            "method": "GET",
            "route": "/popular",
            "target": "/popular",
            "status": 200,
            "milliseconds": 1.0,
        },
    }
    with database.begin() as connection:
        connection.execute(insert(request_log), [old])
    kept = RequestLog(database, days=2.0)
    kept.append(row())
    kept.start()
    wait_until(lambda: kept.written == 1)
    kept.stop()
    assert count(database) == 1
    unwanted = RequestLog(database, days=0)
    unwanted.append(row())
    assert unwanted.waiting == 0
    database.close()


@pytest.mark.parametrize("days", [0.0, 1.0])
def test_the_metrics_say_how_the_log_keeps_up(settings: Settings, days: float) -> None:
    url = f"sqlite:///{settings.home / 'serving.db'}"
    with Running(with_database(settings, url, days)) as api:
        api.http.get("/popular")
        wait_until(lambda: api.service.requests.written == (1 if days else 0))
        text = api.http.get("/metrics").text
    assert f'afterclick_request_log_rows{{state="written"}} {1.0 if days else 0.0}' in text
    assert 'afterclick_request_log_rows{state="dropped"} 0.0' in text
