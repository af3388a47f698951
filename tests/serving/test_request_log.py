"""Requests are logged in the background; the database delays no response."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import func, insert, select

from afterclick.settings import ServingSettings, Settings
from serving.control.request_log import (
    MAX_PENDING,
    UNAUTHENTICATED_PER_MINUTE,
    LoggedRequest,
    RequestLog,
)
from serving.control.store import Database, request_log
from serving.control.write_behind import WriteBehind
from tests.serving.running import Running
from tests.serving.test_auth import bearer, guarded
from tests.waiting import PATIENCE_S, wait_until


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
    """Lock the table, so that writers wait."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE request_log IN ACCESS EXCLUSIVE MODE")
        yield


def test_every_request_is_logged(settings: Settings, database_url: str) -> None:
    with Running(with_database(settings, database_url)) as api:
        assert api.http.get("/popular", params={"n": 3}).status_code == 200
        assert api.http.get("/items/%F0%9F%A6%8A").status_code == 404
        assert api.http.get("/nothing%00?q=%00").status_code == 404
        assert api.http.get("/health/live").status_code == 200
        wait_until(lambda: api.service.requests.pending.written == 3)
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
        assert timedelta(0) <= datetime.now(UTC) - found.at < timedelta(hours=1)
        assert 0 < found.milliseconds < 1000 * PATIENCE_S


def test_pending_rows_are_written_at_shutdown(settings: Settings, database_url: str) -> None:
    with Running(with_database(settings, database_url)) as api:
        wait_until(lambda: api.service.control.available)
        for _ in range(20):
            assert api.http.get("/popular").status_code == 200
    database = Database(database_url)
    assert count(database) == 20
    database.close()


def test_a_slow_database_delays_no_response_and_loses_no_row(
    settings: Settings, postgres_url: str
) -> None:
    with Running(with_database(settings, postgres_url)) as api:
        wait_until(lambda: api.service.control.available)
        with locked(postgres_url):
            for _ in range(51):
                assert api.http.get("/popular").status_code == 200
            assert api.service.requests.pending.written == 0, "the lock blocked no write"
        wait_until(lambda: api.service.requests.pending.written == 51)
        assert api.service.requests.pending.dropped == 0


def test_a_direct_write_waits_for_the_lock(settings: Settings, postgres_url: str) -> None:
    """The control: the same lock blocks a direct write."""
    database = Database(postgres_url)
    database.upgrade()
    requests = RequestLog(days=1.0)
    writer = WriteBehind(database, [requests])
    with locked(postgres_url):
        requests.append(row())
        writer.start()
        writer.stop(timeout_s=0.5)
        assert requests.pending.written == 0, "the lock blocked no write"
    wait_until(lambda: requests.pending.written == 1)
    database.close()


def test_the_api_responds_without_its_database(settings: Settings) -> None:
    unreachable = "postgresql://user@127.0.0.1:1/absent"
    with Running(with_database(settings, unreachable)) as api:
        for _ in range(20):
            assert api.http.get("/recommendations", params={"user_id": "bob"}).status_code == 200
        parts = api.http.get("/health/ready").json()["parts"]
        assert parts["sql"] is False
        assert api.service.requests.pending.written == 0
        wait_until(lambda: len(api.service.requests.pending) == 20)


def test_a_full_queue_drops_the_newest_and_counts_them() -> None:
    full = RequestLog(days=1.0, max_pending=10)
    for number in range(25):
        full.append(row(number))
    assert (len(full.pending), full.pending.dropped, full.pending.written) == (10, 15, 0)
    assert MAX_PENDING >= 10_000


def test_a_row_that_the_database_rejects_blocks_no_other_row(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.upgrade()
    requests = RequestLog(days=1.0)
    requests.append(row()._replace(status=70_000))  # more than a SMALLINT
    requests.sync(database)
    assert requests.pending.dropped == 1
    requests.append(row()._replace(caller="x" * 500))
    requests.sync(database)
    assert requests.pending.written == 1
    database.close()


def test_old_rows_are_deleted_and_zero_days_store_none(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    fields = {"method": "GET", "route": "/popular", "target": "/popular", "status": 200}
    old = {"at": datetime.now(UTC) - timedelta(days=3), "milliseconds": 1.0, **fields}
    with database.begin() as connection:
        connection.execute(insert(request_log), [old])
    requests = RequestLog(days=2.0)
    requests.append(row())
    requests.sync(database)
    assert requests.pending.written == 1
    assert count(database) == 1
    unwanted = RequestLog(days=0)
    unwanted.append(row())
    assert len(unwanted.pending) == 0
    database.close()


def test_requests_without_a_key_have_few_rows(settings: Settings, database_url: str) -> None:
    guarded_settings = guarded(settings, database=database_url, request_log_days=1.0)
    long = "a" * 900
    with Running(guarded_settings) as api:
        for _ in range(60):
            assert api.http.get(f"/popular?x={long}").status_code == 401
            assert api.http.get("/health/live").status_code == 200
        for _ in range(60):  # the control
            assert api.http.get("/popular", headers=bearer("r-key")).status_code == 200
        left_out = api.service.requests.unauthenticated
        wait_until(lambda: api.service.requests.pending.written == 120 - left_out)
        text = api.http.get("/metrics", headers=bearer("a-key")).text
    assert f'afterclick_request_log_rows{{state="unauthenticated"}} {left_out:.1f}' in text
    database = Database(database_url)
    with database.begin() as connection:
        statuses = Counter(connection.execute(select(request_log.c.status)).scalars())
    database.close()
    assert statuses[200] == 60
    assert statuses[401] == 60 - left_out
    assert UNAUTHENTICATED_PER_MINUTE <= statuses[401] <= 3 * UNAUTHENTICATED_PER_MINUTE


def test_each_minute_has_rows_of_requests_without_a_key() -> None:
    requests = RequestLog(days=1.0)
    for second in range(180):
        requests.append(row()._replace(time=6000.0 + second, authenticated=False))
    assert len(requests.pending) == 3 * UNAUTHENTICATED_PER_MINUTE
    assert requests.unauthenticated == 180 - 3 * UNAUTHENTICATED_PER_MINUTE


@pytest.mark.parametrize(("max_rows", "kept"), [(1000, 1000), (20_000, 7000)])
def test_the_table_keeps_its_newest_rows(database_url: str, max_rows: int, kept: int) -> None:
    database = Database(database_url)
    database.upgrade()
    requests = RequestLog(days=1.0, max_rows=max_rows)
    for number in range(10_000, 17_000):
        requests.append(row(number))
    while requests.sync(database):
        pass
    assert kept <= count(database) <= kept + max_rows // 10
    with database.begin() as connection:
        newest = connection.scalar(select(func.max(request_log.c.target)))
    assert newest == "/popular?n=16999"
    database.close()


@pytest.mark.parametrize("days", [0.0, 1.0])
def test_metrics_report_the_rows_of_the_request_log(settings: Settings, days: float) -> None:
    url = f"sqlite:///{settings.home / 'serving.db'}"
    with Running(with_database(settings, url, days)) as api:
        api.http.get("/popular")
        wait_until(lambda: api.service.requests.pending.written == (1 if days else 0))
        text = api.http.get("/metrics").text
    assert f'afterclick_request_log_rows{{state="written"}} {1.0 if days else 0.0}' in text
    assert 'afterclick_request_log_rows{state="dropped"} 0.0' in text


def test_every_response_has_a_request_id_of_its_own(shared_shop_api: Running) -> None:
    found = [
        shared_shop_api.http.get(path).headers.get_list("x-request-id")
        for path in ("/popular", "/popular", "/nothing", "/health/live")
    ]
    assert [len(ids) for ids in found] == [1, 1, 1, 1]
    assert len({ids[0] for ids in found}) == 4
    assert all(len(ids[0]) == 32 for ids in found)
